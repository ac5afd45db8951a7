// TRIAL from codes and residuals (docs/algorithms.md#54-exact-evaluation-in-fewer-steps); a part of loops.h.
//
// Most query tokens match the document token with the best cosine, the nearest token. Relations are therefore computed in three steps:
// 1. The relations of the nearest tokens, for several documents together.
// 2. The relations of the candidates: tokens that could still be the match, because no relation of query token i is above upper[i].
// 3. If a query token matches another token than the nearest, the relations of the next query token are computed again.
// The result equals that of comparing all pairs. `nearest_tokens` limits the candidates of a query token to the document tokens with the best
// products with the query token's selector. The nearest token is then the first of these.
//
// The contribution of a token to the hidden layer is its product with the rows of the first layer, which are packed like a query. The
// rest is fixed-point arithmetic with 16 bits, so sums are exact.

constexpr int kPairs = 32;        // pairs whose relations are computed together, to hide the latency of the square root

struct Pair {                     // the halves of two document tokens, and the query token's product vector
  const int16_t* before;
  const int16_t* after;
  const int16_t* products;
};

struct Inverses {                 // inverse root mean squares of pairs, as a shift and a factor of words
  int32_t shifts[kPairs];
  int32_t fractions[kPairs];      // each factor twice, as two words

  // Return whether any pair needs a shift. Usual pairs do not, because their hidden layers are not much shorter than the longest.
  bool set(const float* inverse, int64_t count) {
    int32_t most = 0, bits[kPairs];
    std::memcpy(bits, inverse, count * sizeof(float));
    for (int64_t c = 0; c < count; ++c) most = std::max(most, bits[c]);
    const int32_t one = 0x3f800000;
    if (most < one) {
      for (int64_t c = 0; c < count; ++c) fractions[c] = 0x10001 * int32_t(inverse[c] * 32768);
      return false;
    }
    for (int64_t c = 0; c < count; ++c) {
      shifts[c] = std::clamp((bits[c] >> 23) - 126, 0, 15);  // bits[c] >> 23 is 126 for values from 1/2 to below 1
      float rest;
      bits[c] -= shifts[c] << 23;
      std::memcpy(&rest, bits + c, 4);
      fractions[c] = 0x10001 * int32_t(std::min(rest * 32768, 32767.0f));
    }
    return true;
  }
};

// Call add(k, sums) for each register of words of a hidden layer, starting at word k, and store the totals of the four sums.
template <class V, class Add>
inline void four_totals(int64_t width, int32_t* totals, const Add& add) {
  typename V::I32 sums[4];
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) sums[p] = V::zero();
  for (int64_t k = 0; k < width; k += 2 * V::kLanes) add(k, sums);
  V::store_totals(totals, sums[0], sums[1], sums[2], sums[3]);
}

template <class V>
inline typename V::I32 hidden_of(const Pair& pair, int64_t k) { return V::add_words(V::load_i32(pair.before + k), V::load_i32(pair.after + k)); }

template <class V, class Shifted>
inline void hidden_products(const RelationTask& task, const Pair* pairs, int64_t count, const Inverses& inverses, const Shifted& shifted,
                            int32_t* relations) {
  const Mish<V> mish(task.lines, task.lines_a_unit);
  for (int64_t c = 0; c < count; c += 4)
    four_totals<V>(task.width, relations + c, [&](int64_t k, auto& sums) {
      const auto scale = V::load_i32(task.scale + k), shift = V::load_i32(task.shift + k);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const auto z = V::multiply_fractions(shifted(hidden_of<V>(pairs[c + p], k), c + p), V::broadcast(inverses.fractions + c + p));
        const auto y = V::add_saturated(V::multiply_fractions(z, scale), shift);
        sums[p] = V::dot_words(sums[p], mish(y), V::load_i32(pairs[c + p].products + k));
      }
    });
}

