"""Compressing the embeddings, one part at a time.

A compressed part holds the codes, packed residuals and scales of a part's tokens, and their weights if the scorer weighs them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, one_blas_thread, watched
from ray_lir.base.short_repr import ShortRepr
from ray_lir.building.clustering import Assigner
from ray_lir.building.codec_training import token_ids_of
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import Build, Workspace
from ray_lir.embeddings.attention import weighted
from ray_lir.embeddings.contract import check_weights
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.scoring.registry import SEARCH_SCORERS
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import NEARLY_UNIT, SMALLEST_NORM, directions, kept_norms, norms, without_zero_rows
from ray_lir.index.shard import WEIGHTS
from ray_lir.kernels import select

logger = logging.getLogger(__name__)

KINDS = ("codes", "residuals", "scales")
LENGTHS = "lengths"
BLOCK_WINDOWS = "windows"
"""Name of the windows of a compressed part: [W, 3] int32, number of vectors, first and end character of each window."""
LARGEST_WEIGHT = 2.0**15
"""Largest token weight that an index stores: far above the weights of any scorer, and well within float16."""


@dataclass(frozen=True)
class PartCounts:
    """Statistics of one compressed part, or of all.

    Attributes:
        tokens: Number of tokens, without rows of zeros.
        residual_norms: Sum of the residual norms of the tokens' directions.
        norms: Sum of the tokens' norms.
        unit: Whether all norms are about one.
        zero_rows: Rows of zeros that were left out.
        emptied: Documents that had only rows of zeros, and have no tokens now.
    """

    tokens: int = 0
    residual_norms: float = 0.0
    norms: float = 0.0
    unit: bool = True
    zero_rows: int = 0
    emptied: int = 0

    def __add__(self, other: "PartCounts") -> "PartCounts":
        values = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return PartCounts(**values | {"unit": self.unit and other.unit})


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(ShortRepr):
    """The result of compressing all parts.

    Attributes:
        sizes: [C] int64, tokens of each cluster.
        part_tokens: Tokens of each part.
        counts: Statistics over all parts.
    """

    sizes: np.ndarray
    part_tokens: Sequence[int]
    counts: PartCounts

    @property
    def mean_residual_norm(self) -> float:
        """Mean residual norm of a token's direction."""
        return self.counts.residual_norms / max(1, self.counts.tokens)

    @property
    def mean_norm(self) -> float:
        """Mean norm of a token."""
        return self.counts.norms / max(1, self.counts.tokens)


def compress(build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, map: Map, records: list[dict[str, Any]]) -> Compressed:
    """Save every compressed part in the workspace.

    Args:
        build: Inputs and settings of the build.
        codec: The codec of the index.
        assigner: Finds the centroid of each token.
        map: Where the steps run, one call a part.
        records: Phases of the job; this phase is appended.
    Returns:
        Statistics of all parts.
    Raises:
        ConfigError: A token vector is too long for the codec's scales, or not of unit length although the scorer or the codec requires it.
    """
    with phase("compress", records) as record:
        sizes = np.zeros(codec.num_centroids, np.int64)
        part_tokens, counts = [], PartCounts()
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
                "%d rows of zeros (padding) were left out of the documents; %d documents have no other rows, so no search finds them",
                counts.zero_rows,
                counts.emptied,
            )
        if not counts.unit and codec.residual_bytes:
            raise ConfigError(
                "token vectors are not of unit length, which codec.residual_bytes needs; normalise them, or leave residual_bytes out"
            )
        scorer = build.contract.scorer
        if not counts.unit and SEARCH_SCORERS[scorer].requires_unit_vectors:
            raise ConfigError(f"token vectors are not of unit length, which scorer {scorer} needs; normalise them, or use another scorer")
    return compressed


def load_part(workspace: Workspace, part: int, kind: str) -> np.ndarray:
    """Return one array of a compressed part.

    Args:
        workspace: Scratch folder of the build.
        part: Number of the part.
        kind: `codes` [T], `residuals` [T, P], `scales` [T, 2] or [T], or `weights` [T] of tokens, `lengths` [N] of documents, or
            `windows` [W, 3] of documents in windows.
    """
    return workspace.load(part_file(part, kind))


