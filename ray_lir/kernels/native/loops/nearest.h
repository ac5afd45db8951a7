// MaxSim of query tokens with the nearest tokens of documents; a part of loops.h.

struct Selected {               // a token, and one bit for each query token to compare it with
  int64_t token;
  uint32_t mask;
};

// Consecutive tokens of a document for up to 32 query tokens, and those of them to score.
struct NearestChunk {
  int64_t place, lane;          // position of the document among the documents to score, and the first query token
  int64_t end;                  // end of the tokens
  bool first_of_lanes, last_of_lanes;  // whether it is the first, or the last, of these query tokens
  bool last;                    // whether it is the last of the document
  uint8_t best[32];             // best bytes of the document; a token that has one of them is selected
  uint8_t second[32];           // second best bytes of its distinct centroids
  bool has_second;              // whether it has more than one
  int64_t count;
  Selected selected[kNearestTokens + 1];
};

// Find for each of BYTES query tokens the best and the second best byte among the distinct centroids of a document.
template <class V, int BYTES>
inline void best_bytes(const NearestTask& task, NearestChunk& chunk) {
  const int64_t document = task.documents[chunk.place];
  const Shard distinct = {task.distinct, task.shard.wide_codes, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const int64_t end = task.distinct_offsets[document + 1], byte_lanes = task.byte_lanes;
  const uint8_t* const table = task.bytes + chunk.lane;
  auto best = V::template zero_bytes<BYTES>(), second = best;
  for (int64_t at = task.distinct_offsets[document]; at < end; ++at) {
    const auto row = V::template load_bytes<BYTES>(table + int64_t(code_of(distinct, at)) * byte_lanes);
    second = V::max_bytes(second, V::min_bytes(best, row));
    best = V::max_bytes(best, row);
  }
  chunk.has_second = end - task.distinct_offsets[document] > 1;
  std::memcpy(chunk.best, &best, BYTES);
  std::memcpy(chunk.second, &second, BYTES);
}

// List the tokens of `selected` with each query token of their masks: 32 times the position of the token plus the query token. The list has
// memory for four entries more. Four entries are written at a time, because the number of query tokens is hard to predict.
inline int64_t list_pairs(const Selected* selected, int64_t count, uint16_t* pairs) {
  uint16_t* next = pairs;
  for (int64_t t = 0; t < count; ++t)
    for (uint32_t mask = selected[t].mask; mask;) {
      const int64_t found = __builtin_popcount(mask);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, mask &= mask - 1) next[i] = uint16_t(32 * t + __builtin_ctz(mask | uint32_t(1) << 31));
      next += found < 4 ? found : 4;
    }
  return next - pairs;
}

constexpr int32_t kNoProduct = -(1 << 30);  // for query tokens that a token is not compared with: lower than any product