// Compute the relations, without constants, of at most kPairs pairs. Arrays have memory up to a multiple of 4 pairs.
template <class V>
inline void relate(const RelationTask& task, Pair* pairs, int64_t count, int32_t* relations) {
  if (!count) return;
  alignas(64) int32_t squares[kPairs];
  alignas(64) float inverse[kPairs];
  for (; count % 4; ++count) pairs[count] = pairs[count - 1];
  for (int64_t c = 0; c < count; c += 4)
    four_totals<V>(task.width, squares + c, [&](int64_t k, auto& sums) {
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const auto x = hidden_of<V>(pairs[c + p], k);
        sums[p] = V::dot_words(sums[p], x, x);
      }
    });
  const auto inverse_dim = V::all(1 / float(task.dim)), epsilon = V::all(task.epsilon), unit = V::all(float(1 << task.norm_bits));
  for (int64_t c = 0; c < count; c += V::kLanes) {
    const auto mean = V::mul(V::to_float(V::load_i32(squares + c)), inverse_dim);
    V::store(inverse + c, V::div(unit, V::root(V::add(V::max(mean, V::all(0)), epsilon))));
  }
  Inverses inverses;
  if (!inverses.set(inverse, count)) return hidden_products<V>(task, pairs, count, inverses, [](auto x, int64_t) { return x; }, relations);
  hidden_products<V>(task, pairs, count, inverses, [&](auto x, int64_t c) { return V::shift_left_words(x, inverses.shifts[c]); }, relations);
}

// Call run(lane, row, tokens, product) for the products of some rows with 32 lanes of a query at a time, from lane `begin` to `end`.
// product(t, v) is vector v of row + t. A matrix unit computes the next products while run uses the previous ones.
template <class V, class Run>
inline void over_products(const Decoder& decoder, const PackedQuery& query, const uint8_t* rows, int64_t count, int64_t begin, int64_t end,
                          const Run& run) {
  if constexpr (V::kMatrix) {
    alignas(64) Products products[2];
    for (int64_t lane = begin; lane < end + kLanesTogether; lane += kLanesTogether) {
      const int buffer = lane / kLanesTogether % 2;
      if (lane < end) V::multiply(rows, decoder.stride, query, lane, products[buffer]);
      if (lane > begin) run(lane - kLanesTogether, 0, count, [&](int64_t t, int v) { return V::load_i32(products[1 - buffer][v * V::kLanes / kGroup][t]); });
    }
  } else {
    constexpr int kTile = V::tile(kLanesTogether);
    for (int64_t lane = begin; lane < end; lane += kLanesTogether)
      for (int64_t row = 0; row < count; row += kTile) {
        typename V::I32 sums[kTile][kLanesTogether / V::kLanes];
        multiply_bytes<V, kLanesTogether>(rows + row * decoder.stride, decoder.stride, decoder.quads, query, lane, sums);
        run(lane, row, count - row < kTile ? count - row : kTile, [&](int64_t t, int v) { return sums[t][v]; });
      }
  }
}

// Return a positive number as a word, in both halves of 32 bits.
inline int32_t twice_fraction_of(float value) { return 0x10001 * int32_t(value < 32767 ? value + 0.5f : 32767.0f); }

