// Vectors turned by a matrix; a part of loops.h.

// rows @ rotation, summed in the order of the rows' dimensions: the same bits for any block of rows, on any thread.
template <class V>
void rotate(const float* rows, int64_t count, int64_t dim, const float* rotation, float* turned) {
  constexpr int kVectors = 4, kRowsAtOnce = 2;
  constexpr int64_t kColumns = kVectors * V::kLanes;
  for (int64_t i = 0; i < count; i += kRowsAtOnce) {
    const int64_t other = i + 1 < count ? i + 1 : i;
    int64_t d = 0;
    for (; d + kColumns <= dim; d += kColumns) {
      typename V::F32 sums[kRowsAtOnce][kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[0][v] = sums[1][v] = V::all(0);
      for (int64_t k = 0; k < dim; ++k) {
        const auto first = V::all(rows[i * dim + k]), second = V::all(rows[other * dim + k]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const auto column = V::load(rotation + k * dim + d + v * V::kLanes);
          sums[0][v] = V::add(sums[0][v], V::mul(first, column));
          sums[1][v] = V::add(sums[1][v], V::mul(second, column));
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        V::store(turned + i * dim + d + v * V::kLanes, sums[0][v]);
        V::store(turned + other * dim + d + v * V::kLanes, sums[1][v]);
      }
    }
    for (int64_t row = i; row <= other; ++row)
      for (int64_t e = d; e < dim; ++e) {
        float sum = 0;
        for (int64_t k = 0; k < dim; ++k) sum += rows[row * dim + k] * rotation[k * dim + e];
        turned[row * dim + e] = sum;
      }
  }
}
