"""Compressing the embeddings, one part at a time: a piece is the codes, packed residuals and scales of one part's tokens, and what
they weigh if the scorer weighs them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, one_blas_thread, watched
from ray_lir.building.clustering import Assigner
from ray_lir.building.codec_training import token_ids_of
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import Build, Work
from ray_lir.embeddings.contract import check_weights
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.engines.scoring.registry import SEARCH_SCORERS
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import NEARLY_UNIT, directions, kept_norms, without_zero_rows
from ray_lir.index.shard import WEIGHTS
from ray_lir.kernels import select

logger = logging.getLogger(__name__)

KINDS = ("codes", "residuals", "scales")
LENGTHS = "lengths"
LARGEST_WEIGHT = 2.0**15
"""Far above any scorer's, and well within float16."""


@dataclass(frozen=True)
class PieceCounts:
    """What is known of one piece, or of all.

    Attributes:
        tokens: of the index; rows of zeros are not among them.
        residual_norms: sum of the lengths that centroids left over of the tokens' directions.
        norms: sum of the tokens' lengths.
        unit: whether all lengths are about one.
        zero_rows: rows of zeros that were left out.
        emptied: documents that had no other rows, and have no tokens now.
    """

    tokens: int = 0
    residual_norms: float = 0.0
    norms: float = 0.0
    unit: bool = True
    zero_rows: int = 0
    emptied: int = 0

    def __add__(self, other: "PieceCounts") -> "PieceCounts":
        values = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return PieceCounts(**values | {"unit": self.unit and other.unit})


@dataclass(frozen=True)
class Compressed:
    """What compressing all parts came to.

    Attributes:
        sizes: [C] int64, tokens of each centroid.
        part_tokens: tokens of each part.
        counts: over all parts.
    """

    sizes: np.ndarray
    part_tokens: Sequence[int]
    counts: PieceCounts

    @property
    def mean_residual_norm(self) -> float:
        return self.counts.residual_norms / max(1, self.counts.tokens)

    @property
    def mean_norm(self) -> float:
        return self.counts.norms / max(1, self.counts.tokens)


def compress(build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, map: Map, records: list[dict[str, Any]]) -> Compressed:
    """Leaves every part's piece in the work folder, and says how many rows of zeros were left out.

    Raises:
        ConfigError: a token vector is longer than scales can be, or not of unit length although the scorer is trial.
    """
    with phase("compress", records) as record:
        sizes = np.zeros(codec.num_centroids, np.int64)
        part_tokens, counts = [], PieceCounts()
        step = partial(_compress_part, build, codec, assigner)
        for part_sizes, part_counts in watched(map, "compress")(step, range(len(build.parts))):
            sizes += part_sizes
            part_tokens.append(part_counts.tokens)
            counts += part_counts
        compressed = Compressed(sizes, part_tokens, counts)
        record.update(tokens=counts.tokens, mean_residual_norm=round(compressed.mean_residual_norm, 4))
        if counts.zero_rows:
            record.update(zero_rows=counts.zero_rows, emptied_documents=counts.emptied)
            logger.warning(
                "%d rows of zeros (padding) were left out of the documents; %d documents have no other rows, and no search finds them",
                counts.zero_rows,
                counts.emptied,
            )
        scorer = build.contract.scorer
        if not counts.unit and SEARCH_SCORERS[scorer].requires_unit_vectors:
            raise ConfigError(f"token vectors are not of unit length, which scorer {scorer} needs; normalise them, or use another scorer")
    return compressed


def load_piece(work: Work, part: int, kind: str) -> np.ndarray:
    """`codes` [T], `residuals` [T, D nbits / 8], `scales` [T, 2] or `weights` [T] of one part's tokens; or the `lengths` [N] of its
    documents."""
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


@one_blas_thread()
def _compress_part(build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, part: int) -> tuple[np.ndarray, PieceCounts]:
    """Tokens of each centroid, and what is known of the piece."""
    done = _name(part, "counts.json")
    if not build.work.has(done):
        kernels = select("auto")
        pieces, lengths, counts = [], [], PieceCounts()
        for block in read_blocks(build.part_url(part)):
            check_weights(build.contract, "documents", block.embeddings.weights is not None)
            embeddings = without_zero_rows(block.embeddings)
            norms = kept_norms(embeddings.values)
            vectors = codec.rotate(directions(embeddings.values, norms), kernels)
            codes = assigner(vectors, token_ids_of(build, embeddings))
            residuals, scales, residual_norms = kernels.compress(vectors, codes, codec)
            weights = [_as_stored(embeddings.weights)] if build.weighed else []
            pieces.append((codes.astype(codec.code_dtype), residuals, (scales * norms[:, None]).astype(np.float16), *weights))
            lengths.append(embeddings.lengths)
            counts += PieceCounts(
                tokens=embeddings.num_tokens,
                residual_norms=float(residual_norms.sum(dtype=np.float64)),
                norms=float(norms.sum(dtype=np.float64)),
                unit=bool((np.abs(norms - 1) <= NEARLY_UNIT).all()),
                zero_rows=block.embeddings.num_tokens - embeddings.num_tokens,
                emptied=int(((embeddings.lengths == 0) & (block.embeddings.lengths > 0)).sum()),
            )
        for kind, arrays in zip(kinds_of(build.weighed), zip(*pieces, strict=True), strict=True):
            build.work.save(_name(part, f"{kind}.npy"), np.concatenate(arrays))
        build.work.save(_name(part, f"{LENGTHS}.npy"), np.concatenate(lengths))
        build.work.save_record(done, vars(counts))
    sizes = np.bincount(load_piece(build.work, part, "codes"), minlength=codec.num_centroids)
    return sizes, PieceCounts(**build.work.load_record(done))
