// Integer forms of a codec's bucket weights (levels) and of a query (bytes).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arrays.h"

namespace ray_lir {

// Bucket weights are [2^nbits], or [2^(8 + memory), width] with a trellis: the values of a byte after the last bits of the byte before.
using Weights = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

struct Levels {
  uint8_t levels[256] = {};
  std::vector<uint8_t> lut;
  float step = 1;
  int nbits = 0, memory = 0, width = 0;  // either bits, or the width of a trellis

  template <class W>
  explicit Levels(W weights) {
    const int64_t count = int64_t(weights.shape(0)), size = int64_t(weights.size());
    float largest = 0;
    for (int64_t k = 0; k < size; ++k) largest = std::max(largest, std::fabs(weights.data()[k]));
    if (largest > 0) step = largest / 63;
    const auto level = [&](int64_t k) { return uint8_t(64 + std::lround(weights.data()[k] / step)); };
    if (weights.ndim() == 2) {
      while ((256 << memory) < count) ++memory;
      require((256 << memory) == count && memory <= 8, "a trellis has 256 rows times a power of two, at most 2^16");
      width = int(weights.shape(1));
      require(width >= 2 && width <= kWidest, "a byte of a trellis has 2 to 8 dimensions");
      const int stride = lut_stride(width);
      lut.resize(count * stride);
      for (int64_t k = 0; k < size; ++k) lut[k / width * stride + k % width] = level(k);
      return;
    }
    while ((1 << nbits) < count) ++nbits;
    require(weights.ndim() == 1 && (1 << nbits) == count && (nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8),
            "bucket weights must be 2, 4, 16 or 256");
    for (int64_t k = 0; k < count; ++k) levels[k] = level(k);
    const int per_byte = 8 / nbits;
    lut.resize(256 * per_byte);
    for (int byte = 0; byte < 256; ++byte)
      for (int j = 0; j < per_byte; ++j) lut[byte * per_byte + j] = levels[byte >> (8 - nbits * (j + 1)) & (count - 1)];
  }

  // Return the position of a dimension in a decoded row.
  int64_t place(int64_t d, int64_t dim) const {
    const int64_t block = d / 64 * 64;
    return nbits == 4 && block + 64 <= dim ? block + d % 2 * 32 + d % 64 / 2 : d;
  }
};

// Return the decoder of residuals with a number of packed bytes. The bytes of a trellis have equally many dimensions, or the last ones have one
// dimension fewer.
inline Decoder decoder_of(const Levels& levels, int64_t dim, int64_t packed_bytes) {
  if (levels.width)
    require(packed_bytes > 0 && (dim + packed_bytes - 1) / packed_bytes == levels.width, "residuals of other dimensions than the trellis");
  else
    require(packed_bytes == dim * levels.nbits / 8, "residuals of other dimensions or bits");
  const int64_t wide = levels.width ? dim - packed_bytes * (levels.width - 1) : 0;
  return {levels.nbits, levels.memory, levels.width, wide, (dim + 3) / 4, packed_bytes, round_up(dim, 64), levels.lut.data(), levels.levels};
}

inline float largest_of(const float* values, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// A value of a query token in units of `scale`, rounded.
inline int8_t byte_of(float value, float scale) {
  const float units = scale > 0 ? value / scale : 0;
  return int8_t(int32_t(units + (units < 0 ? -0.5f : 0.5f)));
}

constexpr float kLargestSum = 256;  // with rounding 258; 258 times 127, the largest byte of a row, is below 2^15

// Call each(above, below) with the sums of the positive and of the negative values of every 4 places whose products AVX2 adds in 16 bits: places
// p, p + 1, p + 4 and p + 5, where p is 0 or 2 modulo 8.
template <class T, class Each>
void over_sums(const T* placed, int64_t stride, const Each& each) {
  for (int64_t at = 0; at < stride; at += at % 4 ? 6 : 2) {
    T above = 0, below = 0;
    for (int64_t p : {at, at + 1, at + 4, at + 5}) (placed[p] > 0 ? above : below) += placed[p];
    each(above, below);
  }
}

// A query as bytes. The scale of a token depends on its values alone: the largest value is at most 127, and the sums above are at most
// kLargestSum. The second limit makes the scale of a fifth of the query tokens of SciFact larger, by 11% on average; the error of scores stays
// the same.
struct Packed {
  int64_t lanes;
  bool four_fit = true;
  Aligned<int8_t> bytes;
  Aligned<int32_t> starts;
  Aligned<float> slopes, weights;

  Packed(Matrix vectors, Floats importance, const Levels& levels) : Packed(vectors, levels) {
    require(importance.shape(0) == vectors.shape(0), "one weight a query token");
    std::copy(importance.data(), importance.data() + importance.shape(0), weights.get());
  }

  // With one scale for all tokens, if any is given.
  Packed(Matrix vectors, const Levels& levels, float common = 0)
      : lanes(lanes_of(vectors.shape(0))),
        bytes(round_up(lanes, kGroup) * round_up(vectors.shape(1), 64)), starts(round_up(lanes, kGroup)), slopes(lanes), weights(lanes) {
    const int64_t dim = vectors.shape(1), stride = round_up(dim, 64);
    require(dim > 0, "vectors without dimensions");
    std::vector<int64_t> places(dim);
    for (int64_t d = 0; d < dim; ++d) places[d] = levels.place(d, dim);
    std::vector<float> placed(stride);
    std::vector<int32_t> placed_bytes(stride);
    for (int64_t i = 0; i < int64_t(vectors.shape(0)); ++i) {
      const float* vector = vectors.data() + i * dim;
      for (int64_t d = 0; d < dim; ++d) placed[places[d]] = vector[d];
      float scale = common > 0 ? common : largest_of(vector, dim) / 127;
      if (common <= 0)
        over_sums(placed.data(), stride, [&](float above, float below) { scale = std::max(scale, std::max(above, -below) / kLargestSum); });
      slopes.get()[i] = scale * levels.step;
      int8_t* group = bytes.get() + i / kGroup * kGroup * stride + i % kGroup * 4;
      for (int64_t p = 0; p < stride; ++p) {
        const int8_t byte = byte_of(placed[p], scale);
        group[p / 4 * kGroup * 4 + p % 4] = byte;
        placed_bytes[p] = byte;
        starts.get()[i] -= 64 * byte;
      }
      over_sums(placed_bytes.data(), stride, [&](int32_t above, int32_t below) { four_fit &= 127 * std::max(above, -below) < 1 << 15; });
    }
  }

  PackedQuery view(const Score* table, float* best, float* factors) const {
    return {bytes.get(), starts.get(), slopes.get(), table, weights.get(), best, factors, nullptr, lanes, four_fit};
  }
};

}  // namespace ray_lir
