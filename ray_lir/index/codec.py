"""ResidualCodec: a token vector as its centroid's number and a few bits a dimension for the rest (ALGORITHMS 2.2)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ray_lir.config import CodecConfig
from ray_lir.errors import ConfigError, FormatError
from ray_lir.formats import storage
from ray_lir.kernels import Kernels

LLOYD_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ResidualCodec:
    """One for a whole index.

    Attributes:
        centroids: [C, D] float16, unit length.
        cutoffs: [2^nbits - 1] float32, ascending; value v is in bucket b if cutoffs[b-1] < v <= cutoffs[b].
        weights: [2^nbits] float32, what a bucket stands for.
    """

    centroids: np.ndarray
    cutoffs: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        check_dimensions(self.dim, self.nbits)

    @property
    def nbits(self) -> int:
        return int(np.log2(len(self.weights)))

    @property
    def dim(self) -> int:
        return self.centroids.shape[1]

    @property
    def num_centroids(self) -> int:
        return len(self.centroids)

    @property
    def code_dtype(self) -> np.dtype:
        """The smallest type that holds a centroid's number."""
        return np.dtype(np.uint16 if self.num_centroids <= 1 << 16 else np.uint32)

    @cached_property
    def centroids_f32(self) -> np.ndarray:
        """[C, D] float32, for arithmetic."""
        return self.centroids.astype(np.float32)

    def compress(self, vectors_TD: np.ndarray, codes_T: np.ndarray, kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
        """Packed residuals [T, D nbits / 8] uint8 and the residuals' norms [T] float32."""
        residuals_TD = vectors_TD.astype(np.float32) - self.centroids_f32[codes_T]
        buckets_TD = np.searchsorted(self.cutoffs, residuals_TD, side="left").astype(np.uint8)
        return kernels.pack(buckets_TD, self.nbits), np.linalg.norm(residuals_TD, axis=1)

    def save(self, url: str) -> None:
        arrays = {"centroids": self.centroids, "cutoffs": self.cutoffs, "weights": self.weights}
        storage.write_bytes(url, save(arrays))


def load_codec(url: str) -> ResidualCodec:
    """Reads what `ResidualCodec.save` wrote."""
    try:
        arrays = load(storage.read_bytes(url))
        return ResidualCodec(arrays["centroids"], arrays["cutoffs"], arrays["weights"])
    except (SafetensorError, KeyError) as error:
        raise FormatError(url, "a residual codec", f"{error}", "restore the file or build the index anew") from error


def check_dimensions(dim: int, nbits: int) -> None:
    """Raises ConfigError unless a token's residual fills whole bytes."""
    if dim * nbits % 8:
        raise ConfigError(f"{dim} dimensions of {nbits} bits do not fill whole bytes; choose nbits so that dim * nbits is a multiple of 8")


def fit_buckets(residuals: np.ndarray, config: CodecConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cutoffs [2^nbits - 1] and weights [2^nbits], one table for all dimensions, from sampled residual values."""
    ordered = np.sort(residuals, axis=None).astype(np.float64)
    num_buckets = 2**config.nbits
    cutoffs = np.quantile(ordered, np.arange(1, num_buckets) / num_buckets)
    weights = np.quantile(ordered, (np.arange(num_buckets) + 0.5) / num_buckets)
    if config.buckets == "lloyd_max":
        cutoffs, weights = _lloyd_max(ordered, weights)
    return cutoffs.astype(np.float32), weights.astype(np.float32)


def _lloyd_max(ordered: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scalar quantizer of least squared error near a first guess (Lloyd 1982, Max 1960).

    Each boundary lies half way between two weights and each weight is the mean of its bucket, repeated until nothing moves.
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(LLOYD_MAX_ITERATIONS):
        cutoffs = (weights[1:] + weights[:-1]) / 2
        edges = np.concatenate([[0], np.searchsorted(ordered, cutoffs, side="right"), [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), weights)
        if np.array_equal(means, weights):
            break
        weights = means
    return (weights[1:] + weights[:-1]) / 2, weights
