"""What contrastive training reads: queries with their positive documents, and the order in which batches come."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ray_lir.errors import ConfigError


@dataclass(frozen=True)
class TrainingPairs:
    """Queries and the documents that are judged relevant to them.

    Attributes:
        queries: text of each query.
        documents: text of each document that is positive for some query.
        positives: for each query, the numbers of its positive documents; at least one.
    """

    queries: list[str]
    documents: list[str]
    positives: list[tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """B different queries with one positive document each, by their numbers.

    Attributes:
        queries: [B] int64.
        documents: [B] int64; two queries may share a document.
        excluded: [B, B] bool, True where a document is a positive of a query, but not the one drawn for it.
    """

    queries: np.ndarray
    documents: np.ndarray
    excluded: np.ndarray


def training_pairs(
    queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], documents: Iterable[tuple[str, str]]
) -> TrainingPairs:
    """Keeps what is judged relevant (grade above 0); `documents` are (id, text) of the whole corpus, read once.

    Raises:
        ConfigError: if nothing is judged relevant, or a relevant document is not in the corpus.
    """
    relevant = {query: [document for document, grade in grades.items() if grade > 0] for query, grades in qrels.items()}
    wanted = {document for found in relevant.values() for document in found}
    if not wanted:
        raise ConfigError("no judgement of this split has a grade above 0, so there is nothing to train on; choose another split")
    numbers: dict[str, int] = {}
    texts: list[str] = []
    for doc_id, text in documents:
        if doc_id in wanted and doc_id not in numbers:
            numbers[doc_id] = len(texts)
            texts.append(text)
    missing = wanted - numbers.keys()
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(wanted)} documents judged relevant are not in the corpus, {min(missing)!r} for one; "
            "give the corpus and the judgements of one collection"
        )
    used = [query for query, found in relevant.items() if found]
    return TrainingPairs(
        [queries[query] for query in used], texts, [tuple(numbers[document] for document in relevant[query]) for query in used]
    )


def batches(pairs: TrainingPairs, batch_size: int, seed: int, first_step: int = 0) -> Iterator[Batch]:
    """Batches for ever, from step `first_step` on: the order depends on nothing but the pairs, the batch size and the seed.

    An epoch visits every query once in a new random order (the last incomplete batch is left out), so that no batch
    repeats a query; epoch e trains a query that has p positives on the (e mod p)th of them. There must be at least as many
    queries as a batch has.
    """
    num_batches = len(pairs.queries) // batch_size
    first_epoch, first_batch = divmod(first_step, num_batches)
    for epoch in itertools.count(first_epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(pairs.queries))
        for number in range(first_batch, num_batches):
            yield _batch(pairs, order[number * batch_size : (number + 1) * batch_size], epoch)
        first_batch = 0


def _batch(pairs: TrainingPairs, queries: np.ndarray, epoch: int) -> Batch:
    positives = [pairs.positives[query] for query in queries]
    documents = np.array([found[epoch % len(found)] for found in positives])
    excluded = np.stack([np.isin(documents, found) for found in positives])
    np.fill_diagonal(excluded, False)
    return Batch(queries, documents, excluded)
