"""How far from their centroids the tokens of documents lie that a codec was not trained on.

Centroids follow the tokens they were trained on: in a collection of a few hundred documents these lie a third nearer to them than tokens of
new documents of the same kind do. What is added to an index is therefore compared with documents of the index, each under the centroids
that the others would have given.

T tokens of a document, D dimensions, C centroids.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ray_lir.base.parallel import Map, one_blas_thread
from ray_lir.building.codec_training import token_ids_of
from ray_lir.building.compress import LENGTHS, Compressed, load_piece
from ray_lir.building.workspace import Build
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import directions, kept_norms, without_zero_rows
from ray_lir.index.residuals import normalize
from ray_lir.kernels import select

MOST_PARTS = 8
MOST_DOCUMENTS = 64
MOST_TOKENS = 512
"""Of a document."""
BLOCK_TOKENS = 64
LARGE_CLUSTERS = 500
"""Tokens of a mean cluster from which on one document hardly moves its centroid."""
FEWEST_DOCUMENTS, FEWEST_TOKENS = 8, 200
"""A smaller sample says nothing."""
DECIMALS = 4
"""Kept of the result, so that it does not depend on the order in which a processor adds."""


def held_out_residual_norm(build: Build, codec: ResidualCodec, compressed: Compressed, map: Map) -> float | None:
    """The mean residual norm of a sample of documents, each under the centroids that all others give; None if the sample is too small.

    A centroid without a document's tokens is taken to be the mean direction of its other tokens, and to be missing if it has no others.

    Args:
        compressed: what compressing all parts came to; its pieces are in the work folder.
    """
    if compressed.counts.tokens >= LARGE_CLUSTERS * codec.num_centroids:
        return round(compressed.mean_residual_norm, DECIMALS)
    parts = np.unique(np.linspace(0, len(build.parts) - 1, MOST_PARTS).astype(int)).tolist()
    step = partial(_of_part, build, codec, compressed.sizes, compressed.mean_residual_norm, -(-MOST_DOCUMENTS // len(parts)))
    norms = [norms_T for part in map(step, parts) for norms_T in part]
    num_tokens = sum(len(norms_T) for norms_T in norms)
    if len(norms) < FEWEST_DOCUMENTS or num_tokens < FEWEST_TOKENS:
        return None
    return round(float(np.concatenate(norms).mean()), DECIMALS)


@one_blas_thread()
def _of_part(
    build: Build, codec: ResidualCodec, sizes: np.ndarray, mean_residual_norm: float, num_docs: int, part: int
) -> Sequence[np.ndarray]:
    """[T] float64 for each of `num_docs` documents of a part that have tokens: how far its tokens lie from the others' centroids."""
    lengths = load_piece(build.work, part, LENGTHS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return []
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, num_docs).astype(int))]
    codes, kernels = load_piece(build.work, part, "codes").astype(np.int64), select()
    found, first = [], 0
    for block in read_blocks(build.part_url(part)):
        embeddings = without_zero_rows(block.embeddings)
        token_ids = token_ids_of(build, embeddings)
        for number in chosen[(chosen >= first) & (chosen < first + len(embeddings))]:
            start, end = embeddings.offsets[number - first], embeddings.offsets[number - first + 1]
            values = embeddings.values[start:end]
            vectors = codec.rotate(directions(values, kept_norms(values)), kernels).astype(np.float64)
            ids = None if token_ids is None else token_ids[start:end]
            found.append(_without_own(vectors, ids, codes[offsets[number] : offsets[number + 1]], codec, sizes, mean_residual_norm))
        first += len(embeddings)
    return found


def _without_own(
    vectors_TD: np.ndarray,
    ids_T: np.ndarray | None,
    codes_T: np.ndarray,
    codec: ResidualCodec,
    sizes_C: np.ndarray,
    mean_residual_norm: float,
) -> np.ndarray:
    """[at most MOST_TOKENS] float64: how far a document's tokens lie from the nearest centroid of the other documents."""
    own, places_T, counts = np.unique(codes_T, return_inverse=True, return_counts=True)
    sums = np.zeros((len(own), codec.dim))
    np.add.at(sums, places_T, vectors_TD)
    # The vectors of a cluster add up to its centroid times their number times their mean cosine with it.
    mean_cosine = 1 - mean_residual_norm**2 / 2
    changed = normalize((sizes_C[own] * mean_cosine)[:, None] * codec.centroids_f32[own] - sums)
    gone = sizes_C[own] <= counts
    cosines = []
    for start in range(0, min(len(vectors_TD), MOST_TOKENS), BLOCK_TOKENS):
        block = vectors_TD[start : start + BLOCK_TOKENS]
        scores = (block.astype(np.float32) @ codec.centroids_f32.T).astype(np.float64)
        scores[:, own] = np.where(gone, -1.0, block @ changed.T)
        if ids_T is not None and codec.token_offsets is not None:
            _mask_other_ids(scores, ids_T[start : start + BLOCK_TOKENS], codec.token_offsets)
        cosines.append(scores.max(axis=1))
    return np.sqrt(np.maximum(2 - 2 * np.concatenate(cosines), 0))


def _mask_other_ids(scores_TC: np.ndarray, ids_T: np.ndarray, token_offsets: np.ndarray) -> None:
    """Leaves a token the centroids of its vocabulary id, if it has any that other documents share."""
    for row, token_id in enumerate(ids_T.tolist()):
        if token_id >= len(token_offsets) - 1:
            continue
        first, end = token_offsets[token_id], token_offsets[token_id + 1]
        if (scores_TC[row, first:end] > -1).any():
            scores_TC[row, :first] = -1
            scores_TC[row, end:] = -1
