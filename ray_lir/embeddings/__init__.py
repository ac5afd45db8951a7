"""Token embeddings: the type that the model layer and the index layer share, its contract and its files."""