// Score up to kRows tokens with the query tokens of their masks, and keep the best scores; with token weights, also the weights of their tokens.
template <class V, Keep KEEP>
inline void keep_nearest(const NearestTask& task, const Selected* selected, int64_t count, int64_t lane, uint8_t* rows) {
  const Shard& shard = task.shard;
  const PackedQuery& query = task.query;
  const int64_t stride = task.decoder.stride, end = query.lanes - lane < 32 ? query.lanes - lane : 32;
  float scales[kRows][2], weights[kRows];
  alignas(64) int32_t products[kRows][32];
  uint16_t pairs[32 * kRows + 4];
  with_row_decoder<V>(task.decoder, [&](const auto& decode_row) {
    for (int64_t t = 0; t < count; ++t) decode_row(shard.residuals + selected[t].token * task.decoder.packed_bytes, rows + t * stride);
  });
  for (int64_t t = 0; t < count; ++t) {
    scales_of<V>(shard, selected[t].token, 1, scales[t]);
    if (KEEP == kWeighted) V::to_floats(shard.weights + selected[t].token, 1, weights + t), weights[t] += 1;
    for (int64_t i = 0; i < 32; ++i) products[t][i] = kNoProduct;
  }
  const int64_t num_pairs = list_pairs(selected, count, pairs);
  for (int64_t p = 0; p < num_pairs; ++p) {
    const int64_t t = pairs[p] / 32, i = pairs[p] % 32;
    products[t][i] = V::dot_row(rows + t * stride, task.rows + (lane + i) * stride, stride) + query.starts[lane + i];
  }
  over_lanes<V>(end, [&](auto registers, auto lanes, int64_t at) {
    using W = decltype(registers);
    constexpr int kVectors = decltype(lanes)::value / W::kLanes;
    const int64_t from = lane + at;
    typename W::F32 best[kVectors], factors[kVectors], slopes[kVectors], lows[kVectors], steps[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = from + v * W::kLanes;
      slopes[v] = W::load(query.slopes + i), lows[v] = W::load(task.lows + i), steps[v] = W::load(task.steps + i), best[v] = W::load(query.best + i);
      if constexpr (KEEP == kWeighted) factors[v] = W::load(query.factors + i);
    }
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* bytes = task.bytes + int64_t(code_of(shard, selected[t].token)) * task.byte_lanes + from;
      const auto centroid_scale = W::all(scales[t][0]), residual_scale = W::all(scales[t][1]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto product = W::to_float(W::load_i32(products[t] + at + v * W::kLanes));
        const auto residual = W::mul(W::mul(product, slopes[v]), residual_scale);
        const auto centroid = W::add(lows[v], W::mul(W::load_byte_scores(bytes + v * W::kLanes), steps[v]));
        const auto score = W::add(residual, W::mul(centroid, centroid_scale));
        if constexpr (KEEP == kBest) best[v] = W::max(best[v], score);
        if constexpr (KEEP == kWeighted) W::keep_larger(best[v], factors[v], score, W::all(weights[t]));
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      W::store(query.best + from + v * W::kLanes, best[v]);
      if constexpr (KEEP == kWeighted) W::store(query.factors + from + v * W::kLanes, factors[v]);
    }
  });
}

