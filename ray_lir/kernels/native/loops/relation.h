// TRIAL from codes and residuals (ALGORITHMS 5.4); a part of loops.h.
//
// Most query tokens go to the document token of the best cosine, the nearest. So the relations of the nearest are computed first, in one
// batch a document; then those of the tokens that could still win, since no relation of query token i is above upper[i]; and where a
// query token went to another one after all, the next token's are computed again. What wins is what wins of all pairs.

constexpr int kPairs = 32;  // pairs whose relations are computed together, so that none waits for the root of its own variance

struct Pair {                   // of document tokens, by their halves, and the query token whose relation with them is wanted
  const float* before;
  const float* after;
  const float* products;
};

template <class V>
inline float squares_of(const RelationTask& task, const Pair& pair) {
  constexpr int kEach = kGroup / V::kLanes;
  typename V::F32 squares[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) squares[v] = V::all(0);
  for (int64_t k = 0; k < task.width; k += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const auto x = V::add(V::load(pair.before + k + v * V::kLanes), V::load(pair.after + k + v * V::kLanes));
      squares[v] = V::add(squares[v], V::mul(x, x));
    }
  return V::total(squares);
}

template <class V>
inline float hidden_product(const RelationTask& task, const Pair& pair, float factor) {
  constexpr int kEach = kGroup / V::kLanes;
  typedef Four<V> W;
  const auto inverse = W::all(factor);
  typename V::F32 sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) sums[v] = V::all(0);
  for (int64_t k = 0; k < task.width; k += 4 * kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const int64_t at = k + v * V::kLanes;
      const auto x = W::mul(W::add(W::load(pair.before + at), W::load(pair.after + at)), inverse);
      const auto hidden = mish<W>(W::add(W::mul(x, W::load(task.scale + at)), W::load(task.shift + at)));
      const auto worth = W::mul(hidden, W::load(pair.products + at));
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) sums[v] = V::add(sums[v], worth.parts[p]);
    }
  return V::total(sums);
}

// Relations without their constants, of at most kPairs pairs.
template <class V>
inline void relate(const RelationTask& task, const Pair* pairs, int64_t count, float* relations) {
  float inverses[kPairs];
  for (int64_t c = 0; c < count; ++c) inverses[c] = squares_of<V>(task, pairs[c]);
  for (int64_t c = 0; c < count; ++c) inverses[c] = 1 / std::sqrt(inverses[c] / float(task.dim) + 1e-5f);
  for (int64_t c = 0; c < count; ++c) relations[c] = hidden_product<V>(task, pairs[c], inverses[c]);
}

template <int EACH>
inline void copy_values(const uint8_t* packed, int64_t begin, int64_t count, const float* values, float* to) {
  for (int64_t b = begin; b < count; ++b) std::memcpy(to + b * EACH, values + packed[b] * EACH, EACH * sizeof(float));
}

template <class V>
inline void decode_vector(const RelationTask& task, int64_t token, float* __restrict centroid, float* __restrict vector) {
  const uint8_t* packed = task.shard.residuals + token * task.decoder.packed_bytes;
  const int64_t bytes = task.decoder.packed_bytes;
  int64_t done = 0;
  if constexpr (V::kLanes == kGroup)
    if (task.decoder.nbits == 4)
      for (; done + 8 <= bytes; done += 8) V::expand4(packed + done, task.buckets, vector + 2 * done);
  switch (task.decoder.nbits) {
    case 1: copy_values<8>(packed, 0, bytes, task.values, vector); break;
    case 2: copy_values<4>(packed, 0, bytes, task.values, vector); break;
    case 4: copy_values<2>(packed, done, bytes, task.values, vector); break;
    default: copy_values<1>(packed, 0, bytes, task.values, vector);
  }
  float scales[2];
  V::to_floats(task.shard.scales + 2 * token, 2, scales);
  V::to_floats(task.centroids + code_of(task.shard, token) * task.dim, task.dim, centroid);
  for (int64_t d = 0; d < task.dim; ++d) vector[d] = scales[0] * centroid[d] + scales[1] * vector[d];
}

// Some tokens' products with the columns of a half: rows of floats, the first `count` of which are looked at.
template <class V>
inline void multiply_half(const RelationTask& task, RelationScratch& scratch, const RelationHalf& half, bool second, int64_t count,
                          float* rows) {
  if constexpr (V::kMatrix) {
    V::multiply_half(task, scratch, half, second, count, rows);
  } else {
    word_products<V>({scratch.words, task.stride, kRows, half.columns, task.width, task.pairs, half.scales, nullptr, nullptr, nullptr}, rows, 0,
                     (count + 7) / 8 * 8);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t k = 0; k < task.width; ++k) rows[t * task.width + k] = rows[t * task.width + k] * scratch.lengths[t] + half.bias[k];
  }
}

