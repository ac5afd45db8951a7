"""The encoder: a checkpoint turns queries and documents into token embeddings (torch)."""
