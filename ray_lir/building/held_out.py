"""The mean residual norm of documents that a codec was not trained on.

Centroids fit their training tokens. In a collection of a few hundred documents, the residuals of these tokens are a third shorter than
the residuals of new documents of the same kind. The drift therefore needs residuals of documents that had no influence on the centroids.
They are estimated by leaving one document out: each sampled document is compared with the centroids of all other documents.

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
"""Largest number of tokens that are used from one document."""
BLOCK_TOKENS = 64
LARGE_CLUSTERS = 500
"""Mean number of tokens in a cluster above which one document hardly moves a centroid."""
FEWEST_DOCUMENTS, FEWEST_TOKENS = 8, 200
"""Smallest sample from which the norm is estimated."""
DECIMALS = 4
"""Decimals to which the result is rounded, because the order of additions differs between processors."""


def held_out_residual_norm(build: Build, codec: ResidualCodec, compressed: Compressed, map: Map) -> float | None:
    """Return the mean residual norm of sampled documents, each compared with the centroids of all other documents.

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
        first -= block.continues
        for number in chosen[(chosen >= first) & (chosen < first + len(embeddings))]:
            start, end = embeddings.offsets[number - first], embeddings.offsets[number - first + 1]
            if end - start < lengths[number]:  # a document in several blocks
                continue
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
    # The vectors of a cluster sum to centroid * number of vectors * their mean cosine with the centroid.
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
    """Exclude the centroids of other vocabulary ids, if a centroid of the token's id also has tokens of other documents."""
    for row, token_id in enumerate(ids_T.tolist()):
        if token_id >= len(token_offsets) - 1:
            continue
        first, end = token_offsets[token_id], token_offsets[token_id + 1]
        if (scores_TC[row, first:end] > -1).any():
            scores_TC[row, :first] = -1
            scores_TC[row, end:] = -1
