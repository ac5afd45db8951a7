"""Evaluation: test collections, runs, measures, latency and the exact oracle that engines are compared with."""
