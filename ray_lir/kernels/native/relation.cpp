// TRIAL: MaxSim with relations between the document tokens that neighbouring query tokens match.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "queries.h"
#include "sets.h"
#include "shard_arrays.h"
#include "threads.h"

namespace ray_lir {
namespace {

int16_t word_of(double value) { return int16_t(std::lround(std::clamp(value, -32768.0, 32767.0))); }

double mish(double y) { return y * std::tanh(std::log1p(std::exp(y))); }

// Return Mish as lines. Each passes through two points of Mish, chosen so that its errors above and below are about equal. Outside the lines
// Mish is nearly 0, or nearly its argument. Line k, counted from kMishLeast, has position k modulo kMishLines.
Aligned<int16_t> mish_lines(int bits, int16_t lines_a_unit) {
  Aligned<int16_t> lines(2 * kMishLines);
  const double length = std::ldexp(1.0 / lines_a_unit, 16 - bits);
  for (int k = 0; k < kMishLines; ++k) {
    const double middle = (kMishLeast + k + 0.5) * length, away = length / std::sqrt(8);
    const double slope = (mish(middle + away) - mish(middle - away)) / (2 * away), start = mish(middle + away) - slope * (middle + away);
    const bool first = k == 0, last = k == kMishLines - 1;
    const int place = (kMishLeast + k) & (kMishLines - 1);
    lines.get()[place] = word_of((first ? 0 : last ? 1 : slope) * (1 << 14));
    lines.get()[kMishLines + place] = word_of((first ? -0.0075 : last ? -0.0067 : start) * (1 << (bits - 1)));
  }
  return lines;
}

// A relation encoder in fixed-point numbers, for residuals with given bucket weights.
class RelationEncoder {
 public:
  // The unit of all arguments is chosen so that the hidden layer, before its norm, is shorter than 2^15. The layer is different: its values
  // are integers up to 127 times `step`, in twice this unit, so that sums of products fit. Its rows are in the order of RelationTask::layer.
  RelationEncoder(Matrix layer, float step, Floats bias, Floats scale, Floats shift, float epsilon, Weights buckets)
      : dim(layer.shape(1)), width(layer.shape(0) / 2), epsilon(epsilon), levels(buckets),
        layer(layer, levels, step), bias(2 * width), scale(width), shift(width) {
    require(layer.shape(0) % 128 == 0 && dim <= width, "a first layer of two halves, each of a multiple of 64 rows");
    for (const Floats& row : {bias, scale, shift}) require(int64_t(row.shape(0)) == dim, "a relation encoder of other dimensions");
    choose_bits(scale.data(), shift.data());
    choose_product_bits(step, buckets);
    for (int64_t d = 0; d < dim; ++d) {
      this->bias.get()[width + d] = word_of(bias.data()[d]);
      this->scale.get()[d] = word_of(std::ldexp(scale.data()[d], 15 + shift_bits - norm_bits));
      this->shift.get()[d] = word_of(std::ldexp(shift.data()[d], shift_bits));
    }
    lines_a_unit = word_of(std::ldexp(1 / 0.3, 16 - shift_bits));
    lines = mish_lines(shift_bits, lines_a_unit);
  }

  int64_t dim, width;
  float epsilon;
  Levels levels;
  Packed layer;
  Aligned<int16_t> bias, scale, shift;
  Aligned<int16_t> lines{0};
  int16_t lines_a_unit;
  int norm_bits, shift_bits, product_bits;
  float residual_unit;

 private:
  // Choose the largest numbers of bits without overflow. The output of the norm has length sqrt(D). Three values must fit: twice one of its
  // components, and the component after scale and shift, below 2^15; and the product of the hidden layer with a vector of length 2^15,
  // below 2^31.
  void choose_bits(const float* scale, const float* shift) {
    double largest = 0, length = 0, steepest = 0;
    const double root = std::sqrt(double(dim));
    for (int64_t d = 0; d < dim; ++d) {
      largest = std::max(largest, root * std::fabs(scale[d]) + std::fabs(shift[d]));
      steepest = std::max(steepest, double(std::fabs(scale[d])));
      length += double(shift[d]) * shift[d];
    }
    length = 1.1 * (root * steepest + std::sqrt(length)) + root / 10;
    norm_bits = int(std::ceil(13 - std::log2(root))) - 1;
    const double most = std::min({15 - std::log2(std::max(largest, 1e-9)), 17 - std::log2(length), norm_bits - std::log2(std::max(steepest, 1e-9))});
    shift_bits = std::clamp(int(std::floor(most + 1e-4)), 4, norm_bits);
  }

