"""Evaluation: runs, measures, latency, and exact search over uncompressed embeddings as the reference for engines."""
