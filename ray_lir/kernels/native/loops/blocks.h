// Documents' tokens in blocks, each decoded while the one before it is multiplied; a part of loops.h.

// Asks for the lines that neighbouring rows begin to fill.
inline void fetch_rows(const void* rows, int64_t bytes, int64_t first, int64_t count) {
  const auto* begin = static_cast<const uint8_t*>(rows) + first * bytes;
  for (const uint8_t* line = begin; line < begin + count * bytes; line += 64) __builtin_prefetch(line);
}

// Asks for the rows of a query's table that scoring a block looks into.
inline void fetch_scores(const Shard& shard, const PackedQuery& query, const Block& block) {
  const int64_t bytes = query.lanes * int64_t(sizeof(Score));
  const auto* table = reinterpret_cast<const uint8_t*>(query.table);
  for (int64_t t = 0; t < block.count; ++t) {
    const uint8_t* row = table + code_of(shard, block.token + t) * bytes;
    __builtin_prefetch(row);
    if (64 % bytes) __builtin_prefetch(row + bytes - 1);  // rows that divide a line never cross one, since tables begin with one
    if (bytes > 128) fetch_rows(row, bytes, 0, 1);
  }
}

// Decodes a block that has its place, while what scoring it will read of the queries' tables is fetched, and the residuals that are
// decoded after it.
template <class V>
inline void decode_block(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, const Block& block) {
  V::to_floats(shard.scales + 2 * block.token, 2 * block.count, block.scales);
  if (shard.weights) {
    V::to_floats(shard.weights + block.token, block.count, block.weights);
    for (int64_t t = 0; t < block.count; ++t) block.weights[t] += 1;
  }
  fetch_rows(shard.scales, 2 * sizeof(uint16_t), block.next, block.next_count);
  fetch_rows(shard.codes, shard.wide_codes ? 4 : 2, block.next, block.next_count);
  for (int64_t q = 0; q < num_queries; ++q) fetch_scores(shard, queries[q], block);
  decode<V>(decoder, shard.residuals + block.token * decoder.packed_bytes, block.count, block.rows,
            shard.residuals + block.next * decoder.packed_bytes, block.next_count);
}

// The blocks of some documents one after another; documents without tokens have none.
class Blocks {
 public:
  Blocks(const Shard& shard, const int64_t* documents, int64_t begin, int64_t end)
      : shard_(shard), documents_(documents), place_(begin - 1), end_(end) {
    advance(0);
  }

  // The next block, to be decoded into this memory; without tokens if there is none.
  Block take(uint8_t* rows, float* scales, float* weights) {
    Block block = {place_, first_, last_, token_, count(), rows, scales, weights, 0, 0};
    advance(block.count);
    block.next = token_;
    block.next_count = count();
    return block;
  }

 private:
  int64_t count() const { return at_most_a_block(last_ - token_); }
  void advance(int64_t tokens) {
    for (token_ += tokens; token_ >= last_ && ++place_ < end_; token_ = first_) {
      const int64_t number = number_of(documents_, place_);
      first_ = shard_.doc_offsets[number];
      last_ = shard_.doc_offsets[number + 1];
    }
  }

  const Shard& shard_;
  const int64_t* documents_;
  int64_t place_, end_, first_ = 0, last_ = 0, token_ = 0;
};

// Scores all tokens of documents for some queries and calls finish(block) after each document's last block. While a matrix unit makes the
// products of a block, those of the one before it become scores and the one after it is decoded: there is memory for two of each.
template <class V, Keep KEEP, class Finish>
inline void over_blocks(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, const int64_t* documents,
                        int64_t begin, int64_t end, uint8_t* rows, const Finish& finish) {
  float scales[2][2 * kRows], weights[2][kRows];
  alignas(64) Products products[2];
  Blocks blocks(shard, documents, begin, end);
  int turn = 0, place = 0;
  const auto decoded = [&] {
    const Block block = blocks.take(rows + turn * kRows * decoder.stride, scales[turn], weights[turn]);
    turn = 1 - turn;
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
