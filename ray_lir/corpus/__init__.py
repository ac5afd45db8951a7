"""Corpora and test collections: rows of files become documents, queries and judgements."""
