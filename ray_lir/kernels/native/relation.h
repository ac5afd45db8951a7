// TRIAL from codes and residuals (ALGORITHMS 5.4), for loops.h, which includes it where V and the loops of MaxSim are known.
//
// Only what can win is computed. Every relation of a query token lies between `lower` and `upper`, so a document token whose cosine is
// further below the best than they are apart cannot win; a token's halves are made when the first relation needs them.

// Mish(z) = z u / (u + 2), u = e (e + 2), e = exp(z); exp by its Taylor polynomial of degree 5 between -ln 2 / 2 and ln 2 / 2,
// within 3e-6 of itself, summed so that few steps wait for one another.
template <class V>
inline typename V::F32 mish(typename V::F32 z) {
  const auto x = V::max(V::min(z, V::all(20.0f)), V::all(-80.0f));
  const auto magic = V::all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const auto rounded = V::add(V::mul(x, V::all(1.44269504f)), magic);
  const auto whole = V::add(rounded, V::all(-12582912.0f));
  const auto rest = V::add(V::add(x, V::mul(whole, V::all(-0.693145752f))), V::mul(whole, V::all(-1.42860677e-6f)));
  const auto square = V::mul(rest, rest);
  const auto low = V::add(rest, V::all(1.0f));
  const auto middle = V::add(V::mul(rest, V::all(1.0f / 6)), V::all(0.5f));
  const auto high = V::add(V::mul(rest, V::all(1.0f / 120)), V::all(1.0f / 24));
  const auto sum = V::add(V::add(low, V::mul(square, middle)), V::mul(V::mul(square, square), high));
  const auto e = V::mul(sum, V::power_of_two(rounded));
  const auto u = V::mul(e, V::add(e, V::all(2.0f)));
  return V::div(V::mul(z, u), V::add(u, V::all(2.0f)));
}

