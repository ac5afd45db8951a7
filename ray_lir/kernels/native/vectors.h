// Vectors in the form that the loops use: rows of floats or words, and packed columns of words.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "arrays.h"

namespace ray_lir {

// Up to `lanes` columns of 16-bit words, each scaled to length 2^14.
struct Columns {
  int64_t lanes, pairs;
  Aligned<int16_t> words;
  Aligned<float> scales;        // the value of one unit of a product with words of length 2^14

  Columns(int64_t count, int64_t dim)
      : lanes(lanes_of(count)), pairs((dim + 1) / 2), words(round_up(lanes, kGroup) * pairs * 2), scales(round_up(lanes, kGroup)) {
    require(dim > 0, "vectors without dimensions");
  }

  Columns(const Isa& isa, const float* vectors, int64_t count, int64_t dim) : Columns(count, dim) {
    std::vector<int16_t> row(pairs * 2);
    for (int64_t i = 0; i < count; ++i) {
      isa.to_words(vectors + i * dim, 1, dim, pairs * 2, row.data(), scales.get() + i);
      scales.get()[i] /= 1 << (2 * kWordBits);
      set(i, row.data());
    }
  }

  void set(int64_t i, const int16_t* row) {
    int16_t* to = words.get() + i / kGroup * kGroup * pairs * 2 + i % kGroup * 2;
    for (int64_t k = 0; k < pairs; ++k, to += kGroup * 2) std::memcpy(to, row + 2 * k, 4);
  }
};

using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

inline void check_rows(const Rows& rows) {
  require(rows.dtype() == nb::dtype<float>() || rows.dtype() == nb::dtype<uint16_t>(), "rows must be float32, or float16 viewed as uint16");
}

// [T, D] rows as float32, converted if necessary.
inline const float* as_floats(const Isa& isa, const Rows& rows, int64_t first, int64_t count, std::vector<float>& memory) {
  const int64_t dim = rows.shape(1);
  if (rows.dtype() == nb::dtype<float>()) return static_cast<const float*>(rows.data()) + first * dim;
  memory.resize(count * dim);
  isa.to_floats(static_cast<const uint16_t*>(rows.data()) + first * dim, count * dim, memory.data());
  return memory.data();
}

// [T, D] rows as words of length 2^14.
inline Aligned<int16_t> as_words(const Isa& isa, const Rows& vectors, int64_t begin, int64_t count, int64_t stride) {
  std::vector<float> memory, lengths(count);
  Aligned<int16_t> words(count * stride);
  isa.to_words(as_floats(isa, vectors, begin, count, memory), count, vectors.shape(1), stride, words.get(), lengths.data());
  return words;
}

}  // namespace ray_lir