def array_names(has_token_weights: bool) -> tuple[str, ...]:
    """Return the names of the arrays that hold a row a token."""
    return (*KINDS, WEIGHTS) if has_token_weights else KINDS


def _as_stored(weights_T: np.ndarray) -> np.ndarray:
    """Return weights minus one, [T] float16."""
    largest = weights_T.max(initial=0)
    if largest > LARGEST_WEIGHT:
        raise ConfigError(f"a document token has weight {largest:g}; an index holds up to {LARGEST_WEIGHT:g}, so scale the weights down")
    return (weights_T.astype(np.float64) - 1).astype(np.float16)


def part_file(part: int, kind: str) -> str:
    """Return the name of an array of a compressed part in the workspace."""
    return _name(part, f"{kind}.npy")


def _name(part: int, kind: str) -> str:
    return f"pieces/{part:05d}-{kind}"


@one_blas_thread()
def _compress_part(build: Build, codec: ResidualCodec, assigner: Assigner | TokenAssigner, part: int) -> tuple[np.ndarray, PartCounts]:
    """Save one compressed part; return the tokens of each cluster, and the statistics of the part."""
    done = _name(part, "counts.json")
    if not build.workspace.has(done):
        kernels = select("auto")
        blocks, counts = [], PartCounts()
        lengths: list[np.ndarray] = []
        begins: list[np.ndarray] = []
        windows: list[np.ndarray] = []
        for block in read_blocks(build.part_url(part)):
            embeddings = without_zero_rows(weighted(block.embeddings, build.contract, build.config.attention))
            check_weights(build.contract, "documents", embeddings.weights is not None)
            lengths_T = kept_norms(embeddings.values)
            vectors = codec.rotate(directions(embeddings.values, lengths_T), kernels)
            codes = assigner(vectors, token_ids_of(build, embeddings))
            residuals, scales, residual_norms = kernels.compress(vectors, codes, codec)
            weights = [] if embeddings.weights is None or not build.has_token_weights else [_as_stored(embeddings.weights)]
            blocks.append((codes.astype(codec.code_dtype), residuals, codec.stored_scales(scales * lengths_T[:, None]), *weights))
            lengths.append(embeddings.lengths)
            begins.append(np.arange(len(embeddings)) >= block.continues)
            if block.windows is not None:
                whole = embeddings.num_tokens == block.embeddings.num_tokens
                windows.append(block.windows if whole else _without_zero_rows(block.embeddings, block.windows))
            counts += PartCounts(
                tokens=embeddings.num_tokens,
                residual_norms=float(residual_norms.sum(dtype=np.float64)),
                norms=float(lengths_T.sum(dtype=np.float64)),
                unit=bool((np.abs(lengths_T - 1) <= NEARLY_UNIT).all()),
                zero_rows=block.embeddings.num_tokens - embeddings.num_tokens,
                emptied=int(((embeddings.lengths == 0) & (block.embeddings.lengths > 0)).sum()),
            )
        for kind, arrays in zip(array_names(build.has_token_weights), zip(*blocks, strict=True), strict=True):
            build.workspace.save(_name(part, f"{kind}.npy"), np.concatenate(arrays))
        build.workspace.save(
            _name(part, f"{LENGTHS}.npy"), np.add.reduceat(np.concatenate(lengths), np.flatnonzero(np.concatenate(begins)))
        )
        if windows:
            build.workspace.save(_name(part, f"{BLOCK_WINDOWS}.npy"), np.concatenate(windows))
        build.workspace.save_record(done, vars(counts))
    sizes = np.bincount(load_part(build.workspace, part, "codes"), minlength=codec.num_centroids)
    return sizes, PartCounts(**build.workspace.load_record(done))


def _without_zero_rows(embeddings: TokenEmbeddings, windows: np.ndarray) -> np.ndarray:
    """Return windows [W, 3] with the numbers of their vectors that `without_zero_rows` keeps."""
    kept = np.concatenate([[0], np.cumsum(norms(embeddings.values) >= SMALLEST_NORM)])
    ends = np.cumsum(windows[:, 0])
    return np.concatenate([(kept[ends] - kept[ends - windows[:, 0]])[:, None], windows[:, 1:]], axis=1).astype(np.int32)
