// TRIAL: MaxSim with relations between the document tokens that query tokens are aligned with.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "queries.h"
#include "sets.h"
#include "shard_arrays.h"
#include "threads.h"
#include "vectors.h"

namespace ray_lir {
namespace {

using Words = Array<int16_t, 2>;

// The rows of a matrix as packed columns, filled with zeros to whole registers.
Columns columns_of(const Words& words, Floats scales, int64_t dim, int64_t width) {
  require(int64_t(words.shape(0)) == dim && int64_t(words.shape(1)) == round_up(dim, 2) && int64_t(scales.shape(0)) == dim,
          "a relation encoder of other dimensions");
  Columns columns(width, dim);
  for (int64_t i = 0; i < dim; ++i) columns.set(i, words.data() + i * words.shape(1));
  std::copy(scales.data(), scales.data() + dim, columns.scales.get());
  return columns;
}

// Rows times a factor, filled with zeros to `width`.
Aligned<float> widened(const float* rows, int64_t count, int64_t dim, int64_t width, float factor = 1) {
  Aligned<float> wide(count * width);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < dim; ++d) wide.get()[i * width + d] = rows[i * dim + d] * factor;
  return wide;
}

// A worker's memory.
struct RelationMemory {
  Aligned<uint8_t> rows;
  Aligned<float> all, values, least, before, after, centroid, vector, lengths;
  Aligned<int32_t> nearest, candidates, asked, first_places, second_places;
  Aligned<int64_t> num_candidates;
  Aligned<int16_t> words;
  Aligned<int8_t> row_planes, column_planes;
  RelationScratch scratch;

  RelationMemory(const RelationTask& task, int64_t tokens)
      : rows((2 * kRows + kMoreRows) * task.decoder.stride), all(tokens * task.query.lanes, false), values(task.query.lanes), least(task.query.lanes),
        before((tokens + kRows) * task.width, false), after((tokens + kRows) * task.width, false), centroid(task.dim), vector(task.dim),
        lengths(kRows), nearest(task.query.lanes), candidates(tokens * task.query.lanes, false), asked(tokens), first_places(tokens),
        second_places(tokens), num_candidates(task.query.lanes), words(kRows * task.stride), row_planes(2 * kRows * task.width),
        column_planes(4 * task.width * task.width),
        scratch{rows.get(), all.get(), nearest.get(), values.get(), least.get(), candidates.get(), num_candidates.get(), asked.get(),
                {before.get(), after.get()}, {first_places.get(), second_places.get()}, {0, 0}, centroid.get(), vector.get(), words.get(),
                lengths.get(), row_planes.get(), column_planes.get(), tokens} {}
};

// TRIAL from codes and residuals.
FloatResult relation_maxsim(const std::string& name, Matrix vectors, Floats weights, Scores table, Matrix products, Floats constants, Floats upper,
                            Codes codes, Array<uint8_t, 2> residuals, Array<uint16_t, 2> scales, TokenWeights token_weights, Numbers doc_offsets,
                            Floats buckets, Scores centroids, Words before, Floats before_scales, Words after, Floats after_scales, Floats bias,
                            Floats scale, Floats shift, bool by_cosine, std::optional<Numbers> documents, int threads) {
  const Isa& isa = isa_named(name);
  const Levels levels(buckets);
  const int64_t num_tokens = vectors.shape(0), dim = vectors.shape(1), width = round_up(dim, 64);
  const Decoder decoder = decoder_of(levels, dim);
  const Shard shard = shard_of(codes, residuals, scales, token_weights, doc_offsets, decoder);
  const Packed packed(vectors, weights, levels);
  require(int64_t(table.shape(1)) == packed.lanes && table.shape(0) == centroids.shape(0), "a table of another query, or of other centroids");
  require(int64_t(products.shape(0)) == num_tokens && int64_t(products.shape(1)) == dim && int64_t(constants.shape(0)) == num_tokens &&
              int64_t(upper.shape(0)) == num_tokens, "relation terms of another query");
  for (const Floats& row : {bias, scale, shift}) require(int64_t(row.shape(0)) == dim, "a relation encoder of other dimensions");
  require(int64_t(centroids.shape(1)) == dim, "centroids of other dimensions");
  std::vector<float> values(256 * (8 / levels.nbits));
  for (int byte = 0; byte < 256; ++byte)
    for (int j = 0; j < 8 / levels.nbits; ++j)
      values[byte * (8 / levels.nbits) + j] = buckets.data()[byte >> (8 - levels.nbits * (j + 1)) & ((1 << levels.nbits) - 1)];
  const Columns first = columns_of(before, before_scales, dim, width), second = columns_of(after, after_scales, dim, width);

  const Aligned<float> no_bias(width), wide_bias = widened(bias.data(), 1, dim, width), wide_scale = widened(scale.data(), 1, dim, width, kEighths),
                       wide_shift = widened(shift.data(), 1, dim, width, kEighths),
                       wide_products = widened(products.data(), num_tokens, dim, width, 1 / kEighths);
  const int64_t count = count_of(documents, doc_offsets);
  int64_t longest = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t number = documents ? documents->data()[i] : i;
    longest = std::max(longest, doc_offsets.data()[number + 1] - doc_offsets.data()[number]);
  }
  float* scores;
  FloatResult result = array_of<float>({size_t(count)}, &scores);
  const RelationTask task = {shard, decoder, packed.view(table.data(), nullptr, nullptr), num_tokens, centroids.data(), buckets.data(), values.data(), dim,
                             width, first.pairs, width, {first.words.get(), first.scales.get(), no_bias.get()},
                             {second.words.get(), second.scales.get(), wide_bias.get()}, wide_scale.get(), wide_shift.get(), wide_products.get(),
                             constants.data(), upper.data(), by_cosine, documents ? documents->data() : nullptr, count, scores};
  nb::gil_scoped_release release;
  spread_with(count, 32, threads, [&] { return RelationMemory(task, longest); }, [&](RelationMemory& memory, int64_t begin, int64_t end) {
    isa.relation_maxsim(task, begin, end, memory.scratch);
  });
  return result;
}

}  // namespace

void add_relation(nb::module_& m) {
  using namespace nb::literals;
  m.def("relation_maxsim", &relation_maxsim, "isa"_a, "vectors"_a, "weights"_a, "table"_a, "products"_a, "constants"_a, "upper"_a,
        "codes"_a, "residuals"_a, "scales"_a, "token_weights"_a.none(), "doc_offsets"_a, "buckets"_a, "centroids"_a, "before"_a, "before_scales"_a,
        "after"_a, "after_scales"_a, "bias"_a, "scale"_a, "shift"_a, "by_cosine"_a, "documents"_a.none(), "threads"_a);
}

}  // namespace ray_lir
