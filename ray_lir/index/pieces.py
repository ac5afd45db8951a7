"""Compressing the embeddings, one part at a time: a piece is the codes, packed residuals and scales of one part's tokens, and what
they weigh if the scorer weighs them."""

from functools import partial
from typing import Any

import numpy as np

from ray_lir.errors import ConfigError
from ray_lir.formats.contract import check_weights
from ray_lir.formats.parquet import read_blocks
from ray_lir.index.clustering import Assigner
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import WEIGHTS
from ray_lir.index.token_clustering import TokenAssigner
from ray_lir.index.training import token_ids_of
from ray_lir.index.work import Build, Work
from ray_lir.kernels import select
from ray_lir.logs import stage
from ray_lir.parallel import Map, watched

KINDS = ("codes", "residuals", "scales")
LARGEST_WEIGHT = 2.0**15
"""Far above any scorer's, and well within float16."""


def compress(
    build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, map: Map, records: list[dict[str, Any]]
) -> tuple[np.ndarray, float]:
    """Leaves every part's piece in the work folder; returns the tokens of each centroid [C] int64 and the mean residual norm."""
    with stage("compress", records) as record:
        sizes = np.zeros(codec.num_centroids, np.int64)
        norms = 0.0
        step = partial(_compress_part, build, codec, assigner)
        for part_sizes, part_norms in watched(map, "compress")(step, range(len(build.parts))):
            sizes += part_sizes
            norms += part_norms
        mean = norms / max(1, build.num_tokens)
        record.update(tokens=build.num_tokens, mean_residual_norm=round(mean, 4))
    return sizes, mean


def load_piece(work: Work, part: int, kind: str) -> np.ndarray:
    """`codes` [T], `residuals` [T, D nbits / 8], `scales` [T, 2] or `weights` [T] of one part's tokens."""
    return work.load(_name(part, f"{kind}.npy"))


def kinds_of(weighed: bool) -> tuple[str, ...]:
    """The arrays that a token has a row in."""
    return (*KINDS, WEIGHTS) if weighed else KINDS


def _as_stored(weights_T: np.ndarray) -> np.ndarray:
    """[T] float16: weights less one."""
    largest = weights_T.max(initial=0)
    if largest > LARGEST_WEIGHT:
        raise ConfigError(f"a document token weighs {largest:g}, and an index holds {LARGEST_WEIGHT:g} at most; scale the weights down")
    return (weights_T.astype(np.float64) - 1).astype(np.float16)


def _name(part: int, kind: str) -> str:
    return f"pieces/{part:05d}-{kind}"


def _compress_part(build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, part: int) -> tuple[np.ndarray, float]:
    """Tokens of each centroid, and the sum of the residuals' norms."""
    done = _name(part, "norms.json")
    if not build.work.has(done):
        kernels = select("auto")
        pieces, norms = [], 0.0
        for block in read_blocks(build.part_url(part)):
            check_weights(build.contract, "documents", block.embeddings.weights is not None)
            vectors = codec.turn(block.embeddings.values, kernels)
            codes = assigner(vectors, token_ids_of(build, block.embeddings))
            residuals, scales, block_norms = kernels.compress(vectors, codes, codec)
            weights = [_as_stored(block.embeddings.weights)] if build.weighed else []
            pieces.append((codes.astype(codec.code_dtype), residuals, scales.astype(np.float16), *weights))
            norms += float(block_norms.sum(dtype=np.float64))
        for kind, arrays in zip(kinds_of(build.weighed), zip(*pieces, strict=True), strict=True):
            build.work.save(_name(part, f"{kind}.npy"), np.concatenate(arrays))
        build.work.save_record(done, norms)
    sizes = np.bincount(load_piece(build.work, part, "codes"), minlength=codec.num_centroids)
    return sizes, build.work.load_record(done)
