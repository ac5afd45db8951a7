"""Compressing the embeddings, one part at a time: a piece is the codes and packed residuals of one part's tokens."""

from functools import partial
from typing import Any

import numpy as np

from ray_lir.formats.parquet import read_blocks
from ray_lir.index.clustering import Assigner
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.training import assigner
from ray_lir.index.work import Build, Work
from ray_lir.kernels import select
from ray_lir.logs import stage
from ray_lir.parallel import Map, watched


def compress(build: Build, codec: ResidualCodec, map: Map, records: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Leaves every part's piece in the work folder; returns the tokens of each centroid [C] int64 and the mean residual norm."""
    with stage("compress", records) as record:
        sizes = np.zeros(codec.num_centroids, np.int64)
        norms = 0.0
        step = partial(_compress_part, build, codec, assigner(build, codec.centroids))
        for part_sizes, part_norms in watched(map, "compress")(step, range(len(build.parts))):
            sizes += part_sizes
            norms += part_norms
        record.update(tokens=build.num_tokens, mean_residual_norm=round(norms / build.num_tokens, 4))
    return sizes, norms / build.num_tokens


def load_piece(work: Work, part: int, kind: str) -> np.ndarray:
    """`codes` [T] or `residuals` [T, D nbits / 8] of one part's tokens."""
    return work.load(_name(part, f"{kind}.npy"))


def _name(part: int, kind: str) -> str:
    return f"pieces/{part:05d}-{kind}"


def _compress_part(build: Build, codec: ResidualCodec, assigner: Assigner, part: int) -> tuple[np.ndarray, float]:
    """Tokens of each centroid, and the sum of the residuals' norms."""
    done = _name(part, "norms.json")
    if not build.work.has(done):
        kernels = select("auto")
        codes, residuals, norms = [], [], 0.0
        for block in read_blocks(build.part_url(part)):
            vectors = block.embeddings.values
            codes.append(assigner(vectors).astype(codec.code_dtype))
            packed, block_norms = codec.compress(vectors, codes[-1], kernels)
            residuals.append(packed)
            norms += float(block_norms.sum(dtype=np.float64))
        build.work.save(_name(part, "codes.npy"), np.concatenate(codes))
        build.work.save(_name(part, "residuals.npy"), np.concatenate(residuals))
        build.work.save_record(done, norms)
    sizes = np.bincount(load_piece(build.work, part, "codes"), minlength=codec.num_centroids)
    return sizes, build.work.load_record(done)
