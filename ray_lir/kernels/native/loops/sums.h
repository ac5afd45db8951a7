// Sums of floats in an order that does not depend on the width of registers; a part of loops.h.

// Return the sum of product(i), the products of lanes i to i + V::kLanes, over `count` lanes. It is the sum of 16 running sums, added in
// halves.
template <class V, class Product>
inline float sum_of(int64_t count, const Product& product) {
  constexpr int kEach = kGroup / V::kLanes;
  typename V::F32 sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) sums[v] = V::all(0);
  for (int64_t i = 0; i < count; i += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v)
      if (i + v * V::kLanes < count) sums[v] = V::add(sums[v], product(i + v * V::kLanes));
  return V::total(sums);
}

// Return the weighted sum of lanes; `count` is a multiple of 8.
template <class V>
inline float weighted_sum(const float* lanes, const float* weights, int64_t count) {
  typedef typename V::Half W;
  return sum_of<W>(count, [&](int64_t i) { return W::mul(W::load(lanes + i), W::load(weights + i)); });
}

inline float dot(const float* a, const float* b, int64_t count) {
  float sums[kGroup] = {};
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup)
    for (int j = 0; j < kGroup; ++j) sums[j] += a[i + j] * b[i + j];
  for (int j = 0; i < count; ++i, ++j) sums[j] += a[i] * b[i];
  for (int half = kGroup / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

// Return the same bits as dot(row, row, count).
template <class V>
inline float squares(const float* row, int64_t count) {
  if (count % kGroup) return dot(row, row, count);
  return sum_of<V>(count, [&](int64_t i) {
    const auto x = V::load(row + i);
    return V::mul(x, x);
  });
}
