// Posting lists: their order, WARP's scores of the tokens in some clusters, and the documents with a token in one of them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "queries.h"
#include "sets.h"
#include "shard_arrays.h"

namespace ray_lir {
namespace {

struct PostingArrays {
  Array<uint32_t, 1> postings;
  Numbers posting_offsets;
  Array<uint32_t, 1> documents;

  void check(const int64_t* clusters, int64_t count) const {
    require(posting_offsets.data()[posting_offsets.shape(0) - 1] == int64_t(postings.shape(0)), "posting offsets of other postings");
    require(documents.shape(0) == postings.shape(0), "documents of other postings");
    for (int64_t i = 0; i < count; ++i) require(clusters[i] >= 0 && clusters[i] + 1 < int64_t(posting_offsets.shape(0)), "a cluster does not exist");
  }
};

nb::tuple posting_scores(const std::string& name, Matrix vectors, Floats weights, Array<int64_t, 2> clusters, Matrix cluster_scores, Floats imputed,
                         bool floor, Array<uint32_t, 1> postings, Numbers posting_offsets, Array<uint32_t, 1> documents, std::optional<Floats> ratios,
                         std::optional<Array<uint8_t, 1>> token_pairs, Pairs pairs, Array<uint8_t, 2> residuals, TokenWeights token_weights, int64_t num_docs, Weights buckets) {
  const Isa& isa = isa_named(name);
  const Levels levels(buckets);
  const int64_t dim = vectors.shape(1);
  const Decoder decoder = decoder_of(levels, dim, residuals.shape(1));
  check_pairs(pairs);
  require(ratios.has_value() != pairs.has_value() && token_pairs.has_value() == pairs.has_value(), "either ratios, or numbers and pairs of scales");
  require(postings.shape(0) == residuals.shape(0) && (ratios ? ratios->shape(0) : token_pairs->shape(0)) == residuals.shape(0),
          "postings, residuals and scales of one length");
  require(!token_weights || token_weights->shape(0) == residuals.shape(0), "one weight a token");
  require(clusters.shape(0) == vectors.shape(0) && weights.shape(0) == vectors.shape(0) && imputed.shape(0) == vectors.shape(0),
          "one row of clusters a query token");
  const PostingArrays arrays{postings, posting_offsets, documents};
  arrays.check(clusters.data(), int64_t(clusters.size()));
  std::vector<int64_t> found;
  std::vector<float> totals;
  {
    nb::gil_scoped_release release;
    Aligned<DocumentState> states(num_docs);
    Aligned<float> worths(token_weights ? num_docs : 0);
    Aligned<uint8_t> row(decoder.stride);
    Aligned<int8_t> query(decoder.stride);
    double all_imputed = 0;
    for (int64_t i = 0; i < int64_t(vectors.shape(0)); ++i) {
      PostingTask task = {};
      const float* vector = vectors.data() + i * dim;
      const float scale = largest_of(vector, dim) / 127;
      for (int64_t d = 0; d < dim; ++d) {
        const int8_t byte = byte_of(vector[d], scale);
        query.get()[levels.place(d, dim)] = byte;
        task.start -= 64 * byte;
      }
      task.shard.residuals = residuals.data();
      task.shard.weights = token_weights ? token_weights->data() : nullptr;
      task.decoder = decoder;
      task.postings = postings.data();
      task.posting_offsets = posting_offsets.data();
      task.documents = documents.data();
      task.ratios = ratios ? ratios->data() : nullptr;
      task.numbers = token_pairs ? token_pairs->data() : nullptr;
      task.pairs = pairs ? pairs->data() : nullptr;
      task.query = query.get();
      task.slope = scale * levels.step;
      task.count = int64_t(clusters.shape(1));
      task.clusters = clusters.data() + i * task.count;
      task.cluster_scores = cluster_scores.data() + i * task.count;
      task.weight = weights.data()[i];
      task.imputed = imputed.data()[i];
      task.floor = floor;
      task.stamp = int32_t(i + 1);
      task.states = states.get();
      task.worths = worths.get();
      all_imputed += task.weight * task.imputed;
      isa.score_postings(task, row.get());
    }
    for (int64_t d = 0; d < num_docs; ++d)
      if (states.get()[d].stamp) {
        found.push_back(d);
        totals.push_back(float(states.get()[d].total + all_imputed));
      }
  }
  float* scores;
  int64_t* numbers;
  auto score_array = array_of<float>({totals.size()}, &scores);
  auto document_array = array_of<int64_t>({found.size()}, &numbers);
  std::copy(totals.begin(), totals.end(), scores);
  std::copy(found.begin(), found.end(), numbers);
  return nb::make_tuple(score_array, document_array);
}

// Return the documents with a token in one of the clusters, ascending.
nb::ndarray<nb::numpy, int64_t> candidates(Numbers clusters, Array<uint32_t, 1> postings, Numbers posting_offsets, Array<uint32_t, 1> documents,
                                           int64_t num_docs) {
  const PostingArrays arrays{postings, posting_offsets, documents};
  arrays.check(clusters.data(), int64_t(clusters.shape(0)));
  std::vector<int64_t> found;
  {
    nb::gil_scoped_release release;
    std::vector<uint8_t> seen(num_docs);
    for (size_t c = 0; c < clusters.shape(0); ++c)
      for (int64_t p = posting_offsets.data()[clusters.data()[c]]; p < posting_offsets.data()[clusters.data()[c] + 1]; ++p) seen[documents.data()[p]] = 1;
    for (size_t d = 0; d < seen.size(); ++d)
      if (seen[d]) found.push_back(int64_t(d));
  }
  int64_t* numbers;
  auto result = array_of<int64_t>({found.size()}, &numbers);
  std::copy(found.begin(), found.end(), numbers);
  return result;
}

// Memory that a function writes.
template <class T>
using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Code, class Value>
void append(const Code* codes, int64_t count, const Value* values, int64_t lowest, int64_t highest, int64_t* free, Value* out, int64_t size) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t code = codes[t];
    if (code < lowest || code >= highest) continue;
    const int64_t place = free[code]++;
    require(place >= 0 && place < size, "a list is longer than its offsets say");
    out[place] = values[t];
  }
}