// Compute the halves of all waiting tokens, from lane `begin` of the first layer to `end`.
template <class V>
inline void make_halves(const RelationTask& task, RelationScratch& scratch, int64_t begin, int64_t end) {
  const PackedQuery& layer = task.layer;
  for (int64_t first = 0; first < scratch.num_asked; first += kRows) {
    const int64_t some = at_most_a_block(scratch.num_asked - first);
    const AskedToken* asked = scratch.asked + first;
    int32_t scales[2 * kRows];
    const int16_t* centroids[kRows];
    int16_t* halves[kRows];
    for (int64_t t = 0; t < some; ++t) {
      const int64_t token = asked[t].token, bytes = task.decoder.packed_bytes;
      float floats[2];
      scales_of<V>(task.shard, token, 1, floats);
      scales[2 * t] = twice_fraction_of(floats[0] * 16384);
      scales[2 * t + 1] = twice_fraction_of(floats[1] * task.residual_unit);
      centroids[t] = task.centroids + code_of(task.shard, token) * layer.lanes;
      halves[t] = scratch.halves + asked[t].place * layer.lanes;
      decode<V>(task.decoder, task.shard.residuals + token * bytes, 1, scratch.rows + t * task.decoder.stride, nullptr, 0);
    }
    const auto bits = V::all_i32(task.product_bits);
    over_products<V>(task.decoder, layer, scratch.rows, some, begin, end, [&](int64_t lane, int64_t row, int64_t tokens, const auto& product) {
      constexpr int kVectors = kLanesTogether / V::kLanes / 2;
      typename V::I32 bias[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) bias[v] = V::load_i32(task.bias + lane + 2 * v * V::kLanes);
      for (int64_t t = row; t < row + tokens; ++t)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = lane + 2 * v * V::kLanes;
          const auto words = V::to_words(product(t - row, v), product(t - row, v + kVectors), bits);
          const auto residual = V::multiply_fractions(words, V::broadcast(scales + 2 * t + 1));
          const auto both = V::add_words(residual, V::multiply_fractions(V::load_i32(centroids[t] + at), V::broadcast(scales + 2 * t)));
          V::store_i32(reinterpret_cast<int32_t*>(halves[t] + at), V::add_words(V::add_words(both, both), bias[v]));
        }
    });
  }
  scratch.num_asked = 0;
}

// Documents that are aligned together. Their cosines are known; the halves of their tokens are computed when they are needed.
template <class V>
struct Aligning {
  const RelationTask& task;
  RelationScratch& scratch;

  float cosine(const Alignment& document, int64_t i, int64_t j) const { return document.all[j * task.query.lanes + i]; }

  // Add a token to the tokens that wait for their halves, unless these halves are computed already or the token waits already.
  void ask(const Alignment& document, int64_t j, uint8_t which) const {
    const int64_t place = document.at + j;
    if ((scratch.made[place] & which) == which) return;
    scratch.made[place] |= which;
    const int16_t* centroid = task.centroids + code_of(task.shard, document.first + j) * task.layer.lanes;
    if (which & kBefore) fetch_rows(centroid, 2 * task.width, 0, 1);
    if (which & kAfter) fetch_rows(centroid + task.width, 2 * task.width, 0, 1);
    scratch.asked[scratch.num_asked++] = {document.first + j, place};
  }

  void make_before() const { make_halves<V>(task, scratch, 0, task.width); }
  void make_after() const { make_halves<V>(task, scratch, task.width, task.layer.lanes); }
  void make_both() const { make_halves<V>(task, scratch, 0, task.layer.lanes); }

  Pair pair(const Alignment& document, int64_t i, int64_t previous, int64_t j) const {
    const int16_t* halves = scratch.halves + document.at * task.layer.lanes;
    return {halves + previous * task.layer.lanes, halves + j * task.layer.lanes + task.width, task.products + i * task.width};
  }

  float value(const Alignment& document, int64_t i, int64_t j, int32_t relation) const {
    return cosine(document, i, j) + (float(relation) * task.factors[i] + task.constants[i]);
  }

  // Add a document with known cosines. `closest` holds the document token of the best cosine of each query token, and `selected` that of the
  // best product with the selector.
  Alignment take(const Block& block, const float* closest, const float* selected, int64_t at) const {
    const int64_t lanes = task.query.lanes, number = scratch.num_documents++;
    Alignment& document = scratch.documents[number];
    document = {block.place, block.first, block.last - block.first, at, scratch.all + at * lanes, scratch.ranking + at * lanes,
                scratch.nearest + number * lanes, scratch.origins + number * lanes,
                scratch.values + number * lanes, scratch.least + number * lanes, scratch.candidates + at * lanes,
                scratch.num_candidates + number * lanes, scratch.num_listed + number * lanes, scratch.relations + number * lanes * kFew};
    std::memset(scratch.made + at, 0, document.count);
    for (int64_t i = 0; i < task.num_tokens; ++i) {
      document.nearest[i] = int32_t(i ? selected[i] : closest[i]);  // the first query token has no relation
      document.origins[i] = i == 0 && task.from_first_token ? 0 : task.by_cosine ? int32_t(closest[i]) : document.nearest[i];
      ask(document, document.nearest[i], kBefore | kAfter);
      if (document.origins[i] != document.nearest[i]) ask(document, document.origins[i], kBefore | kAfter);
    }
    return document;
  }

