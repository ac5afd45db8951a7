"""Training data: queries, each with lists of documents to compare, and the order of the batches.

The data lies in Arrow tables, in memory or mapped from files (`data_files.py`). Q queries, D documents, L lists.
"""

import hashlib
import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_lir.base.config import TrainingConfig, canonical_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

SAMPLED_TEXTS = 1000
"""Number of queries, and of documents, that are tokenized to estimate how many are truncated."""
ROWS_AT_ONCE = 8192
"""Number of rows that are read, numbered or written together."""


class Texts(Sequence[str]):
    """Texts in an Arrow column; only the texts that are read become Python strings."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._column[number].as_py() for number in range(*place.indices(len(self)))]
        return self._column[int(place)].as_py()

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[str]]:
        """Yield all texts in order, at most ROWS_AT_ONCE at a time."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield self._column.slice(start, ROWS_AT_ONCE).to_pylist()


@dataclass(frozen=True, eq=False, repr=False)
class TrainingData(ShortRepr):
    """Queries and the documents to compare for each. A list starts with a positive; hard negatives follow, if there are any.

    Attributes:
        queries: Texts of the Q queries.
        documents: Texts of the D documents that are in a list.
        starts: [Q + 1] int64; the lists of query q are `order[starts[q] : starts[q + 1]]`, at least one.
        order: [L] int64, row numbers of the lists, grouped by query.
        lists: L rows of document numbers, an Arrow column of list<int32>, in the order of the source.
        teacher: L rows with a teacher's score for each document of the list, list<double>; None without a teacher.
    """

    queries: Texts
    documents: Texts
    starts: np.ndarray
    order: np.ndarray
    lists: pa.ChunkedArray
    teacher: pa.ChunkedArray | None = None

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        documents: Sequence[str],
        lists: Sequence[Sequence[Sequence[int]]],
        teacher: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> "TrainingData":
        """Return training data in memory.

        Args:
            queries: Q texts.
            documents: D texts.
            lists: For each query, its lists of document numbers (0 <= number < D), the positive first.
            teacher: For each query and list, the scores of the listed documents; None without a teacher.
        """

        def column(rows: Sequence[Sequence[Sequence[int]]] | Sequence[Sequence[Sequence[float]]], kind: pa.DataType) -> pa.ChunkedArray:
            return pa.chunked_array([pa.array([list(row) for each in rows for row in each], pa.list_(kind))])

        starts = np.concatenate([[0], np.cumsum([len(each) for each in lists], dtype=np.int64)])
        return cls(
            Texts(pa.chunked_array([pa.array(list(queries), pa.string())])),
            Texts(pa.chunked_array([pa.array(list(documents), pa.string())])),
            starts,
            np.arange(starts[-1]),
            column(lists, pa.int32()),
            None if teacher is None else column(teacher, pa.float64()),
        )

    def lists_by_query(self) -> list[list[list[int]]]:
        """Return, for each query, its lists of document numbers, all in memory."""
        return [lists for block in self._grouped(self.lists) for lists in block]

    def scores_by_query(self) -> list[list[list[float]]]:
        """Return, for each query and list, the teacher's scores, all in memory; empty without a teacher."""
        return [] if self.teacher is None else [scores for block in self._grouped(self.teacher) for scores in block]

    def row_in(self, epoch: int, query: int) -> int:
        """Return the row of the list that an epoch uses for a query: each epoch uses the next list, and the first follows the last."""
        rows = self._rows(query)
        return int(rows[epoch % len(rows)])

    def positives(self, query: int) -> list[int]:
        """Return the document numbers of a query's known positives, each once."""
        return list(dict.fromkeys(self.lists[int(row)][0].as_py() for row in self._rows(query)))

    def shortest_list(self) -> tuple[int, int]:
        """Return the first query with the shortest list of all, and the number of documents in that list."""
        lengths = pc.list_value_length(self.lists).to_numpy()[self.order]
        shortest = np.minimum.reduceat(lengths, self.starts[:-1])
        query = int(np.argmin(shortest))
        return query, int(shortest[query])

    def digest(self, suffix: object = None) -> str:
        """Return the sha256 (hex) of the JSON array [queries, documents, lists, teacher, suffix], computed block by block.

        Args:
            suffix: A JSON value that the digest covers too, such as the development set.
        """
        teacher = [b"null"] if self.teacher is None else _json_array(self._grouped(self.teacher))
        parts = (_json_array(self.queries.blocks()), _json_array(self.documents.blocks()), _json_array(self._grouped(self.lists)), teacher)
        sha256 = hashlib.sha256(b"[")
        for part in parts:
            for fragment in part:
                sha256.update(fragment)
            sha256.update(b",")
        sha256.update(canonical_json(suffix) + b"]")
        return sha256.hexdigest()

    def _rows(self, query: int) -> np.ndarray:
        return self.order[self.starts[query] : self.starts[query + 1]]

    def _grouped(self, column: pa.ChunkedArray) -> Iterator[list[list[Any]]]:
        """Yield the rows of a column grouped by query, for some queries at a time."""
        for first in range(0, len(self.queries), ROWS_AT_ONCE):
            starts = self.starts[first : first + ROWS_AT_ONCE + 1]
            rows = self.order[starts[0] : starts[-1]]
            if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
                values = column.slice(int(rows[0]), len(rows)).to_pylist()
            else:
                values = [column[int(row)].as_py() for row in rows]
            yield [values[start:end] for start, end in itertools.pairwise((starts - starts[0]).tolist())]


