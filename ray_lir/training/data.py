"""What training reads: queries, each with lists of documents to compare, and the order in which batches come."""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ray_lir.base.config import TrainingConfig
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

SAMPLED_TEXTS = 1000
"""Queries and documents that are tokenised to say how many are cut."""


@dataclass(frozen=True)
class TrainingData:
    """Queries and the documents to compare for each. A list starts with a positive; hard negatives follow, if there are any.

    Attributes:
        queries: text of each query.
        documents: text of each document that is in a list.
        lists: for each query, at least one list of document numbers; an epoch takes one of them, the next epoch the next.
        teacher: a teacher's score of each document of each list; None: nobody scored them.
    """

    queries: list[str]
    documents: list[str]
    lists: list[tuple[tuple[int, ...], ...]]
    teacher: list[tuple[tuple[float, ...], ...]] | None = None

    @property
    @derived
    def positives(self) -> list[tuple[int, ...]]:
        """For each query, the numbers of its known positives."""
        return [tuple(dict.fromkeys(documents[0] for documents in lists)) for lists in self.lists]


@dataclass(frozen=True, eq=False, repr=False)
class Batch(ShortRepr):
    """B different queries with N documents each, by their numbers: a positive and N - 1 hard negatives.

    Attributes:
        queries: [B] int64.
        documents: [B, N] int64, the positive first; two queries may share a document.
        excluded: [B, B * N] bool, true where a document is a positive of a query, but not the one drawn for it.
        teacher: [B, N] float32, a teacher's scores of a query's own documents, if the data has them.
    """

    queries: np.ndarray
    documents: np.ndarray
    excluded: np.ndarray
    teacher: np.ndarray | None = None


def from_judgements(
    queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], documents: Iterable[tuple[str, str]]
) -> TrainingData:
    """Each query with every document that is judged relevant (grade above 0); `documents` are (id, text) of the whole corpus, read once.

    Raises:
        ConfigError: if nothing is judged relevant, or a relevant document is not in the corpus.
    """
    relevant = {query: [document for document, grade in grades.items() if grade > 0] for query, grades in qrels.items()}
    wanted = dict.fromkeys(document for found in relevant.values() for document in found)
    if not wanted:
        raise ConfigError("no judgement of this split has a grade above 0, so there is nothing to train on; choose another split")
    numbers, texts = collect(wanted, documents)
    used = [query for query, found in relevant.items() if found]
    lists: list[tuple[tuple[int, ...], ...]] = [tuple((numbers[document],) for document in relevant[query]) for query in used]
    return TrainingData([queries[query] for query in used], texts, lists)


def collect(wanted: Mapping[str, object], documents: Iterable[tuple[str, str]]) -> tuple[dict[str, int], list[str]]:
    """A number for each wanted id, in the order of the corpus, and the texts by number.

    Raises:
        ConfigError: if one is not in the corpus.
    """
    numbers: dict[str, int] = {}
    texts: list[str] = []
    for doc_id, text in documents:
        if doc_id in wanted and doc_id not in numbers:
            numbers[doc_id] = len(texts)
            texts.append(text)
    missing = wanted.keys() - numbers.keys()
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(wanted)} documents that training needs are not in the corpus, {min(missing)!r} for one; "
            "give the corpus and the judgements or examples of one collection"
        )
    return numbers, texts


def check_data(data: TrainingData, config: TrainingConfig) -> None:
    """Raises ConfigError unless the data has what the configuration asks for."""
    if config.batch_size > len(data.queries):
        raise ConfigError(f"--batch_size {config.batch_size} is more than the {len(data.queries)} queries that have a positive; lower it")
    shortest = min(range(len(data.queries)), key=lambda query: min(map(len, data.lists[query])))
    fewest = min(map(len, data.lists[shortest])) - 1
    if fewest < config.num_negatives:
        raise ConfigError(
            f"--num_negatives {config.num_negatives} is more than the {fewest} that come with the query {data.queries[shortest][:60]!r}; "
            "lower it, or mine more with jobs.mine"
        )
    if config.distillation_weight and data.teacher is None:
        raise ConfigError(
            "the examples have no teacher's scores; make them with jobs.mine --cross_encoder CHECKPOINT, or set --distillation_weight 0"
        )


def log_truncation(data: TrainingData, tokenizer: TextTokenizer) -> None:
    """Logs a warning if texts of a sample are longer than the encoder reads: training sees only their first tokens."""
    choose = random.Random(0)
    for kind, texts, count, length in (
        ("queries", data.queries, tokenizer.query_truncations, tokenizer.contract.query_length),
        ("documents", data.documents, tokenizer.document_truncations, tokenizer.contract.document_length),
    ):
        sample = texts if len(texts) <= SAMPLED_TEXTS else choose.sample(texts, SAMPLED_TEXTS)
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
    """Batches for ever, from number `first_batch` on: the order depends on nothing but the data, the sizes and the seed.

    An epoch visits every query once in a new random order (the last incomplete batch is left out), so that no batch repeats a
    query; epoch e trains a query that has p lists on the (e mod p)th of them. Of more negatives than are wanted a random choice
    is taken. There must be at least as many queries as a batch has.
    """
    num_batches = len(data.queries) // batch_size
    first_epoch, start = divmod(first_batch, num_batches)
    for epoch in itertools.count(first_epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(data.queries))
        for number in range(start, num_batches):
            yield _batch(data, order[number * batch_size : (number + 1) * batch_size], num_negatives, seed, epoch)
        start = 0


def _batch(data: TrainingData, queries: np.ndarray, num_negatives: int, seed: int, epoch: int) -> Batch:
    turns = [epoch % len(data.lists[query]) for query in queries]
    places = [
        _places(len(data.lists[query][turn]), num_negatives, [seed, epoch, query]) for query, turn in zip(queries, turns, strict=True)
    ]
    chosen = list(zip(queries, turns, places, strict=True))
    documents = np.array([np.take(data.lists[query][turn], taken) for query, turn, taken in chosen])
    teacher = None
    if data.teacher is not None:
        teacher = np.array([np.take(data.teacher[query][turn], taken) for query, turn, taken in chosen], np.float32)
    excluded = np.stack([np.isin(documents.ravel(), data.positives[query]) for query in queries])
    excluded[np.arange(len(queries)), np.arange(len(queries)) * documents.shape[1]] = False
    return Batch(queries, documents, excluded, teacher)


def _places(length: int, num_negatives: int, seed: list[int]) -> np.ndarray:
    """Positions in a list: the positive, and as many others."""
    if length - 1 <= num_negatives:
        return np.arange(length)
    others = np.random.default_rng(seed).choice(length - 1, num_negatives, replace=False)
    return np.concatenate([[0], 1 + np.sort(others)]).astype(np.int64)