enum Which { kBefore = 1, kAfter = 2 };

// Halves of tokens of a document that have none yet: what each adds to the hidden layer as the first of a pair, as the second, or both.
template <class V>
inline void make_halves(const RelationTask& task, RelationScratch& scratch, int64_t first, const int32_t* tokens, int64_t count, int which) {
  for (int64_t t = 0; t < count; ++t) {
    const Score* centroid = task.centroids + code_of(task.shard, first + tokens[t]) * task.dim;
    for (int64_t d = 0; d < task.dim; d += 32) __builtin_prefetch(centroid + d);
  }
  for (int64_t begin = 0; begin < count; begin += kRows) {
    const int64_t some = at_most_a_block(count - begin);
    for (int64_t t = 0; t < some; ++t) {
      decode_vector<V>(task, first + tokens[begin + t], scratch.centroid, scratch.vector);
      to_words<V>(scratch.vector, 1, task.dim, task.stride, scratch.words + t * task.stride, scratch.lengths + t);
    }
    if constexpr (V::kMatrix) V::split_words(scratch.words, some * task.stride, scratch.row_planes, kRows * task.stride);
    for (int second = 0; second < 2; ++second) {
      if (!(which & (second ? kAfter : kBefore))) continue;
      int64_t& made = scratch.num_made[second];
      for (int64_t t = 0; t < some; ++t) scratch.places[second][tokens[begin + t]] = int32_t(made + t);
      multiply_half<V>(task, scratch, second ? task.after : task.before, second, some, scratch.halves[second] + made * task.width);
      made += some;
    }
  }
}

inline const float* half_of(const RelationTask& task, RelationScratch& scratch, int64_t token, bool second) {
  return scratch.halves[second] + scratch.places[second][token] * task.width;
}

// The nearest document token of every query token, the first of equals.
template <class V>
inline void find_nearest(RelationScratch& scratch, int64_t count, int64_t lanes) {
  over_lanes<V>(lanes, [&](auto registers, auto some, int64_t lane) {
    using W = decltype(registers);
    constexpr int kVectors = decltype(some)::value / W::kLanes;
    typename W::F32 best[kVectors], where[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = W::all(-INFINITY), where[v] = W::all(0);
    auto number = W::all(0);
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) W::keep_larger(best[v], where[v], W::load(scratch.all + j * lanes + lane + v * W::kLanes), number);
      number = W::add(number, W::all(1));
    }
    float places[decltype(some)::value];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) W::store(places + v * W::kLanes, where[v]);
    for (int i = 0; i < decltype(some)::value; ++i) scratch.nearest[lane + i] = int32_t(places[i]);
  });
}

// For each query token the document tokens beside the nearest whose cosine is at least `least`.
template <class V>
inline void find_candidates(RelationScratch& scratch, int64_t count, int64_t lanes) {
  std::memset(scratch.num_candidates, 0, lanes * sizeof(int64_t));
  over_lanes<V>(lanes, [&](auto registers, auto some, int64_t lane) {
    using W = decltype(registers);
    constexpr int kVectors = decltype(some)::value / W::kLanes;
    for (int64_t j = 0; j < count; ++j) {
      uint32_t mask = 0;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = lane + v * W::kLanes;
        mask |= W::at_least(W::load(scratch.all + j * lanes + at), W::load(scratch.least + at)) << (v * W::kLanes);
      }
      for (; mask; mask &= mask - 1) {
        const int64_t i = lane + __builtin_ctz(mask);
        if (scratch.nearest[i] != j) scratch.candidates[i * scratch.tokens + scratch.num_candidates[i]++] = int32_t(j);
      }
    }
  });
}

// A document: its scores are known, and its halves are made when they are needed.
template <class V>
struct Alignment {
  const RelationTask& task;
  RelationScratch& scratch;
  int64_t first, count, lanes;

  float cosine(int64_t i, int64_t j) const { return scratch.all[j * lanes + i]; }

  Pair pair(int64_t i, int64_t previous, int64_t j) const {
    return {half_of(task, scratch, previous, false), half_of(task, scratch, j, true), task.products + i * task.width};
  }

  float value(int64_t i, int64_t j, float relation) const { return cosine(i, j) + (relation + task.constants[i]); }

  // Notes a token whose halves are to be made, unless they are or will be.
  void ask(int64_t j, int which, int64_t& asked) const {
    int32_t* places = scratch.places[which == kAfter];
    if (places[j] != -1) return;
    places[j] = -2;
    scratch.asked[asked++] = int32_t(j);
  }

  void ask_candidates(int64_t i, int64_t& asked) const {
    for (int64_t c = 0; c < scratch.num_candidates[i]; ++c) ask(scratch.candidates[i * scratch.tokens + c], kAfter, asked);
  }

