"""Training of an encoder for a scorer, with torch."""