template <class V>
inline float sum_of(const typename V::F32 (&sums)[kGroup / V::kLanes]) {
  alignas(64) float lanes[kGroup];
#pragma GCC unroll 16
  for (int v = 0; v < kGroup / V::kLanes; ++v) V::store(lanes + v * V::kLanes, sums[v]);
  for (int half = kGroup / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

// The relation of a query token, which `products` is of, with a pair of document tokens given by their halves; without its constant.
template <class V>
inline float relate(const RelationTask& task, const float* before, const float* after, const float* products) {
  constexpr int kEach = kGroup / V::kLanes;
  typename V::F32 squares[kEach], sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) squares[v] = sums[v] = V::all(0);
  for (int64_t k = 0; k < task.width; k += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const auto x = V::add(V::load(before + k + v * V::kLanes), V::load(after + k + v * V::kLanes));
      squares[v] = V::add(squares[v], V::mul(x, x));
    }
  const auto inverse = V::all(1 / std::sqrt(sum_of<V>(squares) / float(task.dim) + 1e-5f));
  for (int64_t k = 0; k < task.width; k += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const int64_t at = k + v * V::kLanes;
      const auto x = V::mul(V::add(V::load(before + at), V::load(after + at)), inverse);
      const auto hidden = mish<V>(V::add(V::mul(x, V::load(task.scale + at)), V::load(task.shift + at)));
      sums[v] = V::add(sums[v], V::mul(hidden, V::load(products + at)));
    }
  return sum_of<V>(sums);
}

// One half of a token, made of its decoded vector when it is first asked for.
template <class V>
inline const float* half_of(const RelationTask& task, const RelationScratch& scratch, int64_t first, int64_t j, bool second) {
  float* half = (second ? scratch.after : scratch.before) + j * task.width;
  const uint8_t flag = second ? 2 : 1;
  if (scratch.made[j] & flag) return half;
  scratch.made[j] |= flag;
  const int64_t token = first + j;
  const int per_byte = 8 / task.decoder.nbits;
  const uint8_t* packed = task.shard.residuals + token * task.decoder.packed_bytes;
  const float* centroid = task.centroids + code_of(task.shard, token) * task.dim;
  float scales[2], length;
  V::to_floats(task.shard.scales + 2 * token, 2, scales);
  for (int64_t b = 0; b < task.decoder.packed_bytes; ++b)
    for (int k = 0; k < per_byte; ++k) {
      const int64_t d = b * per_byte + k;
      scratch.vector[d] = scales[0] * centroid[d] + scales[1] * task.values[packed[b] * per_byte + k];
    }
  to_words<V>(scratch.vector, 1, task.dim, 2 * task.pairs, scratch.words, &length);
  word_products<V>({scratch.words, 2 * task.pairs, 1, second ? task.after : task.before, task.width, task.pairs,
                    second ? task.after_scales : task.before_scales, nullptr, nullptr, nullptr}, half, 0, 1);
  for (int64_t k = 0; k < task.width; ++k) half[k] = half[k] * length + (second ? task.bias[k] : 0.0f);
  return half;
}

// Every score of a document, and for each query token the document tokens that can win.
template <class V>
inline void find_candidates(const RelationTask& task, const RelationScratch& scratch, int64_t first, int64_t last, int64_t lanes) {
  typedef typename V::Half W;  // its lanes divide any query's
  const int64_t count = last - first;
  fill(scratch.best, lanes, -INFINITY);
  for (int64_t j = 0; j < count; ++j)
    for (int64_t lane = 0; lane < lanes; lane += W::kLanes)
      W::store(scratch.best + lane, W::max(W::load(scratch.best + lane), W::load(scratch.all + j * lanes + lane)));
  for (int64_t i = 0; i < lanes; ++i) {
    scratch.num_candidates[i] = 0;
    scratch.least[i] = i < task.num_tokens ? scratch.best[i] - (task.upper[i] - task.lower[i]) : INFINITY;
  }
  for (int64_t j = 0; j < count; ++j)
    for (int64_t lane = 0; lane < lanes; lane += W::kLanes)
      for (uint32_t mask = W::at_least(W::load(scratch.all + j * lanes + lane), W::load(scratch.least + lane)); mask; mask &= mask - 1) {
        const int64_t i = lane + __builtin_ctz(mask);
        scratch.candidates[i * scratch.tokens + scratch.num_candidates[i]++] = int32_t(j);
      }
}

// The score of a document whose candidates are known: query tokens are aligned one after another, ties to the first token.
template <class V>
inline float align(const RelationTask& task, const RelationScratch& scratch, int64_t first, int64_t lanes) {
  double total = 0;
  int64_t previous = 0;
  for (int64_t i = 0; i < task.num_tokens; ++i) {
    const int32_t* candidates = scratch.candidates + i * scratch.tokens;
    const auto cosine = [&](int64_t j) { return scratch.all[j * lanes + i]; };
    int64_t nearest = candidates[0];
    for (int64_t c = 1; c < scratch.num_candidates[i]; ++c)
      if (cosine(candidates[c]) > cosine(nearest)) nearest = candidates[c];
    int64_t winner = nearest;
    float best = cosine(nearest);
    if (i) {
      const float* before = half_of<V>(task, scratch, first, previous, false);
      const float* products = task.products + i * task.width;
      const auto value = [&](int64_t j) {
        return cosine(j) + (relate<V>(task, before, half_of<V>(task, scratch, first, j, true), products) + task.constants[i]);
      };
      best = value(nearest);
      for (int64_t c = 0; c < scratch.num_candidates[i]; ++c) {
        const int64_t j = candidates[c];
        if (j == nearest || cosine(j) + task.upper[i] < best) continue;
        const float mine = value(j);
        if (mine > best || (mine == best && j < winner)) best = mine, winner = j;
      }
    }
    if (task.shard.weights) {
      float weight;
      V::to_floats(task.shard.weights + first + winner, 1, &weight);
      best += weight * cosine(winner);
    }
    total += double(task.query.weights[i]) * best;
    previous = task.by_cosine ? nearest : winner;
  }
  return float(total);
}

template <class V>
void relation_maxsim(const RelationTask& task, int64_t begin, int64_t end, const RelationScratch& scratch) {
  PackedQuery query = task.query;
  query.all = scratch.all;
  fill(task.scores + begin, end - begin, -INFINITY);
  over_blocks<V, kAll>(task.shard, task.decoder, &query, 1, task.documents, begin, end, scratch.rows, [&](const Block& block) {
    std::memset(scratch.made, 0, block.last - block.first);
    find_candidates<V>(task, scratch, block.first, block.last, query.lanes);
    task.scores[block.place] = align<V>(task, scratch, block.first, query.lanes);
  });
}
