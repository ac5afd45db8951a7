"""Arithmetic of compressed token vectors: packed bucket numbers, bucket weights, and decoding.

T tokens, D dimensions, K = 2^nbits buckets, P packed bytes of a residual: D nbits / 8, or the codec's `residual_bytes`.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ray_lir.index.codec import ResidualCodec


def pack(buckets_TD: np.ndarray, nbits: int) -> np.ndarray:
    """Return bucket numbers [T, D] as bytes [T, P] uint8, the first dimension in the highest bits of each byte."""
    per_byte = 8 // nbits
    groups = buckets_TD.reshape(len(buckets_TD), -1, per_byte).astype(np.uint8)
    shifts = np.arange(8 - nbits, -1, -nbits, dtype=np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=2)


def unpack(packed_TP: np.ndarray, nbits: int) -> np.ndarray:
    """Return the bucket numbers [T, D] uint8 that `pack` packed."""
    shifts = np.arange(8 - nbits, -1, -nbits, dtype=np.uint8)
    return (packed_TP[:, :, None] >> shifts & np.uint8(2**nbits - 1)).reshape(len(packed_TP), -1)


def trellis_rows(packed_TP: np.ndarray, num_rows: int) -> np.ndarray:
    """Return the row of each packed byte in a trellis of `num_rows` rows, [T, P] int64."""
    rows_TP = packed_TP.astype(np.int64)
    rows_TP[:, 1:] += packed_TP[:, :-1].astype(np.int64) % (num_rows // 256) * 256
    return rows_TP


def byte_widths(dim: int, num_bytes: int) -> np.ndarray:
    """Return the number of dimensions of each byte of a trellis, [P] int64: equally many, or one fewer in the last bytes."""
    return dim // num_bytes + (np.arange(num_bytes) < dim % num_bytes)


def residual_values(packed_TP: np.ndarray, weights: np.ndarray, dim: int | None = None) -> np.ndarray:
    """Return the value of every dimension of packed residuals.

    Args:
        packed_TP: [T, P] uint8.
        weights: The codec's bucket weights [2^nbits], or its trellis.
        dim: Dimensions, if the bytes of a trellis can have different numbers of them; None: all have as many as the trellis.
    Returns:
        [T, D] float32.
    """
    if weights.ndim == 2:
        num_bytes, width = packed_TP.shape[1], weights.shape[1]
        values_TD = weights[trellis_rows(packed_TP, len(weights))].reshape(len(packed_TP), num_bytes * width)
        if dim is None or dim == num_bytes * width:
            return values_TD
        return np.compress((np.arange(width) < byte_widths(dim, num_bytes)[:, None]).ravel(), values_TD, axis=1)
    nbits = int(np.log2(len(weights)))
    weights_of_byte = weights.astype(np.float32)[unpack(np.arange(256, dtype=np.uint8)[:, None], nbits)]
    # Fetching all dimensions of a byte as one item is several times faster than fetching one weight at a time.
    as_item = np.ascontiguousarray(weights_of_byte).view(f"V{weights_of_byte.shape[1] * 4}")[:, 0]
    return as_item[packed_TP].view(np.float32)


def decompress(codes_T: np.ndarray, packed_TP: np.ndarray, stored_scales: np.ndarray, codec: "ResidualCodec") -> np.ndarray:
    """Decode tokens: scales[0] centroid + scales[1] bucket weights.

    Source: docs/algorithms.md#22-residual-codec.

    Args:
        codes_T: [T], the centroid of each token.
        packed_TP: [T, P] uint8, packed residuals.
        stored_scales: As the index stores them: [T, 2] float16, or the numbers of pairs [T] uint8.
        codec: The codec of the index.
    Returns:
        [T, D] float32.
    """
    scales_T2 = codec.scales_of(stored_scales)
    vectors_TD = residual_values(packed_TP, codec.weights, codec.dim)
    vectors_TD *= scales_T2[:, 1:]
    vectors_TD += codec.centroids_f32[codes_T] * scales_T2[:, :1]
    return vectors_TD


def normalize(vectors_TD: np.ndarray) -> np.ndarray:
    """Return rows scaled to length one; rows of zeros stay zeros."""
    norms = np.sqrt(np.einsum("td,td->t", vectors_TD, vectors_TD))
    return vectors_TD / np.maximum(norms, 1e-12)[:, None]
