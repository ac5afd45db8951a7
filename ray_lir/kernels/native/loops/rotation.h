// Rotation of vectors by a matrix; a part of loops.h.

// Compute rows @ rotation. Sums are in the order of dimensions, so the bits do not depend on the block of rows or the thread.
template <class V>
void rotate(const float* rows, int64_t count, int64_t dim, const float* rotation, float* rotated) {
  constexpr int kVectors = 4, kRowsAtOnce = V::kLanes == 16 ? 4 : 2;  // their sums stay in registers
  constexpr int64_t kColumns = kVectors * V::kLanes;
  for (int64_t i = 0; i < count; i += kRowsAtOnce) {
    int64_t row[kRowsAtOnce], d = 0;  // the last row is repeated after the end
    for (int r = 0; r < kRowsAtOnce; ++r) row[r] = std::min(i + r, count - 1) * dim;
    for (; d + kColumns <= dim; d += kColumns) {
      typename V::F32 sums[kRowsAtOnce][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = V::all(0);
      for (int64_t k = 0; k < dim; ++k) {
        typename V::F32 columns[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) columns[v] = V::load(rotation + k * dim + d + v * V::kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRowsAtOnce; ++r) {
          const auto value = V::all(rows[row[r] + k]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sums[r][v] = V::add(sums[r][v], V::mul(value, columns[v]));
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) V::store(rotated + row[r] + d + v * V::kLanes, sums[r][v]);
    }
    for (int r = 0; r < kRowsAtOnce; ++r)
      for (int64_t e = d; e < dim; ++e) {
        float sum = 0;
        for (int64_t k = 0; k < dim; ++k) sum += rows[row[r] + k] * rotation[k * dim + e];
        rotated[row[r] + e] = sum;
      }
  }
}