@dataclass(frozen=True, eq=False, repr=False)
class Batch(ShortRepr):
    """B different queries with N documents each, by their numbers: a positive and N - 1 hard negatives.

    Attributes:
        queries: [B] int64.
        documents: [B, N] int64, the positive first; two queries may share a document.
        excluded: [B, B * N] bool, true where a document is a positive of a query, but not the one drawn for it.
        teacher: [B, N] float32, a teacher's scores of a query's own documents; None without a teacher.
    """

    queries: np.ndarray
    documents: np.ndarray
    excluded: np.ndarray
    teacher: np.ndarray | None = None


def collect(needed: Mapping[str, object], documents: Iterable[tuple[str, str]]) -> tuple[dict[str, int], list[str]]:
    """Number some documents of a corpus, in its order, and return their numbers by id and their texts by number.

    Args:
        needed: Keys are the ids of the documents.
        documents: Pairs of id and text of the whole corpus, read once.

    Raises:
        ConfigError: A document is not in the corpus.
    """
    numbers: dict[str, int] = {}
    texts: list[str] = []
    for doc_id, text in documents:
        if doc_id in needed and doc_id not in numbers:
            numbers[doc_id] = len(texts)
            texts.append(text)
    missing = needed.keys() - numbers.keys()
    if missing:
        raise missing_documents(len(missing), len(needed), min(missing))
    return numbers, texts


def missing_documents(num_missing: int, num_needed: int, first: str) -> ConfigError:
    """Return the error for documents that the corpus lacks.

    Args:
        num_missing: How many are missing.
        num_needed: How many documents training needs.
        first: The smallest id of those missing.
    """
    return ConfigError(
        f"{num_missing} of {num_needed} documents that training needs are not in the corpus, for example {first!r}; "
        "give the corpus and the judgements or examples of one collection"
    )


def check_data(data: TrainingData, config: TrainingConfig) -> None:
    """Check that the data has what the configuration needs.

    Raises:
        ConfigError: There are fewer queries than a batch has, too few negatives, or no teacher's scores for distillation.
    """
    if config.batch_size > len(data.queries):
        raise ConfigError(f"--batch_size {config.batch_size} is more than the {len(data.queries)} queries that have a positive; lower it")
    query, length = data.shortest_list()
    if length - 1 < config.num_negatives:
        raise ConfigError(
            f"--num_negatives {config.num_negatives} is more than the {length - 1} that come with the query {data.queries[query][:60]!r}; "
            "lower it, or mine more with jobs.mine"
        )
    if config.distillation_weight and data.teacher is None:
        raise ConfigError(
            "the examples have no teacher's scores; make them with jobs.mine --cross_encoder CHECKPOINT, or set --distillation_weight 0"
        )


