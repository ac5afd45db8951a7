"""ResidualCodec: stores a token vector as the number of its centroid and a few bits a dimension for the residual.

Source: docs/algorithms.md#22-residual-codec.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ray_lir import storage
from ray_lir.base.config import CodecConfig
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.parallel import one_blas_thread
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.residuals import byte_widths, trellis_rows
from ray_lir.storage.manifest import check_file

LLOYD_MAX_ITERATIONS = 1000
TRELLIS_MEMORY = 3
"""Bits of the byte before that choose the values of a byte."""
TRELLIS_ROWS = tuple(256 << memory for memory in range(5))
"""Numbers of rows of a trellis that the kernels can search."""
TRELLIS_ITERATIONS = 12
TRELLIS_VECTORS = 8192
"""Largest number of residuals to fit a trellis to: about 100 values for each value of the table."""
WIDTHS = range(2, 9)
"""Numbers of dimensions that a byte of a trellis can have."""
NUM_PAIRS = 256
"""Pairs of scales that tokens choose from with `residual_bytes`, so that a token stores one byte."""
PAIR_ITERATIONS = 20
PAIR_VECTORS = 16384
"""Largest number of residuals to fit a trellis with `residual_bytes`, and its pairs of scales, to."""
WORD_BITS = 14
FIX = "restore the file or build the index anew"


class Rotates(Protocol):
    """The kernels that a codec needs; every `kernels.Kernels` has them."""

    def rotate(self, vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
        """Return vectors @ rotation, [T, D] float32."""


class Compresses(Protocol):
    """The kernel that fits a trellis; every `kernels.Kernels` has it."""

    def compress(self, vectors_TD: np.ndarray, codes_T: np.ndarray, codec: "ResidualCodec") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compress the residuals of vectors.

        Args:
            vectors_TD: [T, D] float16 or float32, rotated.
            codes_T: [T], the centroid of each vector.
            codec: The codec to compress with.
        Returns:
            Packed residuals [T, P] uint8, scales [T, 2] float32, and the norms of the residuals [T] float32.
        """


