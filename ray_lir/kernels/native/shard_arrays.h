// The arrays of a shard, in the form that the loops use.
#pragma once
#include <cstdint>
#include <optional>

#include "arrays.h"

namespace ray_lir {

inline Shard shard_of(const Codes& codes, Numbers doc_offsets) {
  const bool wide = codes.dtype() == nb::dtype<uint32_t>();
  require(wide || codes.dtype() == nb::dtype<uint16_t>(), "codes must be uint16 or uint32");
  require(doc_offsets.shape(0) > 0 && doc_offsets.data()[doc_offsets.shape(0) - 1] <= int64_t(codes.shape(0)), "offsets beyond the codes");
  Shard shard = {};
  shard.codes = codes.data();
  shard.wide_codes = wide;
  shard.doc_offsets = doc_offsets.data();
  return shard;
}

using TokenWeights = std::optional<Array<uint16_t, 1>>;
using Scales = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;  // [T, 2] float16 as uint16, or [T] uint8 with pairs of scales
using Pairs = std::optional<Matrix>;                                 // [256, 2] or none

inline void check_pairs(const Pairs& pairs) { require(!pairs || (pairs->shape(0) == 256 && pairs->shape(1) == 2), "256 pairs of scales"); }

// Return a shard, after checking that its residuals have the dimensions of the decoder.
inline Shard shard_of(const Codes& codes, const Array<uint8_t, 2>& residuals, const Scales& scales, const Pairs& pairs, const TokenWeights& weights,
                      Numbers doc_offsets, const Decoder& decoder) {
  require(int64_t(residuals.shape(1)) == decoder.packed_bytes, "residuals of other dimensions or bits");
  check_pairs(pairs);
  const bool fits = pairs ? scales.dtype() == nb::dtype<uint8_t>() && scales.ndim() == 1
                          : scales.dtype() == nb::dtype<uint16_t>() && scales.ndim() == 2 && scales.shape(1) == 2;
  require(fits && residuals.shape(0) == codes.shape(0) && scales.shape(0) == codes.shape(0), "codes, residuals and scales of one length");
  require(!weights || weights->shape(0) == codes.shape(0), "one weight a token");
  Shard shard = shard_of(codes, doc_offsets);
  shard.residuals = residuals.data();
  if (pairs) shard.numbers = static_cast<const uint8_t*>(scales.data()), shard.pairs = pairs->data();
  else shard.scales = static_cast<const uint16_t*>(scales.data());
  shard.weights = weights ? weights->data() : nullptr;
  return shard;
}

inline int64_t count_of(const std::optional<Numbers>& documents, Numbers doc_offsets) {
  const int64_t num_docs = int64_t(doc_offsets.shape(0)) - 1;
  if (!documents) return num_docs;
  for (size_t i = 0; i < documents->shape(0); ++i)
    require(documents->data()[i] >= 0 && documents->data()[i] < num_docs, "a document number is not in the shard");
  return int64_t(documents->shape(0));
}

}  // namespace ray_lir
