"""Index building on the device: assignment, rotation and compression of vectors in blocks."""

from collections.abc import Iterator

import numpy as np
import torch

from ray_lir.index.codec import ResidualCodec
from ray_lir.kernels.cuda.memory import codec_memory, device, download, upload

BLOCK_VALUES = 1 << 26
"""Number of float32 values that each building thread holds at a time: 256 MB."""


def assign(vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return `Kernels.assign`.

    Args: as in `ray_lir.kernels.protocol.Kernels.assign`.
    """
    centroids = _floats(centroids_CD)
    halves = _half_squares(centroids) if euclidean else 0
    codes, nearness = np.empty(len(vectors_TD), np.int64), np.empty(len(vectors_TD), np.float32)
    for block in _blocks(len(vectors_TD), len(centroids)):
        best = (_directions(vectors_TD[block]) @ centroids.T - halves).max(dim=1)
        codes[block], nearness[block] = download(best.indices), download(best.values)
    return codes, nearness


def nearest_cells(vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
    """Return `Kernels.nearest_cells`.

    Args: as in `ray_lir.kernels.protocol.Kernels.nearest_cells`.
    """
    cells = _floats(cells_BD)
    probes = np.empty((len(vectors_TD), min(nprobe, len(cells))), np.int64)
    for block in _blocks(len(vectors_TD), len(cells)):
        nearness = _directions(vectors_TD[block]) @ cells.T - _half_squares(cells)
        probes[block] = download(nearness.sort(dim=1, descending=True, stable=True).indices[:, :nprobe])
    return probes


def assign_in_cells(vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray) -> np.ndarray:
    """Return `Kernels.assign_in_cells`.

    Every vector is compared with every centroid, and centroids of other cells are masked: on a GPU one large product is faster than many
    small ones.

    Args: as in `ray_lir.kernels.protocol.Kernels.assign_in_cells`.
    """
    centroids = _floats(centroids_CD)
    num_cells = len(offsets) - 1
    cell_of = torch.repeat_interleave(torch.arange(num_cells, device=device()), upload(np.diff(offsets).astype(np.int64)))
    codes = np.empty(len(vectors_TD), np.int64)
    for block in _blocks(len(vectors_TD), len(centroids)):
        probed = torch.zeros(len(probes_Tp[block]), num_cells, dtype=torch.bool, device=device())
        probed.scatter_(1, upload(probes_Tp[block].astype(np.int64)), True)
        nearness = _directions(vectors_TD[block]) @ centroids.T - _half_squares(centroids)
        best = nearness.masked_fill_(~probed[:, cell_of], float("-inf")).max(dim=1)
        codes[block] = download(torch.where(best.values.isneginf(), -1, best.indices))
    return codes


def rotate(vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
    """Return `Kernels.rotate`.

    Args: as in `ray_lir.kernels.protocol.Kernels.rotate`.
    """
    rotation = upload(rotation_DD).double()
    rotated = np.empty(vectors_TD.shape, np.float32)
    for block in _blocks(*vectors_TD.shape):
        rotated[block] = download((upload(vectors_TD[block]).double() @ rotation).float())
    return rotated


def compress(vectors_TD: np.ndarray, codes_T: np.ndarray, codec: ResidualCodec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `Kernels.compress`.

    Args: as in `ray_lir.kernels.protocol.Kernels.compress`.
    """
    num_tokens, dim = vectors_TD.shape
    packed = np.empty((num_tokens, dim * codec.nbits // 8), np.uint8)
    scales, norms = np.empty((num_tokens, 2), np.float32), np.empty(num_tokens, np.float32)
    for block in _blocks(num_tokens, 8 * dim):
        results = _compress(_floats(vectors_TD[block]), upload(codes_T[block].astype(np.int64)), codec)
        packed[block], scales[block], norms[block] = map(download, results)
    return packed, scales, norms


def _compress(vectors_TD: torch.Tensor, codes_T: torch.Tensor, codec: ResidualCodec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    centroids_TD = codec_memory(codec).centroids[codes_T]
    residuals_TD = vectors_TD - centroids_TD
    norms_T = residuals_TD.double().square().sum(dim=1).sqrt()
    ones_T = torch.ones_like(norms_T)
    units_T = torch.where(norms_T > 0, norms_T / vectors_TD.shape[1] ** 0.5, 1) if codec.token_scale else ones_T
    buckets_TD = torch.bucketize(residuals_TD / units_T.float()[:, None], upload(codec.cutoffs))
    decoded_TD = upload(codec.weights)[buckets_TD].double()
    scales_T = ones_T
    if codec.token_scale:
        along_T = (decoded_TD * residuals_TD).sum(dim=1)
        scales_T = torch.where(along_T > 0, norms_T * decoded_TD.square().sum(dim=1).clamp(min=1e-24).rsqrt(), 0)
    decoded_TD = centroids_TD + scales_T[:, None] * decoded_TD
    inverse_T = decoded_TD.square().sum(dim=1).clamp(min=1e-24).rsqrt()
    scales_T2 = torch.stack([inverse_T, inverse_T * scales_T], dim=1)
    return _pack(buckets_TD, codec.nbits), scales_T2.float(), norms_T.float()


def _pack(buckets_TD: torch.Tensor, nbits: int) -> torch.Tensor:
    shifts = torch.arange(8 - nbits, -1, -nbits, device=buckets_TD.device)
    return (buckets_TD.reshape(len(buckets_TD), -1, 8 // nbits) << shifts).sum(dim=2).to(torch.uint8)


def _floats(values: np.ndarray) -> torch.Tensor:
    return upload(np.ascontiguousarray(values)).float()


def _directions(vectors_TD: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(_floats(vectors_TD), dim=1)


def _half_squares(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(dim=1) / 2


def _blocks(num_rows: int, values_a_row: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // values_a_row)
    return (slice(start, start + size) for start in range(0, num_rows, size))
