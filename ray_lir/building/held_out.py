"""The mean residual norm of documents that a codec was not trained on.

Centroids fit the tokens they were trained on: in a collection of a few hundred documents these residuals are a third shorter than those of
new documents of the same kind. Drift therefore compares added documents with documents of the index, each under the centroids that the
other documents would give.

T tokens of a document, D dimensions, C centroids.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ray_lir.base.parallel import Map, one_blas_thread
from ray_lir.building.codec_training import token_ids_of
from ray_lir.building.compress import LENGTHS, Compressed, load_part
from ray_lir.building.workspace import Build
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import directions, kept_norms, without_zero_rows
from ray_lir.index.residuals import normalize
from ray_lir.kernels import select

MOST_PARTS = 8
MOST_DOCUMENTS = 64
MOST_TOKENS = 512
"""Largest number of tokens to use of a document."""
BLOCK_TOKENS = 64
LARGE_CLUSTERS = 500
"""Mean tokens a cluster above which one document hardly moves a centroid."""
FEWEST_DOCUMENTS, FEWEST_TOKENS = 8, 200
"""The norm is not known from a smaller sample."""
DECIMALS = 4
"""Decimals of the result: it must not depend on the order of additions, which differs between processors."""


def held_out_residual_norm(build: Build, codec: ResidualCodec, compressed: Compressed, map: Map) -> float | None:
    """Return the mean residual norm of sampled documents, each under the centroids that all other documents give.

    Without a document's tokens, a centroid is the mean direction of its other tokens; a centroid without other tokens is left out.

    Args:
        build: Inputs and settings of the build.
        codec: The codec of the index.
        compressed: Statistics of the compressed parts, which are in the workspace.
        map: Where the steps run, one call a part.
    Returns:
        The mean, or None if the sample is too small.
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
    """Return the residual norms [T] float64 of up to `num_docs` documents of a part that have tokens."""
    lengths = load_part(build.workspace, part, LENGTHS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return []
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, num_docs).astype(int))]
    codes, kernels = load_part(build.workspace, part, "codes").astype(np.int64), select()
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
    """Return the distances of a document's tokens to the nearest centroid of the other documents, [<= MOST_TOKENS] float64."""
    own, places_T, counts = np.unique(codes_T, return_inverse=True, return_counts=True)
    sums = np.zeros((len(own), codec.dim))
    np.add.at(sums, places_T, vectors_TD)
    # The sum of the vectors of a cluster is its centroid times their number times their mean cosine with it.
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
    """Exclude the centroids of other vocabulary ids, if the id of a token has a centroid that other documents share."""
    for row, token_id in enumerate(ids_T.tolist()):
        if token_id >= len(token_offsets) - 1:
            continue
        first, end = token_offsets[token_id], token_offsets[token_id + 1]
        if (scores_TC[row, first:end] > -1).any():
            scores_TC[row, :first] = -1
            scores_TC[row, end:] = -1
