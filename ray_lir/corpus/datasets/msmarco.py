"""The layout of MS MARCO passages: collection.tsv, queries.<split>.tsv and qrels.<split>.tsv in one folder, and TREC Deep Learning.

| split | queries | judgements |
|---|---|---|
| train, dev, dev.small | queries.<split>.tsv | qrels.<split>.tsv |
| trec-dl-2019 (or dl19, 2019) | msmarco-test2019-queries.tsv or queries.2019.tsv | 2019qrels-pass.txt or qrels.2019.tsv |

Every file may also end in .gz. A folder with queries.tsv and qrels.tsv has one split, test. Without qrels.dev.tsv, dev means dev.small.
"""

import re

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets.dataset import Dataset, judged_texts
from ray_lir.corpus.datasets.judgements import read_judgements
from ray_lir.corpus.datasets.query_texts import read_queries

QUERIES = re.compile(r"(queries(\.(?P<split>.+?))?|msmarco-(?P<other>.+?)-queries)\.tsv(\.gz)?")
JUDGEMENTS = re.compile(r"(qrels(\.(?P<split>.+?))?|(?P<other>.+?)-?qrels(-pass)?)\.(tsv|txt)(\.gz)?")
DEEP_LEARNING = re.compile(r"(?:trec-)?dl-?(?:20)?(\d\d)|(?:test)?20(\d\d)")
ALONE = "test"
"""Name of the split of queries.tsv and qrels.tsv."""


def matches(folder: str) -> bool:
    """Return whether a folder has queries or judgements in this layout."""
    return any(QUERIES.fullmatch(name) or JUDGEMENTS.fullmatch(name) for name in storage.list_names(folder))


def load(folder: str, split: str) -> list[Dataset]:
    """Return the split of a folder, in a list.

    Args:
        folder: Folder or URL.
        split: The judgements to read.

    Raises:
        ConfigError: There is no such split.
        FormatError: A file is missing or malformed, or a judged query has no text.
    """
    names = storage.list_names(folder)
    judged, queries = _by_split(names, JUDGEMENTS), _by_split(names, QUERIES)
    name = _canonical(split)
    if name not in judged and f"{name}.small" in judged:
        name = f"{name}.small"
    if name not in judged:
        have = f"it has {', '.join(sorted(judged))}" if judged else "it has no qrels.*.tsv; get the judgements of MS MARCO"
        raise ConfigError(f"no split {split!r} in {folder}; {have}")
    file = queries.get(name) or queries.get(name.removesuffix(".small")) or queries.get(ALONE)
    if file is None:
        expected = f"queries.{name}.tsv" if name != ALONE else "queries.tsv"
        raise FormatError(folder, expected, "no such file", f"give the queries that {judged[name]} judges")
    qrels = read_judgements([storage.join(folder, judged[name])])
    texts = read_queries([storage.join(folder, file)])
    return [Dataset(storage.base_name(folder), name, judged_texts(qrels, texts, storage.join(folder, file), judged[name]), qrels, folder)]


def query_files(folder: str) -> list[str]:
    """Return the files with the queries of all splits."""
    names = storage.list_names(folder)
    return [storage.join(folder, name) for name in names if QUERIES.fullmatch(name)]


def _by_split(names: list[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """The file of each split; of several, the first name counts."""
    found: dict[str, str] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            found.setdefault(_canonical(match["split"] or match["other"] or ALONE), name)
    return found


def _canonical(split: str) -> str:
    """One name for the spellings of a TREC Deep Learning track; other names stay as they are."""
    found = DEEP_LEARNING.fullmatch(split)
    return f"trec-dl-20{found[1] or found[2]}" if found else split