  void make(int which, int64_t asked) const { make_halves<V>(task, scratch, first, scratch.asked, asked, which); }

  void begin_at(int64_t i, float relation) const {
    scratch.values[i] = value(i, scratch.nearest[i], relation);
    scratch.least[i] = scratch.values[i] - task.upper[i];
  }

  // What every query token's score is if all go to the nearest, and which tokens could still win then.
  void begin() const {
    for (int second = 0; second < 2; ++second) {
      scratch.num_made[second] = 0;
      std::memset(scratch.places[second], -1, count * sizeof(int32_t));
    }
    find_nearest<V>(scratch, count, lanes);
    int64_t asked = 0;
    for (int64_t i = 0; i < task.num_tokens; ++i) ask(scratch.nearest[i], kBefore, asked);
    make(kBefore | kAfter, asked);
    for (int64_t i = 0; i < lanes; ++i) scratch.least[i] = INFINITY;
    for (int64_t begin = 1; begin < task.num_tokens; begin += kPairs) {
      Pair pairs[kPairs];
      float relations[kPairs];
      const int64_t some = std::min<int64_t>(kPairs, task.num_tokens - begin);
      for (int64_t t = 0; t < some; ++t) pairs[t] = pair(begin + t, scratch.nearest[begin + t - 1], scratch.nearest[begin + t]);
      relate<V>(task, pairs, some, relations);
      for (int64_t t = 0; t < some; ++t) begin_at(begin + t, relations[t]);
    }
    find_candidates<V>(scratch, count, lanes);
    asked = 0;
    for (int64_t i = 1; i < task.num_tokens; ++i) ask_candidates(i, asked);
    make(kAfter, asked);
  }

  // The same for one query token, after another token than the nearest.
  void begin_again(int64_t i, int64_t previous) const {
    int64_t asked = 0;
    ask(previous, kBefore, asked);
    make(kBefore, asked);
    const int64_t nearest = scratch.nearest[i];
    const Pair with_nearest = pair(i, previous, nearest);
    float relation;
    relate<V>(task, &with_nearest, 1, &relation);
    begin_at(i, relation);
    int64_t& found = scratch.num_candidates[i] = 0;
    for (int64_t j = 0; j < count; ++j)
      if (cosine(i, j) >= scratch.least[i] && j != nearest) scratch.candidates[i * scratch.tokens + found++] = int32_t(j);
    asked = 0;
    ask_candidates(i, asked);
    make(kAfter, asked);
  }

  // The best of the candidates that come next, as many as are computed together, if it is better; ties to the first document token.
  int64_t compare(int64_t i, int64_t previous, int64_t at, float& best, int64_t& winner) const {
    Pair pairs[kPairs];
    int32_t tokens[kPairs];
    float relations[kPairs];
    int64_t some = 0;
    for (; at < scratch.num_candidates[i] && some < kPairs; ++at) {
      const int32_t j = scratch.candidates[i * scratch.tokens + at];
      if (cosine(i, j) + task.upper[i] < best) continue;
      tokens[some] = j;
      pairs[some++] = pair(i, previous, j);
    }
    relate<V>(task, pairs, some, relations);
    for (int64_t t = 0; t < some; ++t) {
      const float mine = value(i, tokens[t], relations[t]);
      if (mine > best || (mine == best && tokens[t] < winner)) best = mine, winner = tokens[t];
    }
    return at;
  }

  // Query tokens are aligned one after another.
  float score() const {
    double total = 0;
    int64_t previous = 0;
    for (int64_t i = 0; i < task.num_tokens; ++i) {
      const int64_t nearest = scratch.nearest[i];
      if (i && previous != scratch.nearest[i - 1]) begin_again(i, previous);
      int64_t winner = nearest;
      float best = i ? scratch.values[i] : cosine(i, nearest);
      for (int64_t at = 0; at < scratch.num_candidates[i];) at = compare(i, previous, at, best, winner);
      if (task.shard.weights) {
        float weight;
        V::to_floats(task.shard.weights + first + winner, 1, &weight);
        best += weight * cosine(i, winner);
      }
      total += double(task.query.weights[i]) * best;
      previous = task.by_cosine ? nearest : winner;
    }
    return float(total);
  }
};

template <class V>
void relation_maxsim(const RelationTask& task, int64_t begin, int64_t end, RelationScratch& scratch) {
  PackedQuery query = task.query;
  query.all = scratch.all;
  fill(task.scores + begin, end - begin, -INFINITY);
  if constexpr (V::kMatrix) V::split_columns(task, scratch);
  over_blocks<V, kAll>(task.shard, task.decoder, &query, 1, task.documents, begin, end, scratch.rows, [&](const Block& block) {
    const Alignment<V> alignment = {task, scratch, block.first, block.last - block.first, query.lanes};
    alignment.begin();
    task.scores[block.place] = alignment.score();
  });
}
