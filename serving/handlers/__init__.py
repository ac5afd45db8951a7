"""One file for each kind of request: from its HTTP message to the answer."""
