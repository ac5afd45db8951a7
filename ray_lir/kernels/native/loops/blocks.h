// Tokens of documents in blocks; each block is decoded while the block before it is multiplied. A part of loops.h.

// Prefetch the cache lines of consecutive rows.
inline void fetch_rows(const void* rows, int64_t bytes, int64_t first, int64_t count) {
  const auto* begin = static_cast<const uint8_t*>(rows) + first * bytes;
  for (const uint8_t* line = begin; line < begin + count * bytes; line += 64) __builtin_prefetch(line);
}

// Prefetch the rows of a query's score table that scoring a block reads.
inline void fetch_scores(const Shard& shard, const PackedQuery& query, const Block& block) {
  const int64_t bytes = query.lanes * int64_t(sizeof(Score));
  const auto* table = reinterpret_cast<const uint8_t*>(query.table);
  for (int64_t t = 0; t < block.count; ++t) {
    const uint8_t* row = table + code_of(shard, block.token + t) * bytes;
    __builtin_prefetch(row);
    if (64 % bytes) __builtin_prefetch(row + bytes - 1);  // rows with a length that divides a cache line never cross one, because tables are aligned
    if (bytes > 128) fetch_rows(row, bytes, 0, 1);
  }
}

// Copy the two scales of consecutive tokens, as floats.
template <class V>
inline void scales_of(const Shard& shard, int64_t token, int64_t count, float* scales) {
  if (!shard.pairs) return V::to_floats(shard.scales + 2 * token, 2 * count, scales);
  for (int64_t t = 0; t < count; ++t) std::memcpy(scales + 2 * t, shard.pairs + 2 * shard.numbers[token + t], 2 * sizeof(float));
}

// Decode a block, and prefetch the rows of the queries' tables that scoring will read, and the residuals of the next block.
template <class V>
inline void decode_block(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, const Block& block) {
  scales_of<V>(shard, block.token, block.count, block.scales);
  if (shard.weights) {
    V::to_floats(shard.weights + block.token, block.count, block.weights);
    for (int64_t t = 0; t < block.count; ++t) block.weights[t] += 1;
  }
  if (shard.pairs) fetch_rows(shard.numbers, 1, block.next, block.next_count);
  else fetch_rows(shard.scales, 2 * sizeof(uint16_t), block.next, block.next_count);
  fetch_rows(shard.codes, shard.wide_codes ? 4 : 2, block.next, block.next_count);
  for (int64_t q = 0; q < num_queries; ++q) fetch_scores(shard, queries[q], block);
  decode<V>(decoder, shard.residuals + block.token * decoder.packed_bytes, block.count, block.rows,
            shard.residuals + block.next * decoder.packed_bytes, block.next_count);
}

// The blocks of some documents, in order. Documents without tokens have no block.
class Blocks {
 public:
  Blocks(const Shard& shard, int64_t block_rows, const int64_t* documents, int64_t begin, int64_t end)
      : shard_(shard), block_rows_(block_rows), documents_(documents), place_(begin - 1), end_(end) {
    advance(0);
  }

  // Return the next block, with the memory to decode it into. The block after the last one has no tokens.
  Block take(uint8_t* rows, float* scales, float* weights) {
    Block block = {place_, first_, last_, token_, count(), rows, scales, weights, 0, 0};
    advance(block.count);
    block.next = token_;
    block.next_count = count();
    return block;
  }

 private:
  int64_t count() const { return std::min(last_ - token_, block_rows_); }
  void advance(int64_t tokens) {
    for (token_ += tokens; token_ >= last_ && ++place_ < end_; token_ = first_) {
      const int64_t number = number_of(documents_, place_);
      first_ = shard_.doc_offsets[number];
      last_ = shard_.doc_offsets[number + 1];
    }
  }

  const Shard& shard_;
  const int64_t block_rows_;
  const int64_t* documents_;
  int64_t place_, end_, first_ = 0, last_ = 0, token_ = 0;
};

// Score all tokens of documents for some queries, and call finish(block) after the last block of each document. While a matrix unit
// multiplies a block, the products of the block before it become scores, and the block after it is decoded. Each has two buffers.
template <class V, Keep KEEP, class Finish>
inline void over_blocks(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, int64_t block_rows,
                        const int64_t* documents, int64_t begin, int64_t end, uint8_t* rows, const Finish& finish) {
  float scales[2][2 * kRows], weights[2][kRows];
  alignas(64) Products products[2];
  Blocks blocks(shard, V::kMatrix ? kRows : block_rows, documents, begin, end);
  int buffer = 0, place = 0;
  const auto decoded = [&] {
    const Block block = blocks.take(rows + buffer * kRows * decoder.stride, scales[buffer], weights[buffer]);
    buffer = 1 - buffer;
    if (block.count) decode_block<V>(shard, decoder, queries, num_queries, block);
    return block;
  };
  const auto step = [&](const PackedQuery& query) { return V::kMatrix ? kLanesTogether : query.lanes; };
  struct Work {                 // a block, and lanes of a query
    Block block;
    int64_t q, lane;
  };
  const auto score = [&](const Work& work, const Products& made) {
    const PackedQuery& query = queries[work.q];
    if (work.block.token == work.block.first && work.lane == 0) fill(query.best, query.lanes, -INFINITY);
    keep_block<V, KEEP>(shard, decoder, query, work.lane, work.block, made);
    const bool last = work.q == num_queries - 1 && work.lane + step(query) >= query.lanes;
    if (last && work.block.token + work.block.count == work.block.last) finish(work.block);
  };
  V::begin();
  Work before = {};
  for (Block block = decoded(), next; block.count; block = next) {
    for (int64_t q = 0; q < num_queries; ++q)
      for (int64_t lane = 0; lane < queries[q].lanes; lane += step(queries[q])) {
        if constexpr (V::kMatrix) V::multiply(block.rows, decoder.stride, queries[q], lane, products[place]);
        place = 1 - place;
        if (before.block.count) score(before, products[place]);
        before = {block, q, lane};
        if (q == 0 && lane == 0) next = decoded();
      }
  }
  if (before.block.count) score(before, products[1 - place]);
  V::end();
}
