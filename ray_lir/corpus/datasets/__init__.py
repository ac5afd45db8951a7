"""Test collections: queries and judgements of one split, from BEIR, LoTTE or MS MARCO folders, or from ir_datasets."""

from ray_lir.corpus.datasets.dataset import Dataset, has_queries_as_documents
from ray_lir.corpus.datasets.judgements import LARGEST_GRADE
from ray_lir.corpus.datasets.loading import (
    all_queries,
    dataset_query_files,
    document_ids,
    find_corpus,
    find_dataset,
    load_dataset,
    load_datasets,
)

__all__ = [
    "LARGEST_GRADE",
    "Dataset",
    "all_queries",
    "dataset_query_files",
    "document_ids",
    "find_corpus",
    "find_dataset",
    "has_queries_as_documents",
    "load_dataset",
    "load_datasets",
]
