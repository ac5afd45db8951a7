// The layers of a transformer with products of bytes (docs/algorithms.md#17-products-of-bytes); a part of loops.h.

// Replace RADIX items that are `step` apart by their sums and differences (Hadamard's matrix), for all items in each RADIX * step of them.
template <class V, int RADIX>
inline void add_and_subtract(const float* from, int64_t count, int64_t step, float* to) {
  for (int64_t first = 0; first < count; first += RADIX * step)
    for (int64_t i = first; i < first + step; i += V::kLanes) {
      typename V::F32 items[RADIX];
#pragma GCC unroll 8
      for (int j = 0; j < RADIX; ++j) items[j] = V::load(from + i + j * step);
#pragma GCC unroll 3
      for (int half = 1; half < RADIX; half *= 2)
#pragma GCC unroll 8
        for (int j = 0; j < RADIX; ++j)
          if (!(j & half)) {
            const auto item = items[j], other = items[j + half];
            items[j] = V::add(item, other), items[j + half] = V::sub(item, other);
          }
#pragma GCC unroll 8
      for (int j = 0; j < RADIX; ++j) V::store(to + i + j * step, items[j]);
    }
}

// Mix a layer's inputs, or its weights for one output: multiply them by Hadamard's matrix, and by 1 - 2/3 for three parts.
template <class V>
void mix(const float* row, int64_t inputs, float* mixed) {
  const Mixing mixing = mixing_of(inputs);
  int64_t power = 1;
  for (; power * 8 <= mixing.power; power *= 8, row = mixed) add_and_subtract<V, 8>(row, inputs, power * mixing.step, mixed);
  for (; power * 4 <= mixing.power; power *= 4, row = mixed) add_and_subtract<V, 4>(row, inputs, power * mixing.step, mixed);
  for (; power < mixing.power; power *= 2, row = mixed) add_and_subtract<V, 2>(row, inputs, power * mixing.step, mixed);
  if (!mixing.three) {
    if (row != mixed) std::copy_n(row, inputs, mixed);
    return;
  }
  const int64_t third = power * mixing.step;
  for (int64_t first = 0; first < inputs; first += 3 * third)
    for (int64_t i = first; i < first + third; i += V::kLanes) {
      const auto a = V::load(row + i), b = V::load(row + i + third), c = V::load(row + i + 2 * third);
      const auto part = V::mul(V::add(V::add(a, b), c), V::all(2.0f / 3));
      V::store(mixed + i, V::sub(a, part));
      V::store(mixed + i + third, V::sub(b, part));
      V::store(mixed + i + 2 * third, V::sub(c, part));
    }
}

// Mix rows of floats, and divide each into kLargestByte steps from its lowest to its highest value.
template <class V>
inline void quantize_rows(const float* rows, int64_t count, const QuantizedLinear& linear, const QuantizedRows& to) {
  const auto half = V::all(0.5f), limit = V::all(kLargestByte);
  const float* mixed = to.mixed;
  for (int64_t r = 0; r < count; ++r) {
    mix<V>(rows + r * linear.inputs, linear.inputs, to.mixed);
    auto lows = V::load(mixed), highs = lows;
    for (int64_t i = V::kLanes; i < linear.inputs; i += V::kLanes) {
      const auto values = V::load(mixed + i);
      lows = V::min(lows, values);
      highs = V::max(highs, values);
    }
    const float lowest = V::smallest(lows), range = V::largest(highs) - lowest;
    to.lows[r] = lowest, to.steps[r] = range * (1.0f / kLargestByte);
    const auto start = V::all(lowest), factor = V::all(range > 0 ? kLargestByte / range : 0.0f);
    for (int64_t i = 0; i < linear.inputs; i += V::kLanes) {
      const auto steps = V::mul(V::sub(V::load(mixed + i), start), factor);
      V::store_row_bytes(to.bytes + r * linear.inputs + i, V::min(V::add(steps, half), limit));
    }
  }
}

// Call run(number, row) for ROWS rows at a time, then for the remaining ones in halves of that number.
template <int ROWS, class Run>
inline void over_tiles(int64_t count, const Run& run, int64_t row = 0) {
  for (; row + ROWS <= count; row += ROWS) run(Count<ROWS>{}, row);
  if constexpr (ROWS > 1) {
    if (row < count) over_tiles<ROWS / 2>(count, run, row);
  }
}