  // The value of one unit of a residual's product must be below one unit of the halves. scales[1] is at most about
  // 1 / (sqrt(D) * root mean square of the bucket weights).
  void choose_product_bits(float step, Weights buckets) {
    double squares = 1e-30;
    for (size_t k = 0; k < buckets.size(); ++k) squares += double(buckets.data()[k]) * buckets.data()[k] / double(buckets.size());
    const double unit = step * double(levels.step), largest = 1.2 * unit / std::sqrt(double(dim) * squares);
    product_bits = std::clamp(int(std::floor(-std::log2(std::max(largest, 1e-9)))), 0, 14);
    residual_unit = float(std::ldexp(unit, 15 + product_bits));
    if (product_bits)
      for (int64_t i = 0; i < layer.lanes; ++i) layer.starts.get()[i] += 1 << (product_bits - 1);
  }
};

// The product vector of each query token, as words, and the value of one unit of its products.
struct RelationProducts {
  Aligned<int16_t> words;
  Aligned<float> factors;

  RelationProducts(const Matrix& products, const RelationEncoder& encoder)
      : words(products.shape(0) * encoder.width), factors(products.shape(0)) {
    for (int64_t i = 0; i < int64_t(products.shape(0)); ++i) {
      const float* row = products.data() + i * encoder.dim;
      double squares = 0;
      for (int64_t d = 0; d < encoder.dim; ++d) squares += double(row[d]) * row[d];
      const double unit = std::sqrt(squares) / 32767;
      for (int64_t d = 0; d < encoder.dim && unit > 0; ++d) words.get()[i * encoder.width + d] = word_of(row[d] / unit);
      factors.get()[i] = float(std::ldexp(unit, 1 - encoder.shift_bits));
    }
  }
};

// The memory of one thread, for documents with up to `tokens` tokens in total.
struct RelationMemory {
  Aligned<uint8_t> rows;
  Aligned<float> all, ranking, best, number, selector_best, selector_number, values, least, top;
  Aligned<int32_t> candidates, found, nearest, origins, num_candidates, num_listed, relations;
  Aligned<uint32_t> masks;
  Aligned<int16_t> halves;
  Aligned<uint8_t> made;
  std::vector<AskedToken> asked;
  std::vector<Alignment> documents;
  RelationTask task;            // the task of this thread, with its own memory for the query's scores
  RelationScratch scratch;

  RelationMemory(const RelationTask& whole, int64_t tokens)
      : RelationMemory(whole, tokens, whole.query.lanes, kDocumentsTogether * whole.query.lanes) {
    task.query.best = best.get();
    task.query.factors = number.get();
    task.selectors.best = selector_best.get();
    task.selectors.factors = selector_number.get();
  }