template <class Value>
void append_values(const Codes& codes, const void* values, int64_t lowest, int64_t highest, int64_t* free, void* out, int64_t size) {
  const auto run = [&](auto code) {
    using Code = decltype(code);
    append(static_cast<const Code*>(codes.data()), int64_t(codes.shape(0)), static_cast<const Value*>(values), lowest, highest, free,
           static_cast<Value*>(out), size);
  };
  if (codes.dtype() == nb::dtype<uint16_t>()) return run(uint16_t{});
  require(codes.dtype() == nb::dtype<uint32_t>(), "codes of 16 or 32 bits");
  run(uint32_t{});
}

// Write the value of each token whose list is at least `lowest` and below `highest` to the next free place of its list.
void append_postings(Codes codes, Codes values, int64_t lowest, int64_t highest, Output<int64_t> free, nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  require(values.shape(0) == codes.shape(0) && values.dtype() == out.dtype(), "a value a token, of the type of the lists");
  require(lowest >= 0 && highest <= int64_t(free.shape(0)), "a free place for each list");
  const auto append_as = values.itemsize() == 1 ? append_values<uint8_t> : values.itemsize() == 4 ? append_values<uint32_t> : append_values<uint64_t>;
  require(values.itemsize() == 1 || values.itemsize() == 4 || values.itemsize() == 8, "values of 1, 4 or 8 bytes");
  nb::gil_scoped_release release;
  append_as(codes, values.data(), lowest, highest, free.data(), out.data(), int64_t(out.shape(0)));
}

}  // namespace

void add_postings(nb::module_& m) {
  using namespace nb::literals;
  m.def("posting_scores", &posting_scores, "isa"_a, "vectors"_a, "weights"_a, "clusters"_a, "cluster_scores"_a, "imputed"_a, "floor"_a, "postings"_a,
        "posting_offsets"_a, "documents"_a, "ratios"_a.none(), "token_pairs"_a.none(), "pairs"_a.none(), "residuals"_a, "token_weights"_a.none(), "num_docs"_a, "buckets"_a);
  m.def("append_postings", &append_postings, "codes"_a, "values"_a, "lowest"_a, "highest"_a, "free"_a, "out"_a);
  m.def("candidates", &candidates, "clusters"_a, "postings"_a, "posting_offsets"_a, "documents"_a, "num_docs"_a);
}

}  // namespace ray_lir