// A tile of products: its rows and columns of bytes, and what turns products into floats.
struct QuantizedTile {
  const uint8_t* rows;
  const int8_t* columns;        // [vectors of 16 outputs][inputs / 4][16][4]
  int64_t inputs;
  const int32_t* offsets;
  const float* scales;
  const float* totals;
  const float* bias;
  const float* lows;
  const float* steps;
  const int8_t* next;           // the part of the next columns that this tile prefetches
};

// Call keep(row, first column, values) with registers of the products of ROWS rows with COLUMNS columns, 8 inputs at a time. A function of its own
// keeps all sums in registers.
template <class V, int ROWS, int COLUMNS, class Keep>
__attribute__((noinline)) void multiply_tile(const QuantizedTile& tile, const Keep& keep) {
  constexpr int kVectors = COLUMNS / V::kLanes, kEach = kGroup / V::kLanes, kPrefetched = COLUMNS * ROWS / kTokensTogether;
  typename V::I32 totals[ROWS][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) totals[r][v] = V::first_sums(tile.offsets + v * V::kLanes);
  const uint8_t* rows = tile.rows;
  const int8_t *columns = tile.columns, *next = tile.next;
  const int64_t inputs = tile.inputs, vector = inputs * kGroup;
  int64_t k = 0;
  do {  // at least one iteration: the compiler would use two registers a sum for a loop that might not run
    __builtin_prefetch(next + k * kPrefetched, 0, 2);
    typename V::I32 first[kVectors], second[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int8_t* column = columns + v / kEach * vector + k * kGroup + v % kEach * V::kLanes * 4;
      first[v] = V::load_i32(column);
      second[v] = V::load_i32(column + 4 * kGroup);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto low = V::broadcast(rows + r * inputs + k), high = V::broadcast(rows + r * inputs + k + 4);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        totals[r][v] = V::dot_eight(totals[r][v], low, first[v], high, second[v]);
        V::keep_in_register(totals[r][v]);
      }
    }
  } while ((k += 8) < inputs);
  // Copies, which the compiler need not read again after each store.
  const float *const lows = tile.lows, *const steps = tile.steps, *const bias = tile.bias;
  const float *const scales = tile.scales, *const sums = tile.totals;
  const Keep own = keep;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const auto scale = V::load(scales + v * V::kLanes), total = V::load(sums + v * V::kLanes), start = V::load(bias + v * V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto products = V::mul(V::to_float(totals[r][v]), V::mul(V::all(steps[r]), scale));
      own(r, v * V::kLanes, V::add(V::add(start, products), V::mul(V::all(lows[r]), total)));
    }
  }
}

// Call keep(row, column, values) with registers of rows @ weights + bias, for COLUMNS columns from `column` on.
template <class V, int COLUMNS, class Keep>
inline void multiply_columns(const QuantizedRows& rows, int64_t count, const QuantizedLinear& linear, int64_t column, const Keep& keep) {
  over_tiles<V::kQuantizedRows>(count, [&](auto number, int64_t row) {
    const int8_t* next = linear.bytes + (column + COLUMNS) * linear.inputs + row * linear.inputs * COLUMNS / kTokensTogether;
    const QuantizedTile tile = {rows.bytes + row * linear.inputs, linear.bytes + column * linear.inputs, linear.inputs, linear.offsets + column,
                                linear.scales + column, linear.totals + column, linear.bias + column, rows.lows + row, rows.steps + row, next};
    multiply_tile<V, decltype(number)::value, COLUMNS>(tile, [=](int r, int v, auto values) { keep(row + r, column + v, values); });
  });
}

template <class V, class Keep>
inline void multiply_quantized(const QuantizedRows& rows, int64_t count, const QuantizedLinear& linear, const Keep& keep) {
  int64_t column = 0;
  for (; column + V::kQuantizedColumns <= linear.outputs; column += V::kQuantizedColumns)
    multiply_columns<V, V::kQuantizedColumns>(rows, count, linear, column, keep);
  for (; column < linear.outputs; column += kGroup) multiply_columns<V, kGroup>(rows, count, linear, column, keep);
}

