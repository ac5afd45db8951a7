"""The arrays of shards and codecs in the device's memory; they are freed with their objects."""

from dataclasses import dataclass

import numpy as np
import torch
import triton

from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError, KernelUnavailable
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.residuals import residual_values
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.cuda.tiles import Tiles, split_into_tiles

CHUNK_BYTES = 1 << 28
"""Bytes to copy to the device at a time, so that a mapped file need not fit in memory."""
SMALLEST = 16
"""Tensor cores multiply blocks of at least 16 x 16."""


def device() -> torch.device:
    """Return the GPU, or the CPU if Triton interprets (TRITON_INTERPRET=1).

    Raises:
        KernelUnavailable: There is no GPU.
    """
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise KernelUnavailable("kernels 'cuda' need a GPU and a torch built for it, and there is none here; use auto, native or reference")
    return torch.device("cuda", torch.cuda.current_device())


def upload(array: np.ndarray) -> torch.Tensor:
    """Copy an array to the device. Unsigned numbers of 2 and 4 bytes become signed numbers with the same bits.

    Raises:
        KernelUnavailable: The array does not fit into the device's memory.
    """
    array = array.view({"u2": np.int16, "u4": np.int32}.get(array.dtype.str[1:], array.dtype))
    rows = max(1, CHUNK_BYTES // max(1, array.nbytes // max(1, len(array))))
    try:
        copy = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=device())
    except torch.OutOfMemoryError:
        free = torch.cuda.mem_get_info()[0]
        raise KernelUnavailable(
            f"{array.nbytes:,} more bytes of the index do not fit into the GPU's memory ({free:,} free); use native, or spread the shards"
        ) from None
    for start in range(0, len(array), rows):
        copy[start : start + rows] = torch.tensor(array[start : start + rows])
    return copy


def download(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to the host."""
    return tensor.cpu().numpy()


@dataclass(frozen=True, eq=False, repr=False)
class ShardMemory(ShortRepr):
    """A shard's arrays on the device.

    Attributes:
        code_mask: Extracts a code from a sign-extended number.
        tiles: All documents, split into tiles.
    """

    codes: torch.Tensor
    residuals: torch.Tensor
    scales: torch.Tensor
    weights: torch.Tensor | None
    doc_offsets: torch.Tensor
    code_mask: int
    tiles: Tiles


@dataclass(frozen=True, eq=False, repr=False)
class CodecMemory(ShortRepr):
    """A codec's arrays on the device. Programs read vectors that are padded with zeros to a power of two, at least 16.

    Attributes:
        centroids: [C, D] float32.
        padded_centroids: [C, padded D] float16.
        byte_values: [256, 8 / nbits] float16, the bucket weights of the dimensions in a byte.
        nbits: Bits a dimension.
    """

    centroids: torch.Tensor
    padded_centroids: torch.Tensor
    byte_values: torch.Tensor
    nbits: int

    @property
    def width(self) -> int:
        """Dimensions of a padded vector."""
        return self.padded_centroids.shape[1]


def padded(vectors_TD: torch.Tensor) -> torch.Tensor:
    """Pad vectors with zeros to [T, padded D]."""
    dim = vectors_TD.shape[1]
    return torch.nn.functional.pad(vectors_TD, (0, max(SMALLEST, triton.next_power_of_2(dim)) - dim))


@derived
def shard_memory(shard: IndexShard) -> ShardMemory:
    """Return the arrays of a shard on the device."""
    doc_offsets = upload(np.ascontiguousarray(shard.doc_offsets, np.int64))
    return ShardMemory(
        codes=upload(shard.codes),
        residuals=upload(shard.residuals),
        scales=upload(shard.scales),
        weights=None if shard.weights is None else upload(shard.weights),
        doc_offsets=doc_offsets,
        code_mask=0xFFFF if shard.codes.dtype.itemsize == 2 else 0x7FFFFFFF,
        tiles=split_into_tiles(doc_offsets[:-1], doc_offsets[1:]),
    )


@derived
def codec_memory(codec: ResidualCodec) -> CodecMemory:
    """Return the arrays of a codec on the device.

    Raises:
        ConfigError: The codec has a trellis.
    """
    if codec.has_trellis:
        raise ConfigError("an index with codec.buckets trellis is searched on CPUs only; set kernels to native, or build it with lloyd_max")
    halves = upload(codec.centroids)
    byte_values = residual_values(np.arange(256, dtype=np.uint8)[:, None], codec.weights).astype(np.float16)
    return CodecMemory(halves.float(), padded(halves).contiguous(), upload(byte_values), codec.nbits)
