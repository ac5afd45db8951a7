// Integer products of rows with columns, for bytes and for 16-bit words; a part of loops.h.

// The caller's sums of products. Functions with such an argument are always inlined, to keep the sums in registers. Otherwise they would be
// stored at every step, because the compiler assumes that rows, which are bytes, may overlap them.
template <class V, int LANES, int ROWS>
using Sums = typename V::I32[ROWS][LANES / V::kLanes];

// Add the products of ROWS rows with LANES columns, starting at column `lane`, to sums. An item is the 4 bytes that `dot` multiplies at
// a time. The items of a row are consecutive; columns are packed so that the same item of 16 columns is consecutive.
template <class V, int LANES, int ROWS, class Dot>
inline __attribute__((always_inline)) void add_products(const void* rows, int64_t stride, const void* columns, int64_t column_items, int64_t lane,
                                                        int64_t items, Sums<V, LANES, ROWS>& sums, const Dot& dot) {
  const auto* row_bytes = static_cast<const uint8_t*>(rows);
  const auto* column_bytes = static_cast<const uint8_t*>(columns) + (lane / kGroup * column_items * kGroup + lane % kGroup) * 4;
  const int64_t group = column_items * kGroup * 4;
  int64_t k = 0;
  do {  // at least one iteration: the compiler would use two registers a sum for a loop that might not run
    typename V::I32 item[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) item[r] = V::broadcast(row_bytes + r * stride + 4 * k);
#pragma GCC unroll 16
    for (int v = 0; v < LANES / V::kLanes; ++v) {
      const auto column = V::load_i32(column_bytes + v * V::kLanes / kGroup * group + (k * kGroup + v * V::kLanes % kGroup) * 4);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sums[r][v] = dot(sums[r][v], item[r], column);
    }
  } while (++k < items);
}

// Add the products of ROWS rows of bytes with LANES columns, starting at column `lane`, to sums, 8 bytes at a time.
template <class V, int LANES, int ROWS>
inline __attribute__((always_inline)) void add_eights(const uint8_t* rows, int64_t stride, const int8_t* columns, int64_t lane, int64_t quads,
                                                      Sums<V, LANES, ROWS>& sums) {
  constexpr int kVectors = LANES / V::kLanes;
  const int64_t group = stride * kGroup;
  columns += lane / kGroup * group + lane % kGroup * 4;
  const auto column = [&](int64_t k, int v) { return V::load_i32(columns + v * V::kLanes / kGroup * group + (k * kGroup + v * V::kLanes % kGroup) * 4); };
  int64_t k = 0;
  do {  // at least one iteration: the compiler would use two registers a sum for a loop that might not run
    const uint8_t* row = rows + 4 * k;
    if constexpr (ROWS < kVectors) {
      typename V::I32 first[ROWS], second[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) first[r] = V::broadcast(row + r * stride), second[r] = V::broadcast(row + r * stride + 4);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto low = column(k, v), high = column(k + 1, v);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sums[r][v] = V::dot_eight(sums[r][v], first[r], low, second[r], high);
      }
    } else {
      typename V::I32 low[kVectors], high[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) low[v] = column(k, v), high[v] = column(k + 1, v);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const auto first = V::broadcast(row + r * stride), second = V::broadcast(row + r * stride + 4);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[r][v] = V::dot_eight(sums[r][v], first, low[v], second, high[v]);
      }
    }
  } while ((k += 2) < quads);
}

// Compute int32 products of ROWS decoded rows with LANES query tokens.
template <class V, int LANES, int ROWS>
inline __attribute__((always_inline)) void multiply_bytes(const uint8_t* rows, int64_t stride, int64_t quads, const PackedQuery& query, int64_t lane,
                                                          Sums<V, LANES, ROWS>& sums) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < LANES / V::kLanes; ++v) sums[r][v] = V::load_i32(query.starts + lane + v * V::kLanes);
  if constexpr (V::kAddsWords)
    if (query.four_fit) return add_eights<V, LANES, ROWS>(rows, stride, query.bytes, lane, quads, sums);
  add_products<V, LANES, ROWS>(rows, stride, query.bytes, stride / 4, lane, quads, sums,
                               [](auto sum, auto row, auto column) { return V::dot_bytes(sum, row, column); });
}

template <class V, int LANES, int ROWS>
inline __attribute__((always_inline)) void multiply_words(const WordsTask& task, int64_t row, int64_t lane, Sums<V, LANES, ROWS>& sums) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < LANES / V::kLanes; ++v) sums[r][v] = V::zero();
  add_products<V, LANES, ROWS>(task.rows + row * task.stride, 2 * task.stride, task.columns, task.pairs, lane, task.pairs, sums,
                               [](auto sum, auto row, auto column) { return V::dot_words(sum, row, column); });
}
