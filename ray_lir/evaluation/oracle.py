"""The oracle: exact MaxSim over uncompressed embeddings, without an index. The results of engines are compared with it.

Shapes: B documents of a block with T tokens, Q queries with N tokens in total, D dimensions, K results.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from ray_lir import storage
from ray_lir.embeddings import parquet
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.evaluation.runs import Run
from ray_lir.index.norms import without_zero_rows

QUERY_TOKENS = 1024
"""Query tokens that are compared with one block at once, which bounds memory."""


def maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
    """Return the MaxSim scores, [Q, B] float32; -inf for a document without tokens, so that it is never returned.

    Source: docs/algorithms.md#21-maxsim
    """
    scores_QB = np.full((len(queries), len(documents)), -np.inf, np.float32)
    filled = np.flatnonzero(documents.lengths)
    if not len(filled):
        return scores_QB
    starts = documents.offsets[filled]
    tokens_TD = documents.values.astype(np.float32)
    for first, last in _query_groups(queries):
        group = queries.slice(first, last)
        sims_TN = tokens_TD @ group.values.astype(np.float32).T
        # empty documents have no rows, so reduceat over the starts of the other documents covers every row
        best_BN = np.maximum.reduceat(sims_TN, starts, axis=0)
        sums_NB = np.zeros((group.num_tokens + 1, len(filled)), np.float64)
        np.cumsum(best_BN.T, axis=0, out=sums_NB[1:])
        scores_QB[first:last, filled] = sums_NB[group.offsets[1:]] - sums_NB[group.offsets[:-1]]
    return scores_QB


def exact_run(blocks: Iterable[TokenEmbeddings], queries: TokenEmbeddings, k: int) -> Run:
    """Return the k best documents of each query; equal scores keep the order of the documents.

    Memory holds one block and the k best documents so far, independent of the number of documents.

    Args:
        blocks: Token embeddings of the documents, block by block.
        queries: Token embeddings of Q queries.
        k: Documents to return per query.

    Returns:
        Query id -> ranking; documents without tokens are left out.
    """
    best_scores = np.zeros((len(queries), 0), np.float32)
    best_documents = np.zeros((len(queries), 0), np.int64)
    doc_ids: list[str] = []
    for block in blocks:
        numbers = np.arange(len(doc_ids), len(doc_ids) + len(block))
        doc_ids.extend(block.doc_ids)
        scores = np.concatenate([best_scores, maxsim(queries, block)], axis=1)
        documents = np.concatenate([best_documents, np.broadcast_to(numbers, (len(queries), len(block)))], axis=1)
        # candidates with equal scores are in document order, and a stable sort keeps that order
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best_documents = np.take_along_axis(scores, order, 1), np.take_along_axis(documents, order, 1)
    return {
        query_id: [(doc_ids[document], float(score)) for document, score in zip(documents, scores, strict=True) if score > -np.inf]
        for query_id, documents, scores in zip(queries.doc_ids, best_documents, best_scores, strict=True)
    }


def read_embeddings(folder: str, manifest: EmbeddingsManifest) -> Iterator[TokenEmbeddings]:
    """Yield the token embeddings of a folder block by block, in document order. Zero rows are removed, as in an index."""
    for part in manifest.parts:
        for block in parquet.read_whole_documents(storage.join(folder, part.name)):
            yield without_zero_rows(block.embeddings)


def overlap(run: Run, oracle: Run, k: int) -> float:
    """Return recall@k against the oracle: the fraction of its k best documents that are among the run's k best, averaged over queries.

    Args:
        run: The run to judge.
        oracle: The run of exact search.
        k: Documents to compare per query.
    """
    recalls = []
    for query_id, ranking in oracle.items():
        expected = {doc_id for doc_id, _ in ranking[:k]}
        found = {doc_id for doc_id, _ in run.get(query_id, ())[:k]}
        recalls.append(len(expected & found) / len(expected) if expected else 1.0)
    return sum(recalls) / len(recalls)


def _query_groups(queries: TokenEmbeddings) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(queries):
        last = int(np.searchsorted(queries.offsets, queries.offsets[first] + QUERY_TOKENS, side="right")) - 1
        last = max(last, first + 1)
        yield first, min(last, len(queries))
        first = min(last, len(queries))
