// Vectors as 16-bit words: conversion, products, and the nearest row of each column; a part of loops.h.

// Convert rows of floats to words, scaled to length 2^14, and store each row's original length.
template <class V>
void to_words(const float* rows, int64_t count, int64_t dim, int64_t stride, int16_t* words, float* lengths) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * dim;
    lengths[i] = std::sqrt(squares<V>(row, dim));
    const float factor = lengths[i] > 0 ? (1 << kWordBits) / lengths[i] : 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float value = row[d] * factor;
      words[i * stride + d] = int16_t(int32_t(value + (value < 0 ? -0.5f : 0.5f)));
    }
  }
}

template <class V>
inline void store_product(float* to, typename V::F32 products) { V::store(to, products); }

template <class V>
inline void store_product(Score* to, typename V::F32 products) {
  V::store(to, V::min(V::max(products, V::all(-kLargestScore)), V::all(kLargestScore)));
}

template <class V, class Item>
void word_products(const WordsTask& task, Item* products, int64_t begin, int64_t end) {
  if constexpr (V::kMatrix)
    if (V::fits(task)) return V::multiply_words(task, products, begin, end);
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value;
    over_rows<W, kCount>(begin, end, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kCount / W::kLanes];
      multiply_words<W, kCount>(task, row, lane, sums);
#pragma GCC unroll 16
      for (int v = 0; v < kCount / W::kLanes; ++v) {
        const auto scale = W::load(task.scales + lane + v * W::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < decltype(rows)::value; ++r)
          store_product<W>(products + (row + r) * task.lanes + lane + v * W::kLanes, W::mul(W::to_float(sums[r][v]), scale));
      }
    });
  });
}

template <class V>
void word_nearest(const WordsTask& task) {
  if constexpr (V::kMatrix)
    if (V::fits(task)) return V::nearest_words(task);
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value, kVectors = kCount / W::kLanes;
    typename W::I32 best[kVectors], where[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = W::all_i32(INT32_MIN), where[v] = W::zero();
    over_rows<W, kCount>(0, task.num_rows, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kVectors];
      multiply_words<W, kCount>(task, row, lane, sums);
#pragma GCC unroll 16
      for (int r = 0; r < decltype(rows)::value; ++r) {
        const auto bias = W::all_i32(task.biases ? task.biases[row + r] : 0);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) W::keep_larger(best[v], where[v], W::add_i32(sums[r][v], bias), int32_t(row + r));
      }
    });
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      W::store_i32(task.nearness + lane + v * W::kLanes, best[v]);
      W::store_i32(task.nearest + lane + v * W::kLanes, where[v]);
    }
  });
}
