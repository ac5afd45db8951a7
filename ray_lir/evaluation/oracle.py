"""The oracle: exact MaxSim over uncompressed embeddings, no index at all; what engines are compared with.

Shapes: B documents of a block with T tokens, Q queries with N tokens in all, D dimensions, K results.
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
"""Query tokens whose similarities with one block are held at once."""


def maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
    """[Q, B] float32: for every query token its best similarity in the document, summed (docs/algorithms.md#21-maxsim).

    -inf for a document without tokens: it is never an answer.
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
        # empty documents own no rows, so reduceat over the others' starts covers every row
        best_BN = np.maximum.reduceat(sims_TN, starts, axis=0)
        sums_NB = np.zeros((group.num_tokens + 1, len(filled)), np.float64)
        np.cumsum(best_BN.T, axis=0, out=sums_NB[1:])
        scores_QB[first:last, filled] = sums_NB[group.offsets[1:]] - sums_NB[group.offsets[:-1]]
    return scores_QB


def exact_run(blocks: Iterable[TokenEmbeddings], queries: TokenEmbeddings, k: int) -> Run:
    """The k best documents of each query; equal scores in the order of the documents.

    Memory is one block and the k best so far, whatever the number of documents.
    """
    best_scores = np.zeros((len(queries), 0), np.float32)
    best_documents = np.zeros((len(queries), 0), np.int64)
    doc_ids: list[str] = []
    for block in blocks:
        numbers = np.arange(len(doc_ids), len(doc_ids) + len(block))
        doc_ids.extend(block.doc_ids)
        scores = np.concatenate([best_scores, maxsim(queries, block)], axis=1)
        documents = np.concatenate([best_documents, np.broadcast_to(numbers, (len(queries), len(block)))], axis=1)
        # candidates stand in document order among equals, which a stable sort keeps
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best_documents = np.take_along_axis(scores, order, 1), np.take_along_axis(documents, order, 1)
    return {
        query_id: [(doc_ids[document], float(score)) for document, score in zip(documents, scores, strict=True) if score > -np.inf]
        for query_id, documents, scores in zip(queries.doc_ids, best_documents, best_scores, strict=True)
    }


def read_embeddings(folder: str, manifest: EmbeddingsManifest) -> Iterator[TokenEmbeddings]:
    """The token embeddings of a folder, block by block, in document order, without rows of zeros, as an index holds them."""
    for part in manifest.parts:
        for block in parquet.read_blocks(storage.join(folder, part.name)):
            yield without_zero_rows(block.embeddings)


def overlap(run: Run, oracle: Run, k: int) -> float:
    """Recall@k against the oracle: the share of its k best documents that the run has in its own k best, mean over queries."""
    shares = []
    for query_id, ranking in oracle.items():
        wanted = {doc_id for doc_id, _ in ranking[:k]}
        found = {doc_id for doc_id, _ in run.get(query_id, ())[:k]}
        shares.append(len(wanted & found) / len(wanted) if wanted else 1.0)
    return sum(shares) / len(shares)


def _query_groups(queries: TokenEmbeddings) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(queries):
        last = int(np.searchsorted(queries.offsets, queries.offsets[first] + QUERY_TOKENS, side="right")) - 1
        last = max(last, first + 1)
        yield first, min(last, len(queries))
        first = min(last, len(queries))
