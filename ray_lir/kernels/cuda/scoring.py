"""MaxSim on the device: from codes and residuals, from codes alone, and from plain vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton

from ray_lir.base.derived import derived
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.cuda.memory import SMALLEST, CodecMemory, codec_memory, device, download, padded, shard_memory, upload
from ray_lir.kernels.cuda.programs import code_programs, residual_programs
from ray_lir.kernels.cuda.tiles import Tiles, split_into_tiles
from ray_lir.kernels.protocol import ScanTable
from ray_lir.kernels.reference import document_blocks

MOST_COLUMNS = 256
"""Largest number of query tokens of a block."""
MOST_QUERY_VALUES = MOST_COLUMNS * 128
"""Largest number of values of a block: it must fit into a multiprocessor's shared memory (64 KB of 100 or more)."""
BLOCK_SCORES = 1 << 28
"""Products of plain vectors in memory at a time."""


@derived
def table_memory(table_CL: np.ndarray) -> torch.Tensor:
    """Return a table of centroid scores on the device. For tables that `centroid_scores` made, the tensor is already there."""
    return upload(table_CL)


@dataclass(frozen=True, eq=False, repr=False)
class QueryBlocks(ShortRepr):
    """Queries padded to one length and concatenated, `columns` tokens a block.

    A query longer than a block is split into parts, and their scores are added. Rows have length one, so that float16 holds them; their
    norms are in the weights. Padding rows have weight 0.

    Attributes:
        vectors: [blocks * columns, D] float32.
        weights: [blocks * columns] float32.
        owners: Query of each part, in order.
        query_tokens: Tokens of a part, padding included.
        columns: Tokens of a block.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    owners: list[int]
    query_tokens: int
    columns: int

    @classmethod
    def of(cls, queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], width: int) -> "QueryBlocks":
        """Return the blocks of queries.

        Args:
            queries: Arrays [n, D] float32.
            weights: Arrays [n], the weights of the query tokens.
            width: Dimensions of a padded vector.
        """
        most = max(SMALLEST, min(MOST_COLUMNS, MOST_QUERY_VALUES // width))
        parts = [(owner, start) for owner, query in enumerate(queries) for start in range(0, max(1, len(query)), most)]
        query_tokens = min(most, triton.next_power_of_2(max(1, *map(len, queries))))
        columns = max(SMALLEST, min(most, query_tokens * triton.next_power_of_2(len(parts))))
        blocks = -(-len(parts) * query_tokens // columns)
        rows = np.zeros((blocks * columns, queries[0].shape[1]), np.float32)
        importance = np.zeros(len(rows), np.float32)
        for place, (owner, start) in enumerate(parts):
            part = queries[owner][start : start + most]
            first = place * query_tokens
            lengths = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64)).astype(np.float32)
            rows[first : first + len(part)] = part / np.where(lengths > 0, lengths, 1)[:, None]
            importance[first : first + len(part)] = weights[owner][start : start + most] * lengths
        return cls(upload(rows), upload(importance), [owner for owner, _ in parts], query_tokens, columns)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.weights) // self.columns


def centroid_scores(query_nD: np.ndarray, codec: ResidualCodec) -> np.ndarray:
    """Return `Kernels.centroid_scores`.

    Args: as in `ray_lir.kernels.protocol.Kernels.centroid_scores`.
    """
    scores = codec_memory(codec).centroids @ upload(np.ascontiguousarray(query_nD, np.float32)).T
    table = download(scores)
    table_memory.put(table, scores)
    return table


def residual_maxsim(
    queries: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    tables: Iterable[np.ndarray],
    shard: IndexShard,
    codec: ResidualCodec,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """Return `Kernels.residual_maxsim`. The tables are not read: the device computes them faster than it receives them.

    Args: as in `ray_lir.kernels.protocol.Kernels.residual_maxsim`.
    """
    if any(query.shape[1] != codec.dim for query in queries):
        raise ValueError("the query has other dimensions than the codec")
    return download(device_maxsim(queries, weights, shard, codec, documents))


def nearest_maxsim(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    table: ScanTable,
    shard: IndexShard,
    codec: ResidualCodec,
    documents: np.ndarray,
) -> np.ndarray:
    """Return exact scores: the device scores tokens faster than it selects them.

    Args: as in `ray_lir.kernels.protocol.Kernels.nearest_maxsim`.
    """
    return residual_maxsim([query_nD], [weights_n], (), shard, codec, documents)[0]


def device_maxsim(
    queries: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    shard: IndexShard,
    codec: ResidualCodec,
    documents: np.ndarray | None = None,
) -> torch.Tensor:
    """Return `residual_maxsim`, [Q, N] float32, on the device.

    Args: as in `ray_lir.kernels.protocol.Kernels.residual_maxsim`, without tables.
    """
    memory = codec_memory(codec)
    blocks = QueryBlocks.of(queries, weights, memory.width)
    return _summed(run_residual_programs(blocks, memory, shard, _tiles(shard, documents)), blocks.owners, len(queries))


def run_residual_programs(
    blocks: QueryBlocks, memory: CodecMemory, shard: IndexShard, tiles: Tiles, num_warps: int | None = None
) -> torch.Tensor:
    """Score documents with blocks of queries.

    Args:
        blocks: The queries.
        memory: The codec on the device.
        shard: The shard that holds the documents.
        tiles: The documents, split into tiles.
        num_warps: Warps of a program; None for the default of the block's width.
    Returns:
        [query parts, N] float32 on the device.
    """
    placed = shard_memory(shard)
    queries = padded(blocks.vectors).half().contiguous()
    from_table = blocks.num_blocks == 1 and blocks.columns < memory.width
    rows = memory.padded_centroids @ queries.T if from_table else memory.padded_centroids
    scores = torch.full((len(queries) // blocks.query_tokens, tiles.num_docs), float("-inf"), device=device())
    if tiles.num_programs:
        residual_programs[(tiles.num_programs * blocks.num_blocks,)](
            queries,
            blocks.weights,
            rows.contiguous(),
            memory.byte_values,
            placed.codes,
            placed.residuals,
            placed.scales,
            placed.weights,
            tiles.firsts,
            tiles.sizes,
            tiles.documents,
            tiles.bounds,
            scores,
            blocks.num_blocks,
            tiles.num_docs,
            CODE_MASK=placed.code_mask,
            NBITS=memory.nbits,
            BYTES=placed.residuals.shape[1],
            DIM=memory.width,
            COLUMNS=blocks.columns,
            QUERY_TOKENS=blocks.query_tokens,
            TILE=tiles.tile,
            FROM_TABLE=from_table,
            WEIGHTED=placed.weights is not None,
            num_warps=num_warps or (4 if blocks.columns <= 64 else 8),
            enable_fp_fusion=True,
        )
    return scores[: len(blocks.owners)]


def centroid_maxsim(
    table_CL: np.ndarray,
    weights_n: np.ndarray,
    shard: IndexShard,
    threshold: float | None = None,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """Return `Kernels.centroid_maxsim`.

    Args: as in `ray_lir.kernels.protocol.Kernels.centroid_maxsim`.
    """
    placed, tiles, table = shard_memory(shard), _tiles(shard, documents), table_memory(table_CL)
    kept = None if threshold is None else (table[:, : len(weights_n)].amax(dim=1) >= threshold).to(torch.int8)
    parts = [slice(start, start + MOST_COLUMNS) for start in range(0, max(1, len(weights_n)), MOST_COLUMNS)]
    scores = torch.full((len(parts), tiles.num_docs), float("-inf"), device=device())
    for row, part in enumerate(parts if tiles.num_programs else []):
        importance = weights_n[part].astype(np.float32)
        columns = triton.next_power_of_2(len(importance))
        code_programs[(tiles.num_programs,)](
            table[:, part],
            upload(np.pad(importance, (0, columns - len(importance)))),
            kept,
            placed.codes,
            tiles.firsts,
            tiles.sizes,
            tiles.documents,
            tiles.bounds,
            scores[row],
            table.stride(0),
            len(importance),
            CODE_MASK=placed.code_mask,
            COLUMNS=columns,
            TILE=tiles.tile,
            PRUNED=kept is not None,
            enable_fp_fusion=True,
        )
    return download(_summed(scores, [0] * len(parts), 1)[0])


def scan_table(table_CL: np.ndarray) -> ScanTable:
    """Return `Kernels.scan_table`: the table itself."""
    return table_CL


def scan_codes(table: ScanTable, weights_n: np.ndarray, shard: IndexShard, documents: np.ndarray | None = None) -> np.ndarray:
    """Return `Kernels.scan_codes`.

    Args: as in `ray_lir.kernels.protocol.Kernels.scan_codes`.
    """
    assert isinstance(table, np.ndarray)
    return centroid_maxsim(table, weights_n, shard, None, documents)


def maxsim(queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return `Kernels.maxsim`.

    Args: as in `ray_lir.kernels.protocol.Kernels.maxsim`.
    """
    all_queries = upload(np.concatenate(queries).astype(np.float32))
    ends = np.cumsum([len(query) for query in queries])[:-1].tolist()
    importance = [upload(row.astype(np.float32)) for row in weights]
    scores = np.empty((len(queries), len(offsets) - 1), np.float32)
    for start, stop, first, last in document_blocks(offsets, BLOCK_SCORES // len(all_queries)):
        lengths = upload(np.diff(offsets[start : stop + 1]).astype(np.int64))
        owners = torch.repeat_interleave(torch.arange(stop - start, device=device()), lengths)
        products = all_queries @ upload(np.ascontiguousarray(tokens_TD[first:last])).float().T
        best = torch.full((len(all_queries), stop - start), float("-inf"), device=device())
        best.scatter_reduce_(1, owners.expand(len(all_queries), -1), products, "amax")
        best[:, lengths == 0] = 0
        totals = torch.stack([row @ part for row, part in zip(importance, best.tensor_split(ends), strict=True)])
        scores[:, start:stop] = download(torch.where(lengths == 0, float("-inf"), totals))
    return scores


def _tiles(shard: IndexShard, documents: np.ndarray | None) -> Tiles:
    placed = shard_memory(shard)
    if documents is None:
        return placed.tiles
    if len(documents) and not 0 <= documents.min() <= documents.max() < shard.num_docs:
        raise ValueError("documents that are not in the shard")
    numbers = upload(np.ascontiguousarray(documents, np.int64))
    return split_into_tiles(placed.doc_offsets[numbers], placed.doc_offsets[numbers + 1])


def _summed(scores_PN: torch.Tensor, owners: list[int], num_queries: int) -> torch.Tensor:
    """Return the sums of the parts of each query, in their order, [Q, N]."""
    if len(owners) == num_queries:
        return scores_PN
    totals = scores_PN.new_zeros(num_queries, scores_PN.shape[1])
    for owner, part in zip(owners, scores_PN, strict=True):
        totals[owner] += part
    return totals
