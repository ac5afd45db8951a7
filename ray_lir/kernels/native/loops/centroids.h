// Tables of centroid scores: MaxSim from them, conversion to bytes, and the centroids above a threshold; a part of loops.h.

// Compute MaxSim of centroid scores, over the tokens with centroids that are not pruned.
template <class V, int LANES>
inline bool best_centroids(const CentroidTask& task, int64_t first, int64_t last, int64_t lane, float* lanes) {
  constexpr int kVectors = LANES / V::kLanes;
  const Score* table = static_cast<const Score*>(task.table) + lane;
  typename V::F32 best[kVectors];
#pragma GCC unroll 16
  for (auto& each : best) each = V::all(-INFINITY);
  bool any = false;
  for (int64_t token = first; token < last; ++token) {
    const int64_t code = code_of(task.shard, token);
    if (task.keep && !task.keep[code]) continue;
    any = true;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = V::max(best[v], V::load_scores(table + code * task.lanes + v * V::kLanes));
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) V::store(lanes + v * V::kLanes, best[v]);
  return any;
}

template <class V>
void centroid_maxsim(const CentroidTask& task, int64_t begin, int64_t end, float* best) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    bool any = false;
    over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
      any = best_centroids<decltype(registers), decltype(lanes)::value>(task, first, last, lane, best + lane);
    });
    task.scores[i] = any ? weighted_sum<V>(best, task.weights, task.lanes) + task.base : -INFINITY;
  }
}

// The same from a table of bytes: one load and one maximum for each token and 16 (or more) query tokens.
template <class V, int BYTES>
inline void byte_document(const CentroidTask& task, int64_t first, int64_t last, int64_t lane, float* lanes) {
  const uint8_t* table = static_cast<const uint8_t*>(task.table) + lane;
  auto even = V::template zero_bytes<BYTES>(), odd = even;
  int64_t token = first;
  for (; token + 1 < last; token += 2) {
    even = V::max_bytes(even, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token)) * task.lanes));
    odd = V::max_bytes(odd, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token + 1)) * task.lanes));
  }
  if (token < last) even = V::max_bytes(even, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token)) * task.lanes));
  even = V::max_bytes(even, odd);
  uint8_t bytes[BYTES];
  std::memcpy(bytes, &even, BYTES);
  for (int i = 0; i < BYTES; ++i) lanes[i] = bytes[i];
}

template <class V>
void byte_maxsim(const CentroidTask& task, int64_t begin, int64_t end, float* best) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    int64_t lane = 0;
    for (; lane + 2 * kGroup <= task.lanes; lane += 2 * kGroup) byte_document<V, 2 * kGroup>(task, first, last, lane, best + lane);
    if (lane < task.lanes) byte_document<V, kGroup>(task, first, last, lane, best + lane);
    task.scores[i] = first == last ? -INFINITY : weighted_sum<V>(best, task.weights, task.lanes) + task.base;
  }
}

// Convert scores to bytes. One unit is a 255th of the range of the query token's scores.
template <class V>
void byte_table(const TableTask& task) {
  if (task.lanes < task.byte_lanes) std::memset(task.bytes, 0, task.num_centroids * task.byte_lanes);
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kVectors = decltype(lanes)::value / W::kLanes;
    typename W::F32 lows[kVectors], highs[kVectors], factors[kVectors];
    for (int v = 0; v < kVectors; ++v) lows[v] = W::all(INFINITY), highs[v] = W::all(-INFINITY);
    for (int64_t c = 0; c < task.num_centroids; ++c)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto scores = W::load_scores(task.table + c * task.lanes + lane + v * W::kLanes);
        lows[v] = W::min(lows[v], scores);
        highs[v] = W::max(highs[v], scores);
      }
    for (int v = 0; v < kVectors; ++v) {
      const auto steps = W::div(W::add(highs[v], W::mul(lows[v], W::all(-1))), W::all(255));
      W::store(task.lows + lane + v * W::kLanes, lows[v]);
      W::store(task.steps + lane + v * W::kLanes, steps);
      factors[v] = W::div(W::all(1), W::max(steps, W::all(1e-30f)));
    }
    for (int64_t c = 0; c < task.num_centroids; ++c)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto scores = W::load_scores(task.table + c * task.lanes + lane + v * W::kLanes);
        const auto above = W::mul(W::add(scores, W::mul(lows[v], W::all(-1))), factors[v]);
        W::store_bytes(task.bytes + c * task.byte_lanes + lane + v * W::kLanes, W::add(above, W::all(0.5f)));
      }
  });
}

// Find for each centroid the query tokens, out of 8, for which its score reaches the threshold; one bit each.
template <class V>
void reached(const ReachTask& task) {
  typedef typename V::Half W;
  for (int64_t c = 0; c < task.num_centroids; ++c) {
    uint32_t mask = 0;
#pragma GCC unroll 16
    for (int v = 0; v < kStep / W::kLanes; ++v)
      mask |= W::at_least(W::load_scores(task.table + c * task.lanes + v * W::kLanes), W::load(task.thresholds + v * W::kLanes)) << (v * W::kLanes);
    task.masks[c] = uint8_t(mask);
  }
}
