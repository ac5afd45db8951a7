"""Corpora and data sets: rows become documents, queries and judgements."""
