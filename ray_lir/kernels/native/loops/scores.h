// Scores of a block of decoded tokens, from their products with a query; a part of loops.h.

// What turns products into scores, score = scale centroid score + scale' slope product, and keeps what is wanted of them. Tokens are a
// block's from `row` on, at most TOKENS; product(t, v) has vector v of those of token row + t. Sums lie in registers or, for a whole block,
// in memory.
template <class V, Keep KEEP, int LANES, int TOKENS, class Product>
inline void keep(const Shard& shard, const PackedQuery& query, int64_t lane, const Block& block, int64_t row, const Product& product) {
  constexpr int kVectors = LANES / V::kLanes;
  typename V::F32 best[kVectors], factors[kVectors];
  if constexpr (KEEP != kAll) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = V::load(query.best + lane + v * V::kLanes);
  }
  if constexpr (KEEP == kWeighted) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) factors[v] = V::load(query.factors + lane + v * V::kLanes);
  }
  const auto token = [&](int64_t t) {
    const Score* table = query.table + code_of(shard, block.token + row + t) * query.lanes + lane;
    const auto centroid_scale = V::all(block.scales[2 * (row + t)]), residual_scale = V::all(block.scales[2 * (row + t) + 1]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto residual = V::mul(V::mul(V::to_float(product(t, v)), V::load(query.slopes + lane + v * V::kLanes)), residual_scale);
      const auto score = V::add(residual, V::mul(V::load_scores(table + v * V::kLanes), centroid_scale));
      if constexpr (KEEP == kBest) best[v] = V::max(best[v], score);
      if constexpr (KEEP == kWeighted) V::keep_larger(best[v], factors[v], score, V::all(block.weights[row + t]));
      if constexpr (KEEP == kAll) V::store(query.all + (block.token - block.first + row + t) * query.lanes + lane + v * V::kLanes, score);
    }
  };
  if constexpr (TOKENS == kRows) {
    for (int64_t t = 0; t < block.count; ++t) token(t);
  } else {
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) {
      if (TOKENS > 1 && row + t >= block.count) break;
      token(t);
    }
  }
  if constexpr (KEEP != kAll) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store(query.best + lane + v * V::kLanes, best[v]);
  }
  if constexpr (KEEP == kWeighted) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store(query.factors + lane + v * V::kLanes, factors[v]);
  }
}

// Scores a block. `meanwhile` is called once, where a matrix unit would be waited for.
template <class V, Keep KEEP, class Meanwhile>
inline void score_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, const Block& block, const Meanwhile& meanwhile) {
  if constexpr (V::kMatrix) {
    V::template score_block<KEEP>(shard, decoder, query, block, meanwhile);
  } else {
    meanwhile();
    over_lanes<V>(query.lanes, [&](auto registers, auto lanes, int64_t lane) {
      using W = decltype(registers);
      constexpr int kCount = decltype(lanes)::value;
      constexpr int kTile = W::tile(kCount);
      for (int64_t row = 0; row < block.count; row += kTile) {  // there is memory for as many rows as a tile has
        typename W::I32 sums[kTile][kCount / W::kLanes];
        multiply_bytes<W, kCount>(block.rows + row * decoder.stride, decoder.stride, decoder.quads, query, lane, sums);
        keep<W, KEEP, kCount, kTile>(shard, query, lane, block, row, [&](int64_t t, int v) { return sums[t][v]; });
      }
    });
  }
}
