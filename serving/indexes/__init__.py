"""Several indexes in one service: their names, opening and closing them, and dividing the processor among them."""
