"""Scores with relations on the device: matrix products compute each token's part of relations, then one program per document aligns tokens.

Source: docs/algorithms.md#54-exact-evaluation-in-fewer-steps.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from ray_lir.base.derived import derived
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import QueryRelation, RelationEncoder, relation_of
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.cuda.memory import codec_memory, device, download, padded, shard_memory, upload
from ray_lir.kernels.cuda.postings import residual_values
from ray_lir.kernels.reference import document_blocks

BLOCK_TOKENS = 1 << 18
"""Number of tokens with hidden-layer halves in memory at a time: 0.4 GB with 128 dimensions."""
TILE = 32


@derived
def relation_memory(encoder: RelationEncoder) -> tuple[torch.Tensor, ...]:
    """Return the arrays of a relation encoder on the device: both halves transposed, bias, scale and shift."""
    return tuple(upload(row) for row in (encoder.before.T.copy(), encoder.after.T.copy(), encoder.bias, encoder.scale, encoder.shift))


def relation_maxsim(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    relation: QueryRelation,
    table_CL: np.ndarray,
    shard: IndexShard,
    codec: ResidualCodec,
    documents: np.ndarray | None = None,
    nearest_tokens: int | None = None,
    selectors_nD: np.ndarray | None = None,
    selector_table_CL: np.ndarray | None = None,
) -> np.ndarray:
    """Return `Kernels.relation_maxsim`. The tables and the bounds of relations are not read: a GPU computes every relation.

    With `nearest_tokens`, only the matches are limited, not the relations that are computed.

    Args: as in `ray_lir.kernels.protocol.Kernels.relation_maxsim`.
    """
    numbers = np.arange(shard.num_docs) if documents is None else documents
    scores = np.full(len(numbers), -np.inf, np.float32)
    present = np.flatnonzero(shard.lengths(numbers))
    if not len(query_nD):
        scores[present] = 0
        return scores
    offsets = np.concatenate([[0], np.cumsum(shard.lengths(numbers[present]))])
    for start, stop, _, _ in document_blocks(offsets, BLOCK_TOKENS):
        here = present[start:stop]
        scores[here] = _block(query_nD, weights_n, relation, numbers[here], shard, codec, nearest_tokens, selectors_nD)
    return scores


def _block(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    relation: QueryRelation,
    numbers: np.ndarray,
    shard: IndexShard,
    codec: ResidualCodec,
    nearest_tokens: int | None,
    selectors_nD: np.ndarray | None,
) -> np.ndarray:
    """Return the scores of documents that have tokens, [N]."""
    placed = shard_memory(shard)
    before, after, bias, scale, shift = relation_memory(relation_of(codec))
    token_numbers, offsets = shard.tokens(numbers)
    tokens = upload(token_numbers)
    vectors = _decoded(tokens, shard, codec)
    rows = [padded(half).contiguous() for half in (vectors @ before, vectors @ after + bias)]
    norms = [padded(row[None])[0].contiguous() for row in (scale, shift)]
    scores = torch.empty(len(numbers), device=device())
    cosines = vectors @ upload(np.ascontiguousarray(query_nD, np.float32)).T
    kept = None
    if nearest_tokens is not None:
        ranking = cosines if selectors_nD is None else vectors @ upload(np.ascontiguousarray(selectors_nD, np.float32)).T
        kept = _nearest(ranking, offsets, nearest_tokens).to(torch.int8)
        kept[:, 0] = 1
    relation_programs[(len(numbers),)](
        cosines.contiguous(),
        None if kept is None else kept.contiguous(),
        *rows,
        *norms,
        None if placed.weights is None else placed.weights[tokens],
        upload(offsets),
        padded(upload(relation.products)).contiguous(),
        upload(relation.constants),
        upload(weights_n.astype(np.float32)),
        scores,
        len(query_nD),
        codec.dim,
        DIM=rows[0].shape[1],
        TILE=TILE,
        BY_COSINE=relation_of(codec).by_cosine,
        FROM_FIRST=relation_of(codec).from_first_token,
        LIMITED=kept is not None,
        WEIGHTED=placed.weights is not None,
        num_warps=4,
    )
    return download(scores)


def _nearest(ranking_Tn: torch.Tensor, offsets: np.ndarray, nearest_tokens: int) -> torch.Tensor:
    """Return which tokens are among the best `nearest_tokens` of their document, [T, n] bool; ties go to the first token."""
    firsts = upload(np.repeat(offsets[:-1], np.diff(offsets)))
    by_cosine = torch.sort(ranking_Tn, dim=0, descending=True, stable=True).indices
    by_document = torch.sort(firsts[by_cosine], dim=0, stable=True)
    order = torch.gather(by_cosine, 0, by_document.indices)
    ranks = torch.arange(len(order), device=order.device)[:, None] - by_document.values
    return torch.zeros_like(ranking_Tn, dtype=torch.bool).scatter_(0, order, ranks < nearest_tokens)


def _decoded(tokens: torch.Tensor, shard: IndexShard, codec: ResidualCodec) -> torch.Tensor:
    """Return decoded tokens, [tokens, D] float32."""
    placed, memory = shard_memory(shard), codec_memory(codec)
    scales = placed.scales[tokens].float()
    values = residual_values(placed.residuals[tokens], upload(codec.weights), memory.nbits)
    return memory.centroids[placed.codes[tokens].long() & placed.code_mask] * scales[:, :1] + values * scales[:, 1:]


@triton.jit
def relation_programs(
    cosines,  # [T, n] float32
    kept,  # [T, n] int8, not 0 for the tokens that are compared; read with LIMITED alone
    before,  # [T, DIM] float32
    after,  # [T, DIM] float32
    scale,  # [DIM] float32
    shift,  # [DIM] float32
    token_weights,  # [T] float16, less one; read with WEIGHTED alone
    offsets,  # [N + 1] int64
    products,  # [n, DIM] float32
    constants,  # [n] float32
    weights,  # [n] float32
    scores,  # [N] float32
    num_tokens,
    dim,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    BY_COSINE: tl.constexpr,
    FROM_FIRST: tl.constexpr,
    LIMITED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Score one document: compare the query tokens in order with every document token, tile by tile.

    Args: see the comments beside the parameters.
    """
    document = tl.program_id(0)
    first, last = tl.load(offsets + document), tl.load(offsets + document + 1)
    dims, lanes = tl.arange(0, DIM), tl.arange(0, TILE)
    scales, shifts = tl.load(scale + dims), tl.load(shift + dims)
    total = 0.0
    previous = first
    for i in range(num_tokens):
        start_of_pair = tl.load(before + previous * DIM + dims)
        product, constant = tl.load(products + i * DIM + dims), tl.load(constants + i)
        best, best_cosine = float("-inf"), float("-inf")
        winner, nearest = first, first
        for start in range(first, last, TILE):
            tokens = start + lanes
            present = tokens < last
            cosine = tl.load(cosines + tokens * num_tokens + i, mask=present, other=float("-inf"))
            both = start_of_pair[None, :] + tl.load(after + tokens[:, None] * DIM + dims[None, :], mask=present[:, None], other=0)
            inverse = 1 / tl.sqrt(tl.sum(both * both, axis=1) / dim + 1e-5)
            value = both * inverse[:, None] * scales[None, :] + shifts[None, :]
            exponential = tl.exp(tl.minimum(value, 20.0))
            square = exponential * (exponential + 2)
            relation = tl.sum(value * square / (square + 2) * product[None, :], axis=1) + constant
            whole = tl.where(present, cosine + relation, float("-inf"))
            if LIMITED:
                compared = tl.load(kept + tokens * num_tokens + i, mask=present, other=0) != 0
                whole = tl.where(compared, whole, float("-inf"))
            found, found_cosine = tl.max(whole, axis=0), tl.max(cosine, axis=0)
            winner = tl.where(found > best, start + tl.argmax(whole, axis=0), winner)
            nearest = tl.where(found_cosine > best_cosine, start + tl.argmax(cosine, axis=0), nearest)
            best, best_cosine = tl.maximum(best, found), tl.maximum(best_cosine, found_cosine)
        if WEIGHTED:
            extra = tl.load(token_weights + winner).to(tl.float32)
            best += extra * tl.load(cosines + winner * num_tokens + i)
        total += tl.load(weights + i) * best
        previous = nearest if BY_COSINE else winner
        if FROM_FIRST:
            previous = tl.where(i == 0, first, previous)
    tl.store(scores + document, total)