  void begin_at(const Alignment& document, int64_t i, int32_t relation) const {
    document.values[i] = value(document, i, document.nearest[i], relation);
    document.least[i] = document.values[i] - task.upper[i];
  }

  // List, for each query token, the document tokens except the nearest with a score of at least `least`, in order. Call each(j) for each
  // token of any list. `scores` [m, L] are those of the document's tokens.
  template <class Found>
  void list_candidates(const Alignment& document, const float* scores, const float* least, const Found& each) const {
    const int64_t lanes = task.query.lanes;
    std::memset(document.num_candidates, 0, lanes * sizeof(int32_t));
    over_lanes<V>(lanes, [&](auto registers, auto some, int64_t lane) {
      using W = decltype(registers);
      constexpr int kVectors = decltype(some)::value / W::kLanes;
      typename W::F32 lowest[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) lowest[v] = W::load(least + lane + v * W::kLanes);
      int64_t found = 0;         // number of candidates of any query token; they are stored without a branch
      for (int64_t j = 0; j < document.count; ++j) {
        uint32_t mask = 0;
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) mask |= W::at_least(W::load(scores + j * lanes + lane + v * W::kLanes), lowest[v]) << (v * W::kLanes);
        scratch.found[found] = int32_t(j);
        scratch.masks[found] = mask;
        found += mask != 0;
      }
      for (int64_t f = 0; f < found; ++f) {
        const int32_t j = scratch.found[f];
        each(j);
        for (uint32_t mask = scratch.masks[f]; mask; mask &= mask - 1) {
          const int64_t i = lane + __builtin_ctz(mask);
          if (document.nearest[i] != j) document.candidates[i * document.count + document.num_candidates[i]++] = j;
        }
      }
    });
  }

  // Set the last row of `top`, for each query token, to a score that `nearest_tokens` document tokens or a few more reach. It is the best but
  // `nearest_tokens` - 1 of the best scores of groups of tokens.
  void find_cuts(const Alignment& document) const {
    const int64_t lanes = task.query.lanes, rows = task.nearest_tokens, group = std::max<int64_t>(1, document.count / (4 * rows));
    fill(scratch.top, rows * lanes, -INFINITY);
    over_lanes<V>(lanes, [&](auto registers, auto some, int64_t lane) {
      using W = decltype(registers);
      constexpr int kVectors = decltype(some)::value / W::kLanes;
      for (int64_t first = 0; first < document.count; first += group) {
        const int64_t last = std::min(first + group, document.count);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          const float* scores = document.ranking + lane + v * W::kLanes;
          auto value = W::load(scores + first * lanes);
          for (int64_t j = first + 1; j < last; ++j) value = W::max(value, W::load(scores + j * lanes));
          float* row = scratch.top + lane + v * W::kLanes;
          if (!W::at_least(value, W::load(row + (rows - 1) * lanes))) continue;
          for (int64_t r = 0; r < rows; ++r, row += lanes) {
            const auto kept = W::load(row);
            W::store(row, W::max(kept, value));
            value = W::min(kept, value);
          }
        }
      }
    });
  }

  // Shorten the list of query token i to the best `count` scores; ties go to the first document token.
  void shorten(const Alignment& document, int64_t i, int64_t count) const {
    int32_t* list = document.candidates + i * document.count;
    int32_t& listed = document.num_candidates[i];
    const auto better = [&](int32_t a, int32_t b) {
      const float first = document.ranking[a * task.query.lanes + i], second = document.ranking[b * task.query.lanes + i];
      return first > second || (first == second && a < b);
    };
    if (listed > count + kFew) std::nth_element(list, list + count, list + listed, better), listed = int32_t(count);
    for (; listed > count; --listed) std::iter_swap(std::max_element(list, list + listed, better), list + listed - 1);
  }

  // List the nearest tokens of each query token: `nearest_tokens` of them, including the nearest.
  void list_nearest(const Alignment& document) const {
    const int64_t lanes = task.query.lanes, rows = task.nearest_tokens;
    float* cuts = scratch.top;
    if (rows < document.count) {
      find_cuts(document);
      cuts += (rows - 1) * lanes;
    } else {
      fill(cuts, lanes, -INFINITY);
    }
    cuts[0] = INFINITY;          // the first query token has no relation
    fill(cuts + task.num_tokens, lanes - task.num_tokens, INFINITY);
    list_candidates(document, document.ranking, cuts, [](int64_t) {});
    for (int64_t i = 1; i < task.num_tokens; ++i) {
      shorten(document, i, rows - 1);
      document.num_listed[i] = document.num_candidates[i];
    }
  }

  // Put the listed tokens of query token i that could be the match before the others, and ask for their halves.
  void choose_candidates(const Alignment& document, int64_t i) const {
    int32_t* list = document.candidates + i * document.count;
    int32_t& chosen = document.num_candidates[i] = 0;
    for (int64_t c = 0; c < document.num_listed[i]; ++c) {
      if (cosine(document, i, list[c]) < document.least[i]) continue;
      ask(document, list[c], kAfter);
      std::swap(list[c], list[chosen++]);
    }
  }

  // Compute the scores of matches with the nearest tokens, and find the candidates that could score higher.
  void begin(const Alignment& document) const {
    fill(document.least, task.query.lanes, INFINITY);
    for (int64_t begin = 1; begin < task.num_tokens; begin += kPairs) {
      Pair pairs[kPairs];
      int32_t relations[kPairs];
      const int64_t some = std::min<int64_t>(kPairs, task.num_tokens - begin);
      for (int64_t t = 0; t < some; ++t) pairs[t] = pair(document, begin + t, document.origins[begin + t - 1], document.nearest[begin + t]);
      relate<V>(task, pairs, some, relations);
      for (int64_t t = 0; t < some; ++t) begin_at(document, begin + t, relations[t]);
    }
    if (!task.nearest_tokens) return list_candidates(document, document.all, document.least, [&](int64_t j) { ask(document, j, kAfter); });
    list_nearest(document);
    for (int64_t i = 1; i < task.num_tokens; ++i) choose_candidates(document, i);
  }

  // The same for one query token, if its relations do not start from the expected token.
  void begin_again(const Alignment& document, int64_t i, int64_t previous) const {
    ask(document, previous, kBefore);
    make_before();
    const int64_t nearest = document.nearest[i];
    Pair with_nearest[4] = {pair(document, i, previous, nearest)};
    int32_t relations[4];
    relate<V>(task, with_nearest, 1, relations);
    begin_at(document, i, relations[0]);
    if (task.nearest_tokens) return choose_candidates(document, i), make_after();
    int32_t& found = document.num_candidates[i] = 0;
    for (int64_t j = 0; j < document.count; ++j) {
      if (cosine(document, i, j) < document.least[i] || j == nearest) continue;
      document.candidates[i * document.count + found++] = int32_t(j);
      ask(document, j, kAfter);
    }
    make_after();
  }

  static void keep_better(float value, int64_t token, float& best, int64_t& winner) {  // ties go to the first document token
    if (value > best || (value == best && token < winner)) best = value, winner = token;
  }

  // Compare the next candidates, up to kPairs, with the best so far. Return the position after them.
  int64_t compare(const Alignment& document, int64_t i, int64_t previous, int64_t at, float& best, int64_t& winner) const {
    Pair pairs[kPairs];
    int32_t tokens[kPairs], relations[kPairs];
    int64_t some = 0;
    for (; at < document.num_candidates[i] && some < kPairs; ++at) {
      const int32_t j = document.candidates[i * document.count + at];
      if (cosine(document, i, j) + task.upper[i] < best) continue;
      tokens[some] = j;
      pairs[some++] = pair(document, i, previous, j);
    }
    relate<V>(task, pairs, some, relations);
    for (int64_t t = 0; t < some; ++t) keep_better(value(document, i, tokens[t], relations[t]), tokens[t], best, winner);
    return at;
  }

  // Compute the relations of query tokens with few candidates, many together, assuming that relations start from the expected tokens.
  void relate_few(const Alignment& document) const {
    Pair pairs[kPairs];
    int32_t relations[kPairs], *places[kPairs];
    int64_t some = 0;
    const auto finish = [&] {
      relate<V>(task, pairs, some, relations);
      for (int64_t t = 0; t < some; ++t) *places[t] = relations[t];
      some = 0;
    };
    for (int64_t i = 1; i < task.num_tokens; ++i)
      for (int64_t c = 0; c < document.num_candidates[i] && document.num_candidates[i] <= kFew; ++c) {
        places[some] = document.relations + i * kFew + c;
        pairs[some++] = pair(document, i, document.origins[i - 1], document.candidates[i * document.count + c]);
        if (some == kPairs) finish();
      }
    finish();
  }

  // Align the query tokens in order, and return the document's score.
  float score(const Alignment& document) const {
    relate_few(document);
    double total = 0;
    int64_t previous = 0;
    for (int64_t i = 0; i < task.num_tokens; ++i) {
      const int64_t nearest = document.nearest[i];
      const bool as_expected = i == 0 || previous == document.origins[i - 1], known = as_expected && document.num_candidates[i] <= kFew;
      if (!as_expected) begin_again(document, i, previous);
      int64_t winner = nearest;
      float best = i ? document.values[i] : cosine(document, i, nearest);
      const int32_t* candidates = document.candidates + i * document.count;
      if (known)
        for (int64_t c = 0; c < document.num_candidates[i]; ++c)
          keep_better(value(document, i, candidates[c], document.relations[i * kFew + c]), candidates[c], best, winner);
      else
        for (int64_t at = 0; at < document.num_candidates[i];) at = compare(document, i, previous, at, best, winner);
      if (task.shard.weights) {
        float weight;
        V::to_floats(task.shard.weights + document.first + winner, 1, &weight);
        best += weight * cosine(document, i, winner);
      }
      total += double(task.query.weights[i]) * best;
      previous = task.by_cosine || (i == 0 && task.from_first_token) ? document.origins[i] : winner;
    }
    return float(total);
  }
};

