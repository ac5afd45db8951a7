// The layers of a transformer with products of bytes (docs/algorithms.md#17-products-of-bytes); a part of loops.h.

constexpr int64_t kBlock = 512;  // inputs multiplied at a time, so that the rows and columns of a block fit the first-level cache

// Divide rows of floats into 128 steps from their lowest to their highest value.
template <class V>
inline void quantize_rows(const float* rows, int64_t count, int64_t width, const QuantizedRows& to) {
  for (int64_t r = 0; r < count; ++r, rows += width) {
    auto lows = V::load(rows), highs = lows;
    for (int64_t i = V::kLanes; i < width; i += V::kLanes) {
      const auto values = V::load(rows + i);
      lows = V::min(lows, values);
      highs = V::max(highs, values);
    }
    float low[V::kLanes], high[V::kLanes];
    V::store(low, lows);
    V::store(high, highs);
    const float lowest = *std::min_element(low, low + V::kLanes), range = *std::max_element(high, high + V::kLanes) - lowest;
    to.lows[r] = lowest;
    to.steps[r] = range * (1.0f / kLargestByte);
    const auto start = V::all(lowest), factor = V::all(range > 0 ? kLargestByte / range : 0.0f), half = V::all(0.5f), limit = V::all(kLargestByte);
    for (int64_t i = 0; i < width; i += V::kLanes) {
      const auto steps = V::mul(V::add(V::load(rows + i), V::mul(start, V::all(-1))), factor);
      V::store_bytes(to.bytes + r * width + i, V::min(V::add(steps, half), limit));
    }
  }
}

// Add the products of ROWS rows with columns to sums, 8 inputs at a time. A row of sums has COLUMNS items.
template <class V, int ROWS, int COLUMNS>
inline void add_quantized(const uint8_t* rows, int64_t stride, const int8_t* columns, int64_t group, int64_t inputs, int32_t* sums) {
  constexpr int kVectors = COLUMNS / V::kLanes, kEach = kGroup / V::kLanes;
  typename V::I32 totals[ROWS][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) totals[r][v] = V::load_i32(sums + r * COLUMNS + v * V::kLanes);
  int64_t k = 0;
  do {  // at least one iteration: the compiler would use two registers a sum for a loop that might not run
    typename V::I32 first[kVectors], second[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int8_t* column = columns + v / kEach * group + k * kGroup + v % kEach * V::kLanes * 4;
      first[v] = V::load_i32(column);
      second[v] = V::load_i32(column + 4 * kGroup);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto low = V::broadcast(rows + r * stride + k), high = V::broadcast(rows + r * stride + k + 4);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) totals[r][v] = V::dot_eight(totals[r][v], low, first[v], high, second[v]);
    }
  } while ((k += 8) < inputs);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store_i32(sums + r * COLUMNS + v * V::kLanes, totals[r][v]);
}

// Call keep(row, column, values) with registers of rows @ weights + bias, for COLUMNS columns from `column` on.
template <class V, int COLUMNS, class Keep>
inline void multiply_columns(const QuantizedRows& rows, int64_t count, const QuantizedLinear& linear, int64_t column, const Keep& keep) {
  alignas(64) int32_t sums[kTokensTogether * COLUMNS] = {};
  const int64_t inputs = linear.inputs, group = inputs * kGroup;
  for (int64_t k = 0; k < inputs; k += kBlock) {
    const int8_t* columns = linear.bytes + column * inputs + k * kGroup;
    const int64_t together = std::min(kBlock, inputs - k);
    int64_t r = 0;
    for (; r + V::kQuantizedRows <= count; r += V::kQuantizedRows)
      add_quantized<V, V::kQuantizedRows, COLUMNS>(rows.bytes + r * inputs + k, inputs, columns, group, together, sums + r * COLUMNS);
    for (; r < count; ++r) add_quantized<V, 1, COLUMNS>(rows.bytes + r * inputs + k, inputs, columns, group, together, sums + r * COLUMNS);
  }
  for (int v = 0; v < COLUMNS / V::kLanes; ++v) {
    const int64_t at = column + v * V::kLanes;
    const auto scale = V::load(linear.scales + at), total = V::load(linear.totals + at), bias = V::load(linear.bias + at);
    for (int64_t r = 0; r < count; ++r) {
      const auto products = V::mul(V::to_float(V::load_i32(sums + r * COLUMNS + v * V::kLanes)), V::mul(V::all(rows.steps[r]), scale));
      keep(r, at, V::add(V::add(products, V::mul(V::all(rows.lows[r]), total)), bias));
    }
  }
}

template <class V, class Keep>
inline void multiply_quantized(const QuantizedRows& rows, int64_t count, const QuantizedLinear& linear, const Keep& keep) {
  int64_t column = 0;
  for (; column + V::kQuantizedColumns <= linear.outputs; column += V::kQuantizedColumns)
    multiply_columns<V, V::kQuantizedColumns>(rows, count, linear, column, keep);
  for (; column < linear.outputs; column += kGroup) multiply_columns<V, kGroup>(rows, count, linear, column, keep);
}

// Return GELU(x) = x Phi(x). Phi is 1/2 plus an odd polynomial up to 4.25; the result is within 4e-5.
template <class V>
inline typename V::F32 gelu(typename V::F32 x) {
  constexpr float kTerms[] = {0.398819178f, -0.0661902279f, 0.00971874688f, -0.00107906852f, 8.84875917e-05f, -5.14736485e-06f, 1.9860758e-07f, -4.51505455e-09f, 4.54676262e-11f};
  const auto limited = V::max(V::min(x, V::all(4.25f)), V::all(-4.25f)), square = V::mul(limited, limited);
  auto sum = V::all(kTerms[8]);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) sum = V::add(V::mul(sum, square), V::all(kTerms[i]));
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
  quantize_rows<V>(rows, count, linear.inputs, scratch);
  multiply_quantized<V>(scratch, count, linear, [&](int64_t r, int64_t column, auto values) { V::store(products + r * linear.outputs + column, values); });
}

// Compute the rest of a layer after attention, for up to kTokensTogether tokens from `first` on.
template <class V>
void encoder_layer(const EncoderLayerTask& task, int64_t first, int64_t count, const EncoderScratch& scratch) {
  const int64_t width = task.output.outputs, wide = task.widen.outputs;
  float* hidden = task.results + first * width;
  quantize_rows<V>(task.attended + first * width, count, width, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, task.output, [&](int64_t r, int64_t column, auto values) {
    V::store(scratch.narrow + r * width + column, V::add(values, V::load(task.hidden + (first + r) * width + column)));
  });
  normalize_rows<V>(scratch.narrow, count, width, task.norm);
  quantize_rows<V>(scratch.narrow, count, width, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, task.widen,
                        [&](int64_t r, int64_t column, auto values) { V::store(scratch.wide + r * wide + column, gelu<V>(values)); });
  quantize_rows<V>(scratch.wide, count, wide, scratch.rows);
  multiply_quantized<V>(scratch.rows, count, task.narrow, [&](int64_t r, int64_t column, auto values) {
    V::store(hidden + r * width + column, V::add(values, V::load(scratch.narrow + r * width + column)));
  });
  normalize_rows<V>(hidden, count, width, task.last_norm);
}
