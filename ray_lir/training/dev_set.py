"""A development set: how well an encoder in training ranks documents, by exact search in memory.

Q queries, N documents; the workers of a training divide the documents among themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.training import collectives

DEPTH = 10
TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class DevSet:
    """Judged queries and the documents that are ranked for them.

    Attributes:
        queries: Query id to text.
        documents: Document id to text.
        qrels: Query id to document id to grade.
        ignore_identical_ids: Whether a document with the query's own id is left out of its ranking.
    """

    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    ignore_identical_ids: bool = False


def ndcg_at_10(encoder: Encoder, dev: DevSet) -> float:
    """Return the mean nDCG@10 over the queries, by the scorer's exact score of every document; equal scores rank in document order."""
    doc_ids = list(dev.documents)
    depth = DEPTH + dev.ignore_identical_ids
    scores, numbers = rank(encoder, list(dev.queries.values()), list(dev.documents.values()), depth)
    run: dict[str, metrics.Ranking] = {
        query: [(doc_ids[number], float(score)) for score, number in zip(*row, strict=True)]
        for query, row in zip(dev.queries, zip(scores, numbers, strict=True), strict=True)
    }
    if dev.ignore_identical_ids:
        run = metrics.without_identical_ids(run)
    return metrics.means(metrics.evaluate(run, dev.qrels, ["nDCG@10"]))["nDCG@10"]


@torch.inference_mode()
def rank(encoder: Encoder, queries: list[str], documents: list[str], depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's best documents.

    Args:
        encoder: Encoder with a scorer.
        queries: Q texts.
        documents: N texts; under torch.distributed the same in every worker.
        depth: Documents to return for each query.

    Returns:
        Scores [Q, min(depth, N)] float32, descending, and document numbers of the same shape, int64. Every worker gets the same.
    """
    encoder.model.eval()
    query_texts = [
        encoder.embed_queries(encoder.batch_queries(queries[start : start + TEXTS_AT_ONCE]))
        for start in range(0, len(queries), TEXTS_AT_ONCE)
    ]
    best = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
    for numbers, texts in _own_documents(encoder, documents):
        scores = torch.cat([encoder.model.scorer(queries, texts) for queries in query_texts]).float().cpu().numpy()
        best = _best([best, (scores, np.broadcast_to(numbers, scores.shape))], depth)
    return _best(collectives.gather_objects(best), depth)


def _own_documents(encoder: Encoder, documents: list[str]) -> Iterator[tuple[np.ndarray, EmbeddedTexts]]:
    """Yield the numbers and embeddings of this worker's documents, in blocks of similar length."""
    rows = np.arange(collectives.rank(), len(documents), collectives.num_workers())
    order = rows[np.argsort([len(documents[number]) for number in rows], kind="stable")]
    for start in range(0, len(order), TEXTS_AT_ONCE):
        numbers = order[start : start + TEXTS_AT_ONCE]
        yield numbers, encoder.embed_documents(encoder.batch_documents([documents[number] for number in numbers]))


def _best(parts: list[tuple[np.ndarray, np.ndarray]], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best scores of several parts, and their document numbers."""
    scores, numbers = np.hstack([scores for scores, _ in parts]), np.hstack([numbers for _, numbers in parts])
    order = np.lexsort((numbers, -scores))[:, :depth]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
