"""The encoder: a checkpoint that turns queries and documents into token embeddings, with torch or, for queries of BERT, NumPy."""