template <class V, int BYTES>
inline void select_nearest(const NearestTask& task, int64_t begin, NearestChunk& chunk) {
  const Shard codes = {task.shard.codes, task.shard.wide_codes, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const int64_t byte_lanes = task.byte_lanes;
  if (chunk.first_of_lanes) best_bytes<V, BYTES>(task, chunk);
  const auto best = V::template load_bytes<BYTES>(chunk.best);
  const uint32_t active = task.active[chunk.lane / 32];
  const uint8_t* const table = task.bytes + chunk.lane;
  int64_t count = 0;
  for (int64_t token = begin; token < chunk.end; ++token) {  // without a branch, because which tokens are selected is hard to predict
    const auto bytes = V::template load_bytes<BYTES>(table + int64_t(code_of(codes, token)) * byte_lanes);
    chunk.selected[count] = {token, V::equal_bytes(bytes, best) & active};
    count += chunk.selected[count].mask != 0;
  }
  chunk.count = count;
  for (int64_t i = 0; i < count; ++i) fetch_rows(task.shard.residuals, task.decoder.packed_bytes, chunk.selected[i].token, 1);
}

// Prefetch the codes and scales of a document.
inline void fetch_codes(const NearestTask& task, int64_t document) {
  const auto fetch = [&](const void* from, const int64_t* offsets, int64_t bytes) {
    fetch_rows(from, bytes, offsets[document], offsets[document + 1] - offsets[document]);
  };
  const int64_t code_bytes = task.shard.wide_codes ? 4 : 2;
  fetch(task.distinct, task.distinct_offsets, code_bytes);
  fetch(task.shard.codes, task.shard.doc_offsets, code_bytes);
  if (task.shard.pairs) fetch(task.shard.numbers, task.shard.doc_offsets, 1);
  else fetch(task.shard.scales, task.shard.doc_offsets, 2 * sizeof(uint16_t));
}

// Replace a chunk by the one after it, and prefetch the residuals of its selected tokens. After the last one, `place` is `end`.
template <class V>
inline void next_chunk(const NearestTask& task, int64_t end, NearestChunk& chunk) {
  const int64_t* offsets = task.shard.doc_offsets;
  int64_t begin = chunk.end;
  if (chunk.place >= 0 && begin == offsets[task.documents[chunk.place] + 1]) {
    chunk.lane += 32;
    begin = offsets[task.documents[chunk.place]];
  }
  if (chunk.last) {
    do ++chunk.place;
    while (chunk.place < end && offsets[task.documents[chunk.place]] == offsets[task.documents[chunk.place] + 1]);
    if (chunk.place == end) return;
    if (chunk.place + 1 < end) fetch_codes(task, task.documents[chunk.place + 1]);
    chunk.lane = 0;
    begin = offsets[task.documents[chunk.place]];
  }
  const int64_t last = offsets[task.documents[chunk.place] + 1];
  chunk.first_of_lanes = begin == offsets[task.documents[chunk.place]];
  chunk.end = last - begin < kNearestTokens ? last : begin + kNearestTokens;
  chunk.last_of_lanes = chunk.end == last;
  chunk.last = chunk.last_of_lanes && chunk.lane + 32 >= task.byte_lanes;
  if (task.byte_lanes - chunk.lane > kGroup) select_nearest<V, 2 * kGroup>(task, begin, chunk);
  else select_nearest<V, kGroup>(task, begin, chunk);
}

// Return a query token's term: its best score among decoded tokens, times the weight of the token, plus half of what the second best centroid
// score exceeds it. An undecoded token can be better than the best decoded one.
inline float nearest_term(const NearestTask& task, const NearestChunk& chunk, int64_t lane) {
  if (!(task.active[lane / 32] >> lane % 32 & 1)) return 0;
  const float best = task.query.best[lane], second = task.lows[lane] + chunk.second[lane - chunk.lane] * task.steps[lane];
  return best * task.query.factors[lane] + (chunk.has_second && second > best ? 0.5f * (second - best) : 0.0f);
}

// Score documents. The tokens of the next chunk are selected, and their residuals prefetched, before those of a chunk are scored.
template <class V, Keep KEEP>
void nearest_of(const NearestTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  const PackedQuery& query = task.query;
  fill(task.scores + begin, end - begin, -INFINITY);
  NearestChunk chunks[2];
  chunks[0].place = begin - 1, chunks[0].lane = chunks[0].end = 0, chunks[0].last = true;
  next_chunk<V>(task, end, chunks[0]);
  for (int current = 0; chunks[current].place < end; current = 1 - current) {
    NearestChunk &chunk = chunks[current], &next = chunks[1 - current];
    next.place = chunk.place, next.lane = chunk.lane, next.end = chunk.end, next.last = chunk.last;
    std::memcpy(next.best, chunk.best, sizeof(next.best));
    std::memcpy(next.second, chunk.second, sizeof(next.second));
    next.has_second = chunk.has_second;
    next_chunk<V>(task, end, next);
    const int64_t end_lane = query.lanes - chunk.lane < 32 ? query.lanes : chunk.lane + 32;
    if (chunk.first_of_lanes)
      for (int64_t lane = chunk.lane; lane < end_lane; ++lane) query.best[lane] = -INFINITY, query.factors[lane] = 1;
    for (int64_t i = 0; i < chunk.count; i += task.block_rows)
      keep_nearest<V, KEEP>(task, chunk.selected + i, std::min(chunk.count - i, task.block_rows), chunk.lane, rows);
    if (!chunk.last_of_lanes) continue;
    for (int64_t lane = chunk.lane; lane < end_lane; ++lane) query.best[lane] = nearest_term(task, chunk, lane);
    if (chunk.last) task.scores[chunk.place] = weighted_sum<V>(query.best, query.weights, query.lanes);
  }
}

template <class V>
void nearest_maxsim(const NearestTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  task.shard.weights ? nearest_of<V, kWeighted>(task, begin, end, rows) : nearest_of<V, kBest>(task, begin, end, rows);
}