@dataclass(frozen=True, eq=False, repr=False)
class ResidualCodec(ShortRepr):
    """The codec of a whole index.

    Attributes:
        centroids: [C, D] float16, unit length.
        cutoffs: [2^nbits - 1] float32, ascending; value v is in bucket b if cutoffs[b-1] < v <= cutoffs[b].
        weights: [2^nbits] float32, the value that a bucket decodes to. With a trellis, [2^(8 + memory), 8 / nbits] float32 and no cutoffs:
            row 256 state + byte has the values that a packed byte decodes to. Its state is the last `memory` bits of the byte before, and 0
            for the first byte. With residual_bytes, the second dimension is D / residual_bytes rounded up.
        rotation: [D, D] float32, orthogonal, applied to vectors before compression; None without rotation.
        token_scale: Whether cutoffs and weights are relative to the root mean square of each residual.
        token_offsets: [V + 1] int64, the first centroid of each vocabulary id; None without token-aware clustering.
        mean_norm: Mean norm of the vectors that the codec was trained on; exactly 1 if all were about unit vectors. Centroids and residuals
            describe directions; a token's norm is a factor of its two scales.
        residual_bytes: Bytes of a packed residual, if nbits does not determine them. The bytes of the trellis then have equally many
            dimensions, or the last ones have one dimension fewer, and do not use the last value of a row.
        scale_pairs: [256, 2] float32, with residual_bytes: the pairs of scales that tokens refer to. Residuals are then differences from
            the nearest multiple of the centroid. None: each token stores its two scales.
        scorer_data: Data that the scorer prepared from its own file for these rotated vectors (engines/scoring); None if it has no file.
    """

    centroids: np.ndarray
    cutoffs: np.ndarray
    weights: np.ndarray
    rotation: np.ndarray | None = None
    token_scale: bool = False
    token_offsets: np.ndarray | None = None
    mean_norm: float = 1.0
    residual_bytes: int | None = None
    scale_pairs: np.ndarray | None = None
    scorer_data: object | None = None

    def __post_init__(self) -> None:
        check_dimensions(self.dim, self.nbits, self.residual_bytes)

    @property
    def nbits(self) -> int:
        """Bits a dimension; with residual_bytes, rounded down to 1, 2 or 4."""
        if self.residual_bytes:
            return 1 << int(np.log2(8 * self.residual_bytes / self.dim))
        return 8 // self.weights.shape[1] if self.has_trellis else int(np.log2(len(self.weights)))

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed residual."""
        return self.residual_bytes or self.dim * self.nbits // 8

    @property
    def has_trellis(self) -> bool:
        """Whether packed bytes, instead of bucket numbers, choose the values of several dimensions together."""
        return self.weights.ndim == 2

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.centroids.shape[1])

    @property
    def num_centroids(self) -> int:
        return len(self.centroids)

    @property
    def code_dtype(self) -> np.dtype:
        """The smallest type for codes."""
        return np.dtype(np.uint16 if self.num_centroids <= 1 << 16 else np.uint32)

    @property
    @derived
    def centroids_f32(self) -> np.ndarray:
        """Centroids as [C, D] float32, for arithmetic."""
        return self.centroids.astype(np.float32)

    @property
    @derived
    def centroid_words(self) -> np.ndarray:
        """Centroids times 2^14 as [C, D rounded up to even] int16, for integer arithmetic."""
        words = np.round(self.centroids.astype(np.float32) * 2**WORD_BITS).astype(np.int16)  # float32 centroids are not kept
        return np.pad(words, ((0, 0), (0, self.dim % 2)))

    def rotate(self, vectors_TD: np.ndarray, kernels: Rotates) -> np.ndarray:
        """Return vectors as the codec compresses and compares them, [T, D] float32. Rotation does not change dot products."""
        return vectors_TD.astype(np.float32) if self.rotation is None else kernels.rotate(vectors_TD, self.rotation)

    def stored_scales(self, scales_T2: np.ndarray) -> np.ndarray:
        """Return the scales of tokens [T, 2] as an index stores them: float16 [T, 2], or the numbers of the nearest pairs [T] uint8."""
        if self.scale_pairs is None:
            return scales_T2.astype(np.float16)
        blocks = [nearest_pairs(scales_T2[start : start + 1024], self.scale_pairs, self.dim) for start in range(0, len(scales_T2), 1024)]
        return np.concatenate([np.zeros(0, np.uint8), *blocks])

    def scales_of(self, stored: np.ndarray) -> np.ndarray:
        """Return the two scales of tokens [T, 2] float32 from stored ones."""
        return stored.astype(np.float32) if self.scale_pairs is None else self.scale_pairs[stored]

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file, for `load_codec`."""
        arrays = {"centroids": self.centroids, "cutoffs": self.cutoffs, "weights": self.weights}
        for name in ("rotation", "token_offsets"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        if self.mean_norm != 1:
            arrays["mean_norm"] = np.array([self.mean_norm], np.float32)
        if self.scale_pairs is not None:
            arrays |= {"residual_bytes": np.array([self.residual_bytes]), "scale_pairs": self.scale_pairs}
        return save(arrays | {"token_scale": np.array([self.token_scale])})


@one_blas_thread()
def random_rotation(dim: int, seed: int) -> np.ndarray:
    """Return a uniformly distributed orthogonal matrix, [D, D] float32: the QR decomposition of Gaussian numbers."""
    with one_blas_thread():
        q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def read_codec(root: str, manifest: IndexManifest) -> ResidualCodec:
    """Read the codec of an index.

    Raises:
        FormatError: The file is missing or damaged, or is the codec of another index.
    """
    check_file(root, manifest.codec)
    url = storage.join(root, manifest.codec.name)
    codec = load_codec(url)
    have, want = ((each.num_centroids, each.dim, each.nbits, each.residual_bytes) for each in (codec, manifest))
    if have != want:
        text = "a codec of {} centroids, {} dimensions, {} bits and residual_bytes {}"
        raise FormatError(url, text.format(*want), text.format(*have), FIX)
    return codec


def load_codec(url: str) -> ResidualCodec:
    """Read a file of `ResidualCodec.to_bytes`.

    Raises:
        FormatError: The file is not a codec, or its arrays have inconsistent shapes.
    """
    try:
        arrays = load(storage.read_bytes(url))
        tables = (arrays["centroids"], arrays["cutoffs"], arrays["weights"])
        _check_tables(arrays)
        mean_norm = float(arrays["mean_norm"][0]) if "mean_norm" in arrays else 1.0
        residual_bytes = int(arrays["residual_bytes"][0]) if "residual_bytes" in arrays else None
        return ResidualCodec(
            *tables,
            arrays.get("rotation"),
            bool(arrays["token_scale"][0]),
            arrays.get("token_offsets"),
            mean_norm,
            residual_bytes,
            arrays.get("scale_pairs"),
        )
    except (SafetensorError, KeyError, ValueError, TypeError, ConfigError) as error:
        raise FormatError(url, "a residual codec", f"{error}"[:160], FIX) from error


def _check_tables(arrays: dict[str, np.ndarray]) -> None:
    """Check types and shapes, that every number is finite, and that offsets ascend.

    Raises:
        ValueError: One of these conditions is false.
    """
    centroids, weights = arrays["centroids"], arrays["weights"]
    num_centroids, dim = centroids.shape
    has_trellis = weights.ndim == 2
    num_buckets = 1 if has_trellis else len(weights)
    expected: dict[str, tuple[type | np.dtype, tuple[int, ...]]] = {
        "centroids": (np.float16, (num_centroids, dim)),
        "cutoffs": (np.float32, (num_buckets - 1,)),
        "weights": (np.float32, weights.shape if has_trellis else (num_buckets,)),
        "token_scale": (np.bool_, (1,)),
    }
    if "rotation" in arrays:
        expected["rotation"] = (np.float32, (dim, dim))
    if "mean_norm" in arrays:
        expected["mean_norm"] = (arrays["mean_norm"].dtype, (1,))
    if "token_offsets" in arrays:
        offsets = arrays["token_offsets"]
        expected["token_offsets"] = (np.int64, (max(2, len(offsets)),))
    widths: Container[int] = (4, 8)
    if "residual_bytes" in arrays or "scale_pairs" in arrays:
        expected |= {"residual_bytes": (np.int64, (1,)), "scale_pairs": (np.float32, (NUM_PAIRS, 2))}
        residual_bytes = int(arrays["residual_bytes"][0])
        widths = (-(-dim // residual_bytes),) if has_trellis and 0 < residual_bytes <= dim else ()
    if has_trellis and (len(weights) not in TRELLIS_ROWS or weights.shape[1] not in widths or weights.shape[1] not in WIDTHS):
        raise ValueError(f"a trellis of {len(weights)} rows for {weights.shape[1]} dimensions")
    if not (has_trellis or num_buckets in (2, 4, 16, 256)) or not num_centroids or not dim:
        raise ValueError(f"{num_buckets} buckets and {num_centroids} centroids of {dim} dimensions")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}")
        if not np.isfinite(array).all() or (name == "mean_norm" and array[0] <= 0):
            raise ValueError(f"{name} holds impossible numbers")
    if "token_offsets" in arrays and (offsets[0] != 0 or offsets[-1] != num_centroids or (np.diff(offsets) < 0).any()):
        raise ValueError("token_offsets do not ascend from 0 to the number of centroids")


def check_dimensions(dim: int, nbits: int, residual_bytes: int | None = None) -> None:
    """Check that a token's residual fills whole bytes.

    Args:
        dim: Dimensions of a vector.
        nbits: Bits a dimension; not checked with residual_bytes.
        residual_bytes: Bytes of a residual; None: nbits determines them.
    Raises:
        ConfigError: It does not, or a byte would have fewer than 2 or more than 8 dimensions.
    """
    if residual_bytes is not None:
        if not -(-dim // 8) <= residual_bytes <= dim // 2:
            raise ConfigError(f"residual_bytes is {residual_bytes}; with {dim} dimensions choose {-(-dim // 8)} to {dim // 2}")
    elif dim * nbits % 8:
        raise ConfigError(f"{dim} dimensions of {nbits} bits do not fill whole bytes; choose nbits so that dim * nbits is a multiple of 8")


def fit_buckets(residuals: np.ndarray, config: CodecConfig) -> tuple[np.ndarray, np.ndarray]:
    """Fit buckets to sampled residuals [T, D]; with `config.token_scale`, to residuals over their root mean square.

    Returns:
        Cutoffs [2^nbits - 1] float32 and weights [2^nbits] float32, for all dimensions.
    """
    if config.token_scale:
        squares = np.einsum("td,td->t", residuals, residuals, dtype=np.float64) / residuals.shape[1]
        residuals = residuals / np.sqrt(np.where(squares > 0, squares, 1)).astype(np.float32)[:, None]
    ordered = np.sort(residuals, axis=None).astype(np.float64)
    num_buckets = 2**config.nbits
    cutoffs = np.quantile(ordered, np.arange(1, num_buckets) / num_buckets)
    weights = np.quantile(ordered, (np.arange(num_buckets) + 0.5) / num_buckets)
    if config.buckets == "lloyd_max":
        cutoffs, weights = _lloyd_max(ordered, weights)
    return cutoffs.astype(np.float32), weights.astype(np.float32)


def _lloyd_max(ordered: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scalar quantizer of least squared error near a first guess (Lloyd 1982, Max 1960).

    Repeat until nothing changes: put each cutoff half way between two weights, and set each weight to the mean of its bucket.
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


def fit_trellis(
    residuals: np.ndarray, nbits: int, kernels: Compresses, memory: int = TRELLIS_MEMORY, residual_bytes: int | None = None
) -> np.ndarray:
    """Fit the table of a trellis to sampled residuals over their root mean square.

    Each iteration compresses the sample and sets every row to the mean of its residuals (generalised Lloyd algorithm).

    Args:
        residuals: [T, D] float32; the first `TRELLIS_VECTORS` are used, or `PAIR_VECTORS` with residual_bytes.
        nbits: Bits a dimension, 1 or 2.
        kernels: The kernels to compress the sample with.
        memory: Bits of the byte before that choose the values of a byte.
        residual_bytes: Bytes of a residual; None: nbits determines them.
    Returns:
        [2^(8 + memory), D / bytes of a residual rounded up] float32.
    Source:
        docs/algorithms.md#22-residual-codec
    """
    num_rows, dim = 256 << memory, residuals.shape[1]
    sizes = byte_widths(dim, residual_bytes or dim * nbits // 8)
    width, num_vectors = int(sizes[0]), PAIR_VECTORS if residual_bytes else TRELLIS_VECTORS
    norms = np.sqrt(np.einsum("td,td->t", residuals, residuals, dtype=np.float64) / dim)
    units = (residuals[norms > 0][:num_vectors] / norms[norms > 0][:num_vectors, None]).astype(np.float32)
    table = np.random.default_rng(0).normal(size=(num_rows, width)).astype(np.float32)
    codes, origin, values = np.zeros(len(units), np.int64), np.zeros((1, dim), np.float16), units.astype(np.float64)
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    for _ in range(TRELLIS_ITERATIONS):
        codec = ResidualCodec(origin, np.zeros(0, np.float32), table, token_scale=True, residual_bytes=residual_bytes)
        rows_TP = trellis_rows(kernels.compress(units, codes, codec)[0], num_rows)
        for place in range(width):
            # Narrow bytes do not have the last value of a row.
            rows = rows_TP[:, sizes > place].ravel()
            counts = np.bincount(rows, minlength=num_rows)
            sums = np.bincount(rows, values[:, firsts[sizes > place] + place].ravel(), num_rows)
            table[:, place] = np.where(counts > 0, sums / np.maximum(counts, 1), table[:, place])
    return table


def nearest_pairs(scales_T2: np.ndarray, pairs_K2: np.ndarray, dim: int) -> np.ndarray:
    """Return the number of the nearest pair of scales for each token, [T] uint8.

    Args:
        scales_T2: [T, 2] float32.
        pairs_K2: [256, 2] float32.
        dim: Dimensions of a vector.
    Source:
        docs/algorithms.md#22-residual-codec
    """
    return _pair_distances(scales_T2.astype(np.float32), pairs_K2, dim).argmin(axis=1).astype(np.uint8)


def _pair_distances(scales_T2: np.ndarray, pairs_K2: np.ndarray, dim: int) -> np.ndarray:
    """Return the squared errors that pairs cause in scores, [T, K].

    The product of a query token with a decoded residual is taken for sqrt(D) / 4 of its product with the centroid.
    """
    first_TK = scales_T2[:, :1] - pairs_K2[:, 0]
    second_TK = (scales_T2[:, 1:] - pairs_K2[:, 1]) * np.float32(np.sqrt(dim) / 4)
    return first_TK * first_TK + second_TK * second_TK


def fit_scale_pairs(scales_T2: np.ndarray, dim: int) -> np.ndarray:
    """Fit pairs of scales to those of sampled tokens by k-means.

    Args:
        scales_T2: [T, 2] float32; the first `PAIR_VECTORS` are used.
        dim: Dimensions of a vector.
    Returns:
        [256, 2] float32.
    Source:
        docs/algorithms.md#22-residual-codec
    """
    sample = scales_T2[:PAIR_VECTORS].astype(np.float32)
    # The first pairs are quantiles, so that the result does not depend on the order of equal tokens.
    ordered = sample[np.lexsort((sample[:, 1], sample[:, 0]))]
    pairs = ordered[np.linspace(0, len(ordered) - 1, NUM_PAIRS).astype(int)].astype(np.float64)
    for _ in range(PAIR_ITERATIONS):
        blocks = [nearest_pairs(sample[start : start + 1024], pairs.astype(np.float32), dim) for start in range(0, len(sample), 1024)]
        numbers = np.concatenate(blocks)
        counts = np.bincount(numbers, minlength=NUM_PAIRS)
        means = np.stack([np.bincount(numbers, sample[:, j], NUM_PAIRS) for j in range(2)], axis=1) / np.maximum(counts, 1)[:, None]
        pairs = np.where(counts[:, None] > 0, means, pairs)
    return pairs.astype(np.float32)