// Return GELU(x) = x Phi(x). Phi is 1/2 plus an odd polynomial up to 3.65; the result is within 5e-4.
template <class V>
inline typename V::F32 gelu(typename V::F32 x) {
  constexpr float kTerms[] = {0.396536633f, -0.0626617378f, 0.00787680638f, -0.000622064878f, 2.72197309e-05f, -4.98792799e-07f};
  const auto limited = V::max(V::min(x, V::all(3.65f)), V::all(-3.65f)), square = V::mul(limited, limited);
  auto sum = V::all(kTerms[5]);
#pragma GCC unroll 5
  for (int i = 4; i >= 0; --i) sum = V::add(V::mul(sum, square), V::all(kTerms[i]));
  return V::mul(x, V::add(V::mul(limited, sum), V::all(0.5f)));
}

// Normalize rows in place to mean 0 and variance 1, then scale and shift them.
template <class V>
inline void normalize_rows(float* rows, int64_t count, int64_t width, const LayerNorm& norm) {
  const float share = 1.0f / float(width);
  for (int64_t r = 0; r < count; ++r, rows += width) {
    const auto mean = V::all(-share * sum_of<V>(width, [&](int64_t i) { return V::load(rows + i); }));
    const float squares = sum_of<V>(width, [&](int64_t i) {
      const auto x = V::add(V::load(rows + i), mean);
      return V::mul(x, x);
    });
    const auto factor = V::all(1.0f / std::sqrt(squares * share + norm.epsilon));
    for (int64_t i = 0; i < width; i += V::kLanes)
      V::store(rows + i, V::add(V::mul(V::mul(V::add(V::load(rows + i), mean), factor), V::load(norm.scale + i)), V::load(norm.shift + i)));
  }
}

// Compute rows @ weights + bias for up to kTokensTogether rows.
template <class V>
void quantized_linear(const float* rows, int64_t count, const QuantizedLinear& linear, const QuantizedRows& scratch, float* products) {
  const int64_t outputs = linear.outputs;
  quantize_rows<V>(rows, count, linear, scratch);
  multiply_quantized<V>(scratch, count, linear, [=](int64_t r, int64_t column, auto values) { V::store(products + r * outputs + column, values); });
}

// Replace COUNT registers of logits by 2^(logit - highest), where each has its integer `highest` and starts[v] is kRound - highest. The relative
// error is at most 1.1e-4. The steps of all registers alternate, because each waits for the one before.
template <class V, int COUNT>
inline void exp2(typename V::F32 (&x)[COUNT], const typename V::F32 (&starts)[COUNT], const typename V::F32 (&least)[COUNT]) {
  constexpr float kTerms[] = {0.999928057f, 0.693260968f, 0.24261114f, 0.0551716648f};
  typename V::F32 whole[COUNT], sum[COUNT];
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) x[v] = V::max(x[v], least[v]);
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) whole[v] = V::add(x[v], starts[v]);
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) x[v] = V::sub(x[v], V::sub(whole[v], starts[v]));
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) sum[v] = V::add(V::mul(x[v], V::all(kTerms[3])), V::all(kTerms[2]));
#pragma GCC unroll 2
  for (int i = 1; i >= 0; --i)
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sum[v] = V::add(V::mul(sum[v], x[v]), V::all(kTerms[i]));
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) x[v] = V::times_power_of_two(sum[v], whole[v]);
}

// Words of a row: values times `factor`, rounded. Those of each 32 values are in 16 lanes: value i and value i + 16.
template <class V, class Value, class Keep>
inline void to_word_pairs(int64_t count, const Value& value, const Keep& keep) {
  for (int64_t i = 0; i < count; i += 2 * kGroup)
#pragma GCC unroll 16
    for (int64_t v = 0; v < kGroup; v += V::kLanes)
      keep(i / 2 + v, V::join_words(V::add(value(i + v), V::all(kRound)), V::add(value(i + kGroup + v), V::all(kRound))));
}

template <class V>
inline float largest_of(const float* values, int64_t count) {
  auto most = V::all(0);
  for (int64_t i = 0; i < count; i += V::kLanes) most = V::max(most, V::max(V::load(values + i), V::mul(V::load(values + i), V::all(-1))));
  return V::largest(most);
}