def log_truncation(data: TrainingData, tokenizer: TextTokenizer) -> None:
    """Log a warning if texts of a sample are longer than the encoder reads: training sees only their first tokens."""
    choose = random.Random(0)
    for kind, texts, count, length in (
        ("queries", data.queries, tokenizer.query_truncations, tokenizer.contract.query_length),
        ("documents", data.documents, tokenizer.document_truncations, tokenizer.contract.document_length),
    ):
        sample = list(texts) if len(texts) <= SAMPLED_TEXTS else choose.sample(texts, SAMPLED_TEXTS)
        counts = TruncationCounts.of(count(sample))
        if counts.num_truncated_docs:
            logger.warning(
                "training data: %d of %d sampled %s are longer than %d tokens and are cut; %.1f%% of their tokens are not trained on",
                counts.num_truncated_docs,
                len(sample),
                kind,
                length,
                100 * (counts.dropped_fraction or 0),
            )


def batches(data: TrainingData, batch_size: int, seed: int, num_negatives: int = 0, first_batch: int = 0) -> Iterator[Batch]:
    """Yield batches without end; their order depends only on the data, the sizes and the seed.

    An epoch visits every query once, in a new random order, and leaves out the last incomplete batch. So no batch repeats a query.
    For a query with p lists, epoch e uses list number (e mod p). If a list has more negatives than needed, they are chosen at random.

    Args:
        data: At least `batch_size` queries.
        batch_size: Queries of a batch.
        seed: Seed of the order and of the choice of negatives.
        num_negatives: Hard negatives of each query.
        first_batch: Number of the first batch to yield, from 0; a training that continues begins here.
    """
    num_batches = len(data.queries) // batch_size
    first_epoch, start = divmod(first_batch, num_batches)
    for epoch in itertools.count(first_epoch):
        order = _shuffled(len(data.queries), seed, epoch)
        for number in range(start, num_batches):
            queries = order[number * batch_size : (number + 1) * batch_size].astype(np.int64)
            yield _batch(data, queries, num_negatives, seed, epoch)
        start = 0


def _shuffled(num_queries: int, seed: int, epoch: int) -> np.ndarray:
    """Return the queries in the order of an epoch, in the smallest integers: every worker holds all of them."""
    return np.random.default_rng([seed, epoch]).permutation(np.arange(num_queries, dtype=np.min_scalar_type(num_queries)))


def _batch(data: TrainingData, queries: np.ndarray, num_negatives: int, seed: int, epoch: int) -> Batch:
    rows = [data.row_in(epoch, query) for query in queries]
    lists = [data.lists[row].as_py() for row in rows]
    chosen = [_places(len(each), num_negatives, [seed, epoch, query]) for query, each in zip(queries, lists, strict=True)]
    documents = np.array([np.take(each, places) for each, places in zip(lists, chosen, strict=True)])
    teacher = None
    if data.teacher is not None:
        scores = [data.teacher[row].as_py() for row in rows]
        teacher = np.array([np.take(each, places) for each, places in zip(scores, chosen, strict=True)], np.float32)
    excluded = np.stack([np.isin(documents.ravel(), data.positives(query)) for query in queries])
    excluded[np.arange(len(queries)), np.arange(len(queries)) * documents.shape[1]] = False
    return Batch(queries, documents, excluded, teacher)


def _places(length: int, num_negatives: int, seed: list[int]) -> np.ndarray:
    """Positions in a list: the positive, and `num_negatives` others."""
    if length - 1 <= num_negatives:
        return np.arange(length)
    chosen = np.random.default_rng(seed).choice(length - 1, num_negatives, replace=False)
    return np.concatenate([[0], 1 + np.sort(chosen)]).astype(np.int64)


def _json_array(blocks: Iterable[list[Any]]) -> Iterator[bytes]:
    """Yield the canonical JSON of all blocks as one array, in fragments."""
    yield b"["
    separator = b""
    for block in filter(None, blocks):
        yield separator + canonical_json(block)[1:-1]
        separator = b","
    yield b"]"
