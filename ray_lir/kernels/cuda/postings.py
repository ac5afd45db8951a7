"""Probing clusters and scoring their tokens on the device, with torch: the parts of plaid and warp that a GPU seldom needs."""

import numpy as np
import torch

from ray_lir.base.derived import derived
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.cuda.memory import codec_memory, device, download, shard_memory, upload
from ray_lir.kernels.cuda.scoring import table_memory


@derived
def posting_memory(shard: IndexShard) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the postings of a shard and their offsets on the device."""
    return upload(shard.postings.astype(np.int64)), upload(shard.posting_offsets)


def probe(
    table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `Kernels.probe`.

    Args: as in `ray_lir.kernels.protocol.Kernels.probe`.
    """
    scores, order = table_memory(table_CL)[:, :num_tokens].T.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :bound], order[:, :bound]
    passed = upload(np.asarray(cluster_sizes, np.int64))[order].cumsum(dim=1)
    reached = (passed < t_prime).sum(dim=1).clamp(max=order.shape[1] - 1)
    imputed = scores.gather(1, reached[:, None])[:, 0]
    return download(order[:, :nprobe]), download(scores[:, :nprobe]), download(imputed)


def candidates(clusters: np.ndarray, shard: IndexShard) -> np.ndarray:
    """Return `Kernels.candidates`.

    Args: as in `ray_lir.kernels.protocol.Kernels.candidates`.
    """
    tokens, _ = _tokens_of(upload(np.asarray(clusters, np.int64)), shard)
    return download(torch.unique(_documents_of(tokens, shard)))


def posting_scores(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    clusters: np.ndarray,
    cluster_scores: np.ndarray,
    imputed_n: np.ndarray,
    floor: bool,
    shard: IndexShard,
    codec: ResidualCodec,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `Kernels.posting_scores`.

    Args: as in `ray_lir.kernels.protocol.Kernels.posting_scores`.
    """
    placed, memory = shard_memory(shard), codec_memory(codec)
    tokens, pairs = _tokens_of(upload(clusters.ravel().astype(np.int64)), shard)
    rows = pairs // clusters.shape[1]
    imputed, importance = upload(imputed_n.astype(np.float32)), upload(weights_n.astype(np.float32))
    vectors = residual_values(placed.residuals[tokens], upload(codec.weights), memory.nbits)
    products = (vectors * upload(np.ascontiguousarray(query_nD, np.float32))[rows]).sum(dim=1)
    scales = placed.scales[tokens].float()
    scores = upload(cluster_scores.astype(np.float32)).ravel()[pairs] + products * scales[:, 1] / scales[:, 0]
    if floor and placed.weights is None:
        scores = scores.maximum(imputed[rows])
    documents, places = torch.unique(_documents_of(tokens, shard), return_inverse=True)
    best = torch.full((len(query_nD), len(documents)), float("-inf"), device=device())
    slots = rows * len(documents) + places
    best.view(-1).scatter_reduce_(0, slots, scores, "amax")
    if placed.weights is not None:
        numbers = torch.arange(len(slots), device=device())
        first = torch.full((best.numel(),), len(slots), device=device())
        first.scatter_reduce_(0, slots, torch.where(scores == best.view(-1)[slots], numbers, len(slots)), "amin")
        found = first < len(slots)
        best.view(-1)[found] *= placed.weights[tokens[first[found]]].float() + 1
        if floor:
            best = torch.where(best.isneginf(), best, best.maximum(imputed[:, None]))
    return download(importance @ torch.where(best.isneginf(), imputed[:, None], best)), download(documents)


def _tokens_of(clusters: torch.Tensor, shard: IndexShard) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token numbers of several clusters, one cluster after another, and the position of each token's cluster."""
    postings, offsets = posting_memory(shard)
    if len(clusters) and not 0 <= clusters.min() <= clusters.max() < len(offsets) - 1:
        raise ValueError("a cluster that is not in the index")
    sizes = offsets[clusters + 1] - offsets[clusters]
    places = torch.repeat_interleave(torch.arange(len(clusters), device=device()), sizes)
    before = sizes.cumsum(0) - sizes
    return postings[offsets[clusters][places] + torch.arange(len(places), device=device()) - before[places]], places


def _documents_of(tokens: torch.Tensor, shard: IndexShard) -> torch.Tensor:
    return torch.searchsorted(shard_memory(shard).doc_offsets, tokens, right=True) - 1


def residual_values(packed_TP: torch.Tensor, weights_K: torch.Tensor, nbits: int) -> torch.Tensor:
    """Return the bucket weight of every dimension, [T, D] float32.

    Args:
        packed_TP: [T, P] uint8, packed residuals.
        weights_K: [2^nbits] float32, bucket weights.
        nbits: Bits a dimension.
    """
    shifts = torch.arange(8 - nbits, -1, -nbits, device=packed_TP.device)
    buckets = packed_TP[:, :, None].long() >> shifts & (2**nbits - 1)
    return weights_K[buckets.reshape(len(packed_TP), -1)]