// Store the query, key and value of one token as words with a scale each.
template <class V>
inline void keep_token(const float* projected, const EncoderTask& task, const EncoderText& text, int64_t place, const EncoderScratch& scratch) {
  const int64_t size = task.heads * task.padded, pairs = task.padded / 2, padded_keys = padded_keys_of(text.attended);
  const float most = largest_of<V>(projected, size), factor = most > 0 ? task.word_limit / most : 0;
  const int64_t query = text.first + place;
  scratch.query_scales[query] = most * task.logit_scale;
  to_word_pairs<V>(size, [&](int64_t i) { return V::mul(V::load(projected + i), V::all(factor)); },
                   [&](int64_t i, auto words) { V::store_i32(scratch.queries + query * size / 2 + i, words); });
  if (place >= text.attended) return;
  const float* key = projected + size;
  const float* value = key + size;
  const float key_most = largest_of<V>(key, size), key_factor = key_most > 0 ? task.word_limit / key_most : 0;
  scratch.key_scales[text.first_key + place] = key_most * (1 / task.word_limit);
  int32_t* keys = scratch.keys + text.first_key * size / 2 + place / kGroup * kGroup * pairs + place % kGroup;
  to_word_pairs<V>(size, [&](int64_t i) { return V::mul(V::load(key + i), V::all(key_factor)); }, [&](int64_t i, auto words) {
    int32_t lanes[V::kLanes];
    V::store_i32(lanes, words);
    int32_t* to = keys + i / pairs * pairs * padded_keys + i % pairs * kGroup;
#pragma GCC unroll 16
    for (int lane = 0; lane < V::kLanes; ++lane) to[lane * kGroup] = lanes[lane];
  });
  const float value_most = largest_of<V>(value, size), value_factor = value_most > 0 ? kLargestWord / value_most : 0;
  scratch.value_scales[text.first_key + place] = value_most * (1 / kLargestWord);
  const int64_t pair = place / (2 * kGroup) * kGroup + place % kGroup;
  int32_t* values = scratch.values + text.first_key * size / 2 + pair * kGroup;
  for (int64_t i = 0; i < size; i += V::kLanes) {
    int32_t* to = values + i / kGroup * kGroup * padded_keys / 2 + i % kGroup;
    const auto words = V::add(V::mul(V::load(value + i), V::all(value_factor)), V::all(kRound));
    if (place / kGroup % 2 == 0) V::store_i32(to, V::join_words(words, V::all(0)));
    else V::store_i32(to, V::join_words(V::load(reinterpret_cast<const float*>(to)), words));
  }
}

// Call keep(row, v, sums) with register v of the products of ROWS rows of word pairs with COLUMNS columns. A function of its own keeps all sums in
// registers.
template <class V, int ROWS, int COLUMNS, class Keep>
__attribute__((noinline)) void multiply_pairs(const int32_t* rows, int64_t stride, const int32_t* columns, int64_t pairs, const Keep& keep) {
  constexpr int kVectors = COLUMNS / V::kLanes, kEach = kGroup / V::kLanes;
  typename V::I32 totals[ROWS][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) totals[r][v] = V::zero();
  int64_t k = 0;
  do {
    typename V::I32 column[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) column[v] = V::load_i32(columns + (v / kEach * pairs + k) * kGroup + v % kEach * V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto row = V::broadcast(rows + r * stride + k);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        totals[r][v] = V::dot_words(totals[r][v], row, column[v]);
        V::keep_in_register(totals[r][v]);
      }
    }
  } while (++k < pairs);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) keep(r, v, totals[r][v]);
}

