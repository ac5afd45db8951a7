"""One file for each kind of request: it turns the request model into the response model."""
