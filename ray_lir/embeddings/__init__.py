"""Token embeddings: the type that the model layer and the index layer share, the encoder contract, and their files."""
