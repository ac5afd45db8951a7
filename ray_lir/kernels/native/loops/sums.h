// Sums of floats in one order whatever the width of registers; a part of loops.h.

// Sums of lanes in one order whatever the width: 16 running sums, then halves added to halves. A multiple of 8 lanes.
template <class V>
inline float weighted_sum(const float* lanes, const float* weights, int64_t count) {
  typedef typename V::Half W;
  constexpr int kEach = kGroup / W::kLanes;
  typename W::F32 sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) sums[v] = W::all(0);
  for (int64_t i = 0; i < count; i += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const int64_t lane = i + v * W::kLanes;
      if (lane < count) sums[v] = W::add(sums[v], W::mul(W::load(lanes + lane), W::load(weights + lane)));
    }
  return W::total(sums);
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

// dot(row, row, count), to the bit.
template <class V>
inline float squares(const float* row, int64_t count) {
  if (count % kGroup) return dot(row, row, count);
  constexpr int kEach = kGroup / V::kLanes;
  typename V::F32 sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) sums[v] = V::all(0);
  for (int64_t k = 0; k < count; k += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const auto x = V::load(row + k + v * V::kLanes);
      sums[v] = V::add(sums[v], V::mul(x, x));
    }
  return V::total(sums);
}
