"""The Triton programs: MaxSim of documents from codes and residuals, and from codes alone.

A tile is up to TILE tokens of one document. A program scores a run of consecutive tiles, which covers whole documents, with a block of
COLUMNS query tokens, which it loads once. Query tokens are the rows of its matrix products, and the tokens of a tile are the columns. One
thread then holds all values from which the best token is chosen. A byte of a residual is unpacked with one load for 8 / NBITS dimensions:
a table of 256 rows holds the float16 bucket weights of each byte.

float16 is used instead of bfloat16: tensor cores multiply both at the same rate and add in float32. All values are at most about one, so
the range is no problem, and a mantissa of 11 bits has an eighth of the error of 8 bits.
"""

import triton
import triton.language as tl


@triton.jit
def _read_tile(
    tile,
    last,
    codes,
    residuals,
    scales,
    firsts,
    sizes,
    documents,
    CODE_MASK: tl.constexpr,
    BYTES: tl.constexpr,
    PLACES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return a tile's document, and the presence, codes, both scales and packed residuals [TILE, PLACES] of its TILE tokens."""
    here = tile < last
    lanes = tl.arange(0, TILE)
    present = lanes < tl.load(sizes + tile, mask=here, other=0)
    tokens = tl.load(firsts + tile, mask=here, other=0) + lanes
    document = tl.load(documents + tile, mask=here, other=0)
    code = tl.load(codes + tokens, mask=present, other=0).to(tl.int32) & CODE_MASK
    centroid_scale = tl.load(scales + tokens * 2, mask=present, other=0)
    residual_scale = tl.load(scales + tokens * 2 + 1, mask=present, other=0)
    places = tl.arange(0, PLACES)
    packed = tl.load(residuals + tokens[:, None] * BYTES + places[None, :], mask=present[:, None] & (places < BYTES)[None, :], other=0)
    return document, present, code, centroid_scale, residual_scale, packed


@triton.jit
def residual_programs(
    queries,  # [blocks * COLUMNS, DIM] float16
    weights,  # [blocks * COLUMNS] float32
    rows,  # [C, DIM] float16 centroids, or [C, COLUMNS] float16 centroid scores of the only block
    values,  # [256, 8 / NBITS] float16, the bucket weights of every byte
    codes,  # [T] int16 or int32
    residuals,  # [T, BYTES] uint8
    scales,  # [T, 2] float16
    token_weights,  # [T] float16, less one; read with WEIGHTED alone
    firsts,  # [tiles] int64, first token
    sizes,  # [tiles] int32, tokens
    documents,  # [tiles] int32, row of the result
    bounds,  # [programs + 1] int32, tiles
    scores,  # [blocks * COLUMNS / QUERY_TOKENS, N] float32
    num_blocks,
    num_docs,
    CODE_MASK: tl.constexpr,
    NBITS: tl.constexpr,
    BYTES: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    FROM_TABLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Compute MaxSim of the documents of a run of tiles with the queries of a block: one score a document and query.

    With WEIGHTED, the best token's score is multiplied by its token weight; ties go to the first token.

    A token's score is scales[1] (bucket weights . q) + scales[0] (centroid . q). With FROM_TABLE, the second product is read from the
    table, COLUMNS values a token; otherwise the centroid is read, DIM values a token, and added before one product.

    Args: see the comments beside the parameters.
    """
    PER_BYTE: tl.constexpr = 8 // NBITS
    block = tl.program_id(0) % num_blocks  # all query blocks of one run of tiles are adjacent, so its bytes are read from memory once
    program = tl.program_id(0) // num_blocks
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    dims = tl.arange(0, DIM)
    query = tl.load(queries + columns[:, None] * DIM + dims[None, :])
    weight = tl.load(weights + columns)
    in_byte = tl.arange(0, PER_BYTE)
    outputs = (block * (COLUMNS // QUERY_TOKENS) + tl.arange(0, COLUMNS // QUERY_TOKENS)).to(tl.int64) * num_docs
    best = tl.full([COLUMNS], float("-inf"), tl.float32)
    factor = tl.full([COLUMNS], 1.0, tl.float32)
    first, last = tl.load(bounds + program), tl.load(bounds + program + 1)
    previous = -1
    document, present, code, centroid_scale, residual_scale, packed = _read_tile(
        first, last, codes, residuals, scales, firsts, sizes, documents, CODE_MASK, BYTES, DIM // PER_BYTE, TILE
    )
    for tile in tl.range(first, last, num_stages=1):
        # Load the next tile while this one is scored.
        next_document, next_present, next_code, next_centroid_scale, next_residual_scale, next_packed = _read_tile(
            tile + 1, last, codes, residuals, scales, firsts, sizes, documents, CODE_MASK, BYTES, DIM // PER_BYTE, TILE
        )
        entries = values + packed[:, :, None].to(tl.int32) * PER_BYTE + in_byte[None, None, :]
        vectors = tl.reshape(tl.load(entries), [TILE, DIM])
        if FROM_TABLE:
            table = tl.load(rows + code[None, :].to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[:, None])
            scored = tl.dot(query, tl.trans(vectors)) * residual_scale[None, :].to(tl.float32)
            scored += table.to(tl.float32) * centroid_scale[None, :].to(tl.float32)
        else:
            centroids = tl.load(rows + code[:, None].to(tl.int64) * DIM + dims[None, :]).to(tl.float32)
            vectors = vectors.to(tl.float32) * residual_scale[:, None].to(tl.float32) + centroids * centroid_scale[:, None].to(tl.float32)
            scored = tl.dot(query, tl.trans(vectors.to(tl.float16)))
        scored = tl.where(present[None, :], scored, float("-inf"))
        found = tl.max(scored, axis=1)
        if WEIGHTED:
            lanes = tl.arange(0, TILE)
            token_weight = tl.load(token_weights + (tl.load(firsts + tile) + lanes), mask=present, other=0).to(tl.float32) + 1
            is_best = lanes[None, :] == tl.argmax(scored, axis=1)[:, None]
            better = (document != previous) | (found > best)
            factor = tl.where(better, tl.sum(tl.where(is_best, token_weight[None, :], 0.0), axis=1), factor)
        best = tl.where(document == previous, tl.maximum(best, found), found)
        # Stored after every tile of a document; the last store holds the complete score.
        totals = tl.sum(tl.reshape(best * factor * weight, [COLUMNS // QUERY_TOKENS, QUERY_TOKENS]), axis=1)
        tl.store(scores + outputs + document, totals)
        previous = document
        document, present, code = next_document, next_present, next_code
        centroid_scale, residual_scale, packed = next_centroid_scale, next_residual_scale, next_packed


@triton.jit
def code_programs(
    table,  # [C, stride] float32 centroid scores of one query
    weights,  # [COLUMNS] float32, 0 past the query's tokens
    kept,  # [C] int8, read with PRUNED alone
    codes,
    firsts,
    sizes,
    documents,
    bounds,
    scores,  # [N] float32
    stride,
    num_tokens,
    CODE_MASK: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    PRUNED: tl.constexpr,
):
    """Compute MaxSim of the documents of a run of tiles with tokens replaced by centroids; with PRUNED, by the kept centroids only.

    Args: see the comments beside the parameters.
    """
    columns = tl.arange(0, COLUMNS)
    weight = tl.load(weights + columns)
    lanes = tl.arange(0, TILE)
    best = tl.full([COLUMNS], float("-inf"), tl.float32)
    previous = -1
    for tile in tl.range(tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)):
        document = tl.load(documents + tile)
        present = lanes < tl.load(sizes + tile)
        code = tl.load(codes + tl.load(firsts + tile) + lanes, mask=present, other=0).to(tl.int32) & CODE_MASK
        if PRUNED:
            present = present & (tl.load(kept + code) > 0)
        inside = present[:, None] & (columns < num_tokens)[None, :]
        scored = tl.load(table + code[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=float("-inf"))
        found = tl.max(scored, axis=0)
        best = tl.where(document == previous, tl.maximum(best, found), found)
        # A document without (kept) tokens keeps -inf. Columns past the query's tokens are -inf too and add nothing.
        seen = best > float("-inf")
        total = tl.sum(tl.where(seen, best, 0.0) * weight)
        tl.store(scores + document, total, mask=tl.max(seen.to(tl.int32)) > 0)
        previous = document