// Replace ROWS rows of logits by attention probabilities times the scales of values, as word pairs whose sum is at most kWhole before rounding.
// Logits are in units of log(2).
template <class V, int ROWS>
__attribute__((noinline)) void softmax_words(float* logits, int64_t count, const float* value_scales, float largest_scale, int32_t* words) {
  constexpr int kEach = kGroup / V::kLanes, kPair = ROWS < 2 || kEach > 1 ? 1 : 2, kTogether = 2 * kEach * kPair;  // rows and registers together
  float highest[ROWS], sums[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    float* row = logits + r * count;
    typename V::F32 highs[2 * kEach];
#pragma GCC unroll 16
    for (int v = 0; v < 2 * kEach; ++v) highs[v] = V::load(row + v * V::kLanes);
    for (int64_t i = 2 * kGroup; i < count; i += 2 * kGroup)
#pragma GCC unroll 16
      for (int v = 0; v < 2 * kEach; ++v) highs[v] = V::max(highs[v], V::load(row + i + v * V::kLanes));
#pragma GCC unroll 16
    for (int v = 1; v < 2 * kEach; ++v) highs[0] = V::max(highs[0], highs[v]);
    highest[r] = std::ceil(V::largest(highs[0]));
    if (std::fabs(highest[r]) > kLargestLogit) {
      for (int64_t i = 0; i < count; i += V::kLanes) V::store(row + i, V::sub(V::load(row + i), V::all(highest[r])));
      highest[r] = 0;
    }
  }
  for (int r = 0; r < ROWS; r += kPair) {
    typename V::F32 totals[kPair][kEach], powers[kTogether], starts[kTogether], least[kTogether];
#pragma GCC unroll 16
    for (int v = 0; v < kTogether; ++v) {
      const float high = highest[r + v / (2 * kEach)];
      starts[v] = V::all(kRound - high), least[v] = V::all(high + kLeastPower), totals[v / (2 * kEach)][v % kEach] = V::all(0);
    }
    for (int64_t i = 0; i < count; i += 2 * kGroup) {
      float* row = logits + r * count + i;
#pragma GCC unroll 16
      for (int v = 0; v < kTogether; ++v) powers[v] = V::load(row + v / (2 * kEach) * count + v % (2 * kEach) * V::kLanes);
      exp2<V>(powers, starts, least);
#pragma GCC unroll 16
      for (int v = 0; v < kTogether; ++v) {
        V::store(row + v / (2 * kEach) * count + v % (2 * kEach) * V::kLanes, powers[v]);
        auto& total = totals[v / (2 * kEach)][v % kEach];
        total = V::add(total, powers[v]);
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < kPair; ++p) sums[r + p] = V::total(totals[p]);
  }
  for (int r = 0; r < ROWS; ++r) {
    const float* row = logits + r * count;
    const auto whole = V::all(largest_scale > 0 ? kWhole / (sums[r] * largest_scale) : 0);
    to_word_pairs<V>(count, [&](int64_t i) { return V::mul(V::mul(V::load(row + i), whole), V::load(value_scales + i)); },
                     [&](int64_t i, auto pairs) { V::store_i32(words + r * count / 2 + i, pairs); });
  }
}

// Compute logits of ROWS query tokens and one head, [ROWS, padded keys]. `biases` is null or that of the first row.
template <class V, int ROWS>
inline void compute_logits(const EncoderTask& task, const EncoderText& text, int64_t query, int64_t head, const int32_t* keys, const float* biases,
                           const EncoderScratch& scratch) {
  constexpr int kColumns = V::kQuantizedColumns;
  const int64_t row_pairs = task.heads * task.padded / 2, pairs = task.padded / 2, padded_keys = padded_keys_of(text.attended);
  const float* key_scales = scratch.key_scales + text.first_key;
  const float* query_scales = scratch.query_scales + query;
  for (int64_t key = 0; key < padded_keys; key += kColumns)
    multiply_pairs<V, ROWS, kColumns>(scratch.queries + query * row_pairs + head * pairs, row_pairs, keys + key * pairs, pairs, [&](int r, int v, auto sums) {
      const int64_t at = key + v * V::kLanes;
      auto logit = V::mul(V::mul(V::to_float(sums), V::load(key_scales + at)), V::all(query_scales[r]));
      if (biases) logit = V::add(logit, V::load(biases + at - r));
      V::store(scratch.logits + r * padded_keys + at, logit);
    });
  for (int r = 0; r < ROWS; ++r) fill(scratch.logits + r * padded_keys + text.attended, padded_keys - text.attended, kNoLogit);
}

// Compute the result of attention for tokens begin to end of a text, [tokens, heads * dim].
template <class V>
inline void attend(const EncoderTask& task, const EncoderText& text, int64_t begin, int64_t end, const EncoderScratch& scratch, float* attended) {
  const int64_t size = task.heads * task.padded, pairs = task.padded / 2, padded_keys = padded_keys_of(text.attended);
  const float* value_scales = scratch.value_scales + text.first_key;
  const float largest_scale = largest_of<V>(value_scales, padded_keys), unit = largest_scale / kWhole;
  for (int64_t head = 0; head < task.heads; ++head) {
    const int32_t* keys = scratch.keys + text.first_key * size / 2 + head * pairs * padded_keys;
    const int32_t* values = scratch.values + text.first_key * size / 2 + head * pairs * padded_keys;
    over_tiles<V::kQuantizedRows>(end - begin, [&](auto tile, int64_t row) {
      constexpr int kTile = decltype(tile)::value, kColumns = V::kQuantizedColumns;
      const float* biases = task.biases ? task.biases + head * task.bias_stride + task.reach - (begin + row) : nullptr;
      compute_logits<V, kTile>(task, text, text.first + begin + row, head, keys, biases, scratch);
      softmax_words<V, kTile>(scratch.logits, padded_keys, value_scales, largest_scale, scratch.shares);
      for (int64_t dim = 0; dim < task.dim; dim += kColumns) {
        alignas(64) float results[kTile * kColumns];
        multiply_pairs<V, kTile, kColumns>(scratch.shares, padded_keys / 2, values + dim * padded_keys / 2, padded_keys / 2, [&](int r, int v, auto sums) {
          V::store(results + r * kColumns + v * V::kLanes, V::mul(V::to_float(sums), V::all(unit)));
        });
        const int64_t columns = std::min<int64_t>(kColumns, task.dim - dim);
        for (int r = 0; r < kTile; ++r)
          std::memcpy(attended + ((row + r) * task.heads + head) * task.dim + dim, results + r * kColumns, columns * sizeof(float));
      }
    });
  }
}

// Compute what follows attention in a layer, for up to kTokensTogether tokens; `hidden` is replaced.
template <class V>
inline void finish_layer(const EncoderLayer& layer, int64_t count, float* attended, float* hidden, const EncoderScratch& scratch) {
  const int64_t width = layer.output.outputs, outputs = layer.widen.outputs;
  float* wide = scratch.wide;
  const auto add = [=](int64_t r, int64_t column, auto values) {
    V::store(hidden + r * width + column, V::add(values, V::load(hidden + r * width + column)));
  };
  quantize_rows<V>(attended, count, layer.output, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, layer.output, add);
  normalize_rows<V>(hidden, count, width, layer.norm);
  quantize_rows<V>(hidden, count, layer.widen, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, layer.widen,
                        [=](int64_t r, int64_t column, auto values) { V::store(wide + r * outputs + column, gelu<V>(values)); });
  quantize_rows<V>(wide, count, layer.narrow, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, layer.narrow, add);
  normalize_rows<V>(hidden, count, width, layer.last_norm);
}

// Call run(text, begin, end, row) for the parts of texts among `count` tokens from `first` on; `row` is the first token's number among them.
template <class Run>
inline void over_texts(const EncoderTask& task, int64_t first, int64_t count, const Run& run) {
  const EncoderText* text = task.texts;
  while (text->first + text->length <= first) ++text;
  for (int64_t at = first; at < first + count; ++text) {
    const int64_t end = std::min(text->first + text->length, first + count);
    run(*text, at - text->first, end - text->first, at - first);
    at = end;
  }
}

// Pass the tokens of some texts through layers, which replace task.hidden.
template <class V>
void encode_layers(const EncoderTask& task, const EncoderScratch& scratch) {
  const int64_t width = task.layers[0].output.outputs;
  for (const EncoderText* text = task.texts; text < task.texts + task.num_texts; ++text)  // memory for keys without a token
    fill(scratch.value_scales + text->first_key + text->attended, padded_keys_of(text->attended) - text->attended, 0);
  for (const EncoderLayer* layer = task.layers; layer < task.layers + task.num_layers; ++layer) {
    for (int64_t first = 0; first < task.num_tokens; first += kTokensTogether) {
      const int64_t count = std::min(kTokensTogether, task.num_tokens - first), outputs = layer->project.outputs;
      float* wide = scratch.wide;
      quantize_rows<V>(task.hidden + first * width, count, layer->project, scratch.rows);
      multiply_quantized<V>(scratch.rows, count, layer->project,
                            [=](int64_t r, int64_t column, auto values) { V::store(wide + r * outputs + column, values); });
      over_texts(task, first, count, [&](const EncoderText& text, int64_t begin, int64_t end, int64_t row) {
        for (int64_t place = begin; place < end; ++place, ++row) keep_token<V>(wide + row * outputs, task, text, place, scratch);
      });
    }
    for (int64_t first = 0; first < task.num_tokens; first += kTokensTogether) {
      const int64_t count = std::min(kTokensTogether, task.num_tokens - first);
      over_texts(task, first, count, [&](const EncoderText& text, int64_t begin, int64_t end, int64_t row) {
        attend<V>(task, text, begin, end, scratch, scratch.narrow + row * width);
      });
      finish_layer<V>(*layer, count, scratch.narrow, task.hidden + first * width, scratch);
    }
  }
}
