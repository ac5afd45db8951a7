"""The BEIR layout: queries.jsonl and qrels/<split>.tsv, and its exports to Hugging Face as Parquet.

| file | names |
|---|---|
| queries | queries.jsonl, queries.jsonl.gz, queries.parquet, queries-*.parquet, or Parquet files in queries/ |
| judgements | <split>.tsv, .tsv.gz, .parquet or <split>-*.parquet, in qrels/, data/, default/ or the folder <name>-qrels beside this one |
"""

import re

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets.dataset import Dataset, judged_texts
from ray_lir.corpus.datasets.judgements import read_judgements
from ray_lir.corpus.datasets.query_texts import read_queries

QUERIES = re.compile(r"queries(\.jsonl|\.jsonl\.gz|\.parquet|-.*\.parquet)")
JUDGEMENTS = re.compile(r"(?P<split>.+?)(-\d+-of-\d+)?\.(tsv|tsv\.gz|parquet)")
JUDGEMENT_FOLDERS = ("qrels", "data", "default")


def matches(folder: str) -> bool:
    """Return whether a folder has queries or judgements in this layout."""
    names = storage.list_names(folder)
    return "qrels" in names or any(QUERIES.fullmatch(name) for name in names) or bool(_parquet_queries(folder, names))


def load(folder: str, split: str) -> list[Dataset]:
    """Return the split of a folder, in a list.

    Args:
        folder: Folder or URL.
        split: The judgements to read.

    Raises:
        ConfigError: There is no such split.
        FormatError: A file is missing or malformed, or a judged query has no text.
    """
    found = _splits(folder)
    if split not in found:
        have = f"it has {', '.join(sorted(found))}" if found else "it has no qrels/*.tsv; give a folder in the BEIR layout"
        raise ConfigError(f"no split {split!r} in {folder}; {have}")
    qrels = read_judgements(found[split])
    files = query_files(folder)
    queries = judged_texts(qrels, read_queries(files), files[0], "/".join(found[split][0].rsplit("/", 2)[-2:]))
    return [Dataset(storage.base_name(folder), split, queries, qrels, folder)]


def query_files(folder: str) -> list[str]:
    """Return the files with the queries of all splits.

    Raises:
        FormatError: There are none.
    """
    names = storage.list_names(folder)
    for pattern in (r"queries\.jsonl", r"queries\.jsonl\.gz", r"queries\.parquet", r"queries-.*\.parquet"):
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return [storage.join(folder, name) for name in found]
    if found := _parquet_queries(folder, names):
        return found
    raise FormatError(folder, "queries.jsonl or queries.jsonl.gz", "neither", "give a folder in the BEIR layout")


def _parquet_queries(folder: str, names: list[str]) -> list[str]:
    inside = storage.list_names(storage.join(folder, "queries")) if "queries" in names else []
    return [storage.join(folder, "queries", name) for name in inside if name.endswith(".parquet")]


def _splits(folder: str) -> dict[str, list[str]]:
    """The files of each split, from the first folder that has judgements."""
    places = [storage.join(folder, name) for name in JUDGEMENT_FOLDERS]
    beside = f"{folder.rstrip('/')}-qrels"
    for place in (*places, beside, *(storage.join(beside, name) for name in JUDGEMENT_FOLDERS)):
        splits: dict[str, list[str]] = {}
        for name in storage.list_names(place):
            if found := JUDGEMENTS.fullmatch(name):
                splits.setdefault(found["split"], []).append(storage.join(place, name))
        if splits:
            return {split: _one_format(files) for split, files in splits.items()}
    return {}


def _one_format(files: list[str]) -> list[str]:
    """The files of one format: if a split is there as text and as Parquet, only the text is read."""
    for suffix in (".tsv", ".tsv.gz"):
        if found := [file for file in files if file.endswith(suffix)]:
            return found[:1]
    return files
