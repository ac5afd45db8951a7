"""Training an encoder for a scorer (torch)."""