// Return the end of the documents, starting at `begin`, that are aligned together: at least one document.
inline int64_t end_of_some(const RelationTask& task, int64_t begin, int64_t end) {
  int64_t tokens = 0, place = begin;
  for (; place < end && place < begin + kDocumentsTogether; ++place) {
    const int64_t number = number_of(task.documents, place);
    tokens += task.shard.doc_offsets[number + 1] - task.shard.doc_offsets[number];
    if (place > begin && tokens > kTogether) break;
  }
  return place;
}

template <class V>
void relation_maxsim(const RelationTask& task, int64_t begin, int64_t end, RelationScratch& scratch) {
  fill(task.scores + begin, end - begin, -INFINITY);
  const Aligning<V> aligning = {task, scratch};
  for (int64_t next; begin < end; begin = next) {
    next = end_of_some(task, begin, end);
    PackedQuery queries[2] = {task.query, task.selectors};
    const int64_t num_queries = task.has_selectors ? 2 : 1;
    queries[0].all = scratch.all;
    queries[1].all = scratch.ranking;
    scratch.num_documents = scratch.num_asked = 0;
    over_blocks<V, kAll>(task.shard, task.decoder, queries, num_queries, kRows, task.documents, begin, next, scratch.rows, [&](const Block& block) {
      const int64_t at = (queries[0].all - scratch.all) / task.query.lanes;
      const Alignment document = aligning.take(block, queries[0].factors, queries[num_queries - 1].factors, at);
      for (PackedQuery& query : queries) query.all += document.count * query.lanes;
    });
    V::begin();
    aligning.make_both();
    for (int64_t d = 0; d < scratch.num_documents; ++d) aligning.begin(scratch.documents[d]);
    aligning.make_after();
    for (int64_t d = 0; d < scratch.num_documents; ++d) task.scores[scratch.documents[d].place] = aligning.score(scratch.documents[d]);
    V::end();
  }
}
