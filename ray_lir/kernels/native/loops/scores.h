// Scores of a block of decoded tokens, from their products with a query; a part of loops.h.

// Convert products to scores, scales[0] * centroid score + scales[1] * slope * product, and keep what KEEP requires. The tokens are those of
// the block from `row` on, at most TOKENS. product(t, v) is vector v of the products of token row + t. Sums are in registers or, for a
// whole block, in memory. Lanes that fill only half a register are in its lower half.
template <class V, Keep KEEP, int LANES, int TOKENS, class Product>
inline void keep(const Shard& shard, const PackedQuery& query, int64_t lane, const Block& block, int64_t row, const Product& product) {
  constexpr int kVectors = (LANES + V::kLanes - 1) / V::kLanes;
  typedef Part<V, LANES> P;
  typename V::F32 best[kVectors], factors[kVectors], slopes[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    slopes[v] = P::load(query.slopes + lane, v);
    best[v] = P::load(query.best + lane, v);
    if constexpr (KEEP != kBest) factors[v] = P::load(query.factors + lane, v);
  }
  // Local copies, so that the compiler knows that storing scores does not change them.
  const int64_t lanes = query.lanes, token0 = block.token + row, first = token0 - block.first, count = block.count;
  const Score* const tables = query.table + lane;
  const Shard codes = {shard.codes, shard.wide_codes, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const float* const scales = block.scales + 2 * row;
  float* const all = KEEP == kAll ? query.all + first * lanes + lane : nullptr;
  const auto token = [&](int64_t t) {
    const Score* table = tables + code_of(codes, token0 + t) * lanes;
    const auto centroid_scale = V::all(scales[2 * t]), residual_scale = V::all(scales[2 * t + 1]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto residual = V::mul(V::mul(V::to_float(product(t, v)), slopes[v]), residual_scale);
      const auto score = V::add(residual, V::mul(P::load_scores(table, v), centroid_scale));
      if constexpr (KEEP == kBest) best[v] = V::max(best[v], score);
      if constexpr (KEEP == kWeighted) V::keep_larger(best[v], factors[v], score, V::all(block.weights[row + t]));
      if constexpr (KEEP == kAll) {
        V::keep_larger(best[v], factors[v], score, V::all(float(first + t)));
        P::store(all + t * lanes, v, score);
      }
    }
  };
  if constexpr (TOKENS == kRows) {
    for (int64_t t = 0; t < count; ++t) token(t);
  } else {
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) {
      if (TOKENS > 1 && row + t >= count) break;
      token(t);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    P::store(query.best + lane, v, best[v]);
    if constexpr (KEEP != kBest) P::store(query.factors + lane, v, factors[v]);
  }
}

constexpr int kFewSums = 8;

// Score a block with some lanes of a query. The products are in memory if there is a matrix unit; otherwise they are computed here. If few sums
// fit the registers, those of the whole block are stored first: then the next tokens' products need not wait for scores from slower caches.
template <class V, Keep KEEP>
inline void keep_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, int64_t lane, const Block& block,
                       const Products& products) {
  if constexpr (V::kMatrix) {
    const auto run = [&](auto registers, auto lanes) {
      typedef decltype(registers) W;
      keep<W, KEEP, decltype(lanes)::value, kRows>(shard, query, lane, block, 0, [&](int64_t t, int v) {
        return W::load_i32(products[v * W::kLanes / kGroup][t] + v * W::kLanes % kGroup);
      });
    };
    const int64_t lanes = query.lanes - lane;
    if (lanes > 24) run(V{}, Count<32>{});
    else if (lanes > 16) run(V{}, Count<24>{});
    else if (lanes > 8) run(V{}, Count<16>{});
    else run(typename V::Half{}, Count<8>{});
  } else {
    alignas(64) int32_t stored[kRows + kMoreRows][kLanesTogether];
    over_lanes<V>(query.lanes, [&](auto registers, auto lanes, int64_t at) {
      using W = decltype(registers);
      constexpr int kCount = decltype(lanes)::value, kVectors = kCount / W::kLanes;
      constexpr int kTile = W::tile(kCount);
      constexpr bool kStored = kTile * kVectors <= kFewSums;
      for (int64_t row = 0; row < block.count; row += kTile) {  // there is memory for as many rows as a tile has
        typename W::I32 sums[kTile][kVectors];
        multiply_bytes<W, kCount>(block.rows + row * decoder.stride, decoder.stride, decoder.quads, query, at, sums);
        if constexpr (kStored) {
#pragma GCC unroll 16
          for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) W::store_i32(stored[row + r] + v * W::kLanes, sums[r][v]);
        } else {
          keep<W, KEEP, kCount, kTile>(shard, query, at, block, row, [&](int64_t t, int v) { return sums[t][v]; });
        }
      }
      if constexpr (kStored)
        keep<W, KEEP, kCount, kRows>(shard, query, at, block, 0, [&](int64_t t, int v) { return W::load_i32(stored[t] + v * W::kLanes); });
    });
  }
}
