"""Searching an index in this process, and explaining the answers."""

from ray_lir.search.searcher import Searcher

__all__ = ["Searcher"]