 private:
  RelationMemory(const RelationTask& whole, int64_t tokens, int64_t lanes, int64_t all_lanes)
      : rows((2 * kRows + kMoreRows) * whole.decoder.stride), all(tokens * lanes, false),
        ranking(whole.has_selectors ? tokens * lanes : 0, false), best(lanes), number(lanes), selector_best(lanes), selector_number(lanes),
        values(all_lanes), least(all_lanes), top(std::min(whole.nearest_tokens, tokens) * lanes), candidates(tokens * lanes, false),
        found(tokens), nearest(all_lanes), origins(all_lanes), num_candidates(all_lanes), num_listed(all_lanes),
        relations(all_lanes * kFew, false), masks(tokens), halves(tokens * whole.layer.lanes, false), made(tokens), asked(tokens),
        documents(kDocumentsTogether), task(whole),
        scratch{rows.get(), all.get(), whole.has_selectors ? ranking.get() : all.get(), candidates.get(), found.get(), masks.get(), nearest.get(),
                origins.get(), values.get(), least.get(), num_candidates.get(), num_listed.get(), relations.get(), top.get(), halves.get(),
                made.get(), asked.data(), 0, documents.data(), 0} {}
};

int64_t longest_of(const std::optional<Numbers>& documents, Numbers doc_offsets, int64_t count) {
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t number = documents ? documents->data()[i] : i;
    longest = std::max(longest, doc_offsets.data()[number + 1] - doc_offsets.data()[number]);
  }
  return longest;
}

// Score documents with TRIAL from codes and residuals.
FloatResult relation_maxsim(const std::string& name, Matrix vectors, Floats weights, Scores table, Matrix products, Floats constants, Floats upper,
                            Codes codes, Array<uint8_t, 2> residuals, Scales scales, Pairs pairs, TokenWeights token_weights, Numbers doc_offsets,
                            const RelationEncoder& encoder, Array<int16_t, 2> layer_centroids, bool by_cosine, std::optional<Numbers> documents, int threads,
                            bool from_first_token, int64_t nearest_tokens, std::optional<Matrix> selectors,
                            std::optional<Scores> selector_table) {
  const Isa& isa = isa_named(name);
  const int64_t num_tokens = vectors.shape(0), dim = vectors.shape(1);
  const Decoder decoder = decoder_of(encoder.levels, dim, residuals.shape(1));
  const Shard shard = shard_of(codes, residuals, scales, pairs, token_weights, doc_offsets, decoder);
  require(nearest_tokens >= 0, "a number of tokens below 0");
  require(selectors.has_value() == selector_table.has_value() && (!selectors || nearest_tokens), "selectors without a table or a number of tokens");
  require(!selectors || (selectors->shape(0) == vectors.shape(0) && selectors->shape(1) == vectors.shape(1) &&
                         selector_table->shape(0) == table.shape(0) && selector_table->shape(1) == table.shape(1)), "selectors of another query");
  const Packed packed(vectors, weights, encoder.levels), packed_selectors(selectors ? *selectors : vectors, weights, encoder.levels);
  require(dim == encoder.dim, "a relation encoder of other dimensions");
  require(int64_t(table.shape(1)) == packed.lanes && table.shape(0) == layer_centroids.shape(0), "a table of another query, or of other centroids");
  require(int64_t(layer_centroids.shape(1)) == encoder.layer.lanes, "centroids of another first layer");
  require(int64_t(products.shape(0)) == num_tokens && int64_t(products.shape(1)) == dim && int64_t(constants.shape(0)) == num_tokens &&
              int64_t(upper.shape(0)) == num_tokens, "relation terms of another query");
  const RelationProducts words(products, encoder);
  const int64_t count = count_of(documents, doc_offsets), tokens = std::max(kTogether, longest_of(documents, doc_offsets, count));
  float* scores;
  FloatResult result = array_of<float>({size_t(count)}, &scores);
  const RelationTask task = {shard, decoder, packed.view(table.data(), nullptr, nullptr),
                             packed_selectors.view(selectors ? selector_table->data() : table.data(), nullptr, nullptr), selectors.has_value(), num_tokens,
                             encoder.layer.view(nullptr, nullptr, nullptr), encoder.product_bits, encoder.residual_unit,
                             layer_centroids.data(), encoder.bias.get(), dim, encoder.width, encoder.epsilon, encoder.norm_bits,
                             encoder.shift_bits, encoder.scale.get(), encoder.shift.get(), encoder.lines.get(), encoder.lines_a_unit,
                             words.words.get(), words.factors.get(), constants.data(), upper.data(), by_cosine, from_first_token,
                             nearest_tokens, documents ? documents->data() : nullptr, count, scores};
  nb::gil_scoped_release release;
  spread_with(count, kDocumentsTogether, threads, [&] { return RelationMemory(task, tokens); }, [&](RelationMemory& memory, int64_t begin, int64_t end) {
    isa.relation_maxsim(memory.task, begin, end, memory.scratch);
  });
  return result;
}

}  // namespace

void add_relation(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<RelationEncoder>(m, "RelationEncoder")
      .def(nb::init<Matrix, float, Floats, Floats, Floats, float, Weights>(), "layer"_a, "step"_a, "bias"_a, "scale"_a, "shift"_a, "epsilon"_a, "buckets"_a);
  m.def("relation_maxsim", &relation_maxsim, "isa"_a, "vectors"_a, "weights"_a, "table"_a, "products"_a, "constants"_a, "upper"_a,
        "codes"_a, "residuals"_a, "scales"_a, "pairs"_a.none(), "token_weights"_a.none(), "doc_offsets"_a, "encoder"_a, "layer_centroids"_a, "by_cosine"_a,
        "documents"_a.none(), "threads"_a, "from_first_token"_a = false, "nearest_tokens"_a = 0, "selectors"_a.none() = nb::none(),
        "selector_table"_a.none() = nb::none());
}

}  // namespace ray_lir
