// Centroid scores: the tables of a query, scans of the distinct codes of documents, and the clusters to probe.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "sets.h"
#include "shard_arrays.h"
#include "threads.h"
#include "vectors.h"

namespace ray_lir {
namespace {

nb::ndarray<nb::numpy, Score> centroid_scores(const std::string& name, Matrix vectors, Array<int16_t, 2> centroids, int threads) {
  const Isa& isa = isa_named(name);
  const int64_t dim = vectors.shape(1), stride = centroids.shape(1), count = centroids.shape(0);
  require(stride % 2 == 0 && stride >= dim, "centroids of other dimensions");
  const Columns columns(isa, vectors.data(), vectors.shape(0), dim);
  Score* scores;
  auto result = array_of<Score>({size_t(count), size_t(columns.lanes)}, &scores, false);
  const WordsTask task = {centroids.data(), stride, count, columns.words.get(), columns.lanes, columns.pairs, columns.scales.get(),
                          nullptr, nullptr, nullptr};
  nb::gil_scoped_release release;
  spread(count, 1024, threads, [&](int64_t begin, int64_t end) { isa.word_scores(task, scores, begin, end); });
  return result;
}

nb::tuple byte_table(const std::string& name, Scores table) {
  const Isa& isa = isa_named(name);
  require(table.shape(1) % kStep == 0, "a table of lanes");
  const int64_t byte_lanes = round_up(table.shape(1), kGroup);
  float *lows, *steps;
  uint8_t* bytes;
  auto low_array = array_of<float>({table.shape(1)}, &lows), step_array = array_of<float>({table.shape(1)}, &steps);
  auto byte_array = array_of<uint8_t>({table.shape(0), size_t(byte_lanes)}, &bytes, false);
  {
    nb::gil_scoped_release release;
    isa.byte_table({table.data(), int64_t(table.shape(0)), int64_t(table.shape(1)), byte_lanes, lows, steps, bytes});
  }
  return nb::make_tuple(byte_array, low_array, step_array);
}

// Return the distinct centroids of each document and their offsets, so that a scan reads each score of a document only once.
template <class Code>
nb::tuple distinct_codes_of(const Code* codes, Numbers doc_offsets, int64_t num_centroids) {
  const int64_t num_docs = int64_t(doc_offsets.shape(0)) - 1;
  std::vector<Code> found;
  int64_t* offsets;
  auto offset_array = array_of<int64_t>({size_t(num_docs + 1)}, &offsets);
  {
    nb::gil_scoped_release release;
    std::vector<int64_t> last_document(num_centroids, -1);
    for (int64_t d = 0; d < num_docs; ++d) {
      offsets[d] = int64_t(found.size());
      for (int64_t t = doc_offsets.data()[d]; t < doc_offsets.data()[d + 1]; ++t) {
        require(int64_t(codes[t]) < num_centroids, "a code without a centroid");
        if (std::exchange(last_document[codes[t]], d) != d) found.push_back(codes[t]);
      }
    }
    offsets[num_docs] = int64_t(found.size());
  }
  Code* distinct;
  auto code_array = array_of<Code>({found.size()}, &distinct);
  std::copy(found.begin(), found.end(), distinct);
  return nb::make_tuple(code_array, offset_array);
}

nb::tuple distinct_codes(Codes codes, Numbers doc_offsets, int64_t num_centroids) {
  const Shard shard = shard_of(codes, doc_offsets);
  return shard.wide_codes ? distinct_codes_of(static_cast<const uint32_t*>(shard.codes), doc_offsets, num_centroids)
                          : distinct_codes_of(static_cast<const uint16_t*>(shard.codes), doc_offsets, num_centroids);
}

// Find, for each centroid, the query tokens out of 8 from `first` on for which its score reaches the threshold; one bit each.
void reached_of(const Isa& isa, Scores table, int64_t num_tokens, int64_t first, const float* thresholds, uint8_t* masks) {
  float padded[kStep];
  for (int j = 0; j < kStep; ++j) padded[j] = first + j < num_tokens ? thresholds[j] : INFINITY;
  isa.reached({table.data() + first, int64_t(table.shape(0)), int64_t(table.shape(1)), padded, masks});
}

// Return for each centroid whether its score reaches the threshold for any query token.
std::vector<uint8_t> kept_centroids(const Isa& isa, Scores table, int64_t num_tokens, float threshold) {
  std::vector<uint8_t> kept(table.shape(0)), masks(table.shape(0));
  const std::vector<float> thresholds(kStep, threshold);
  for (int64_t first = 0; first < num_tokens; first += kStep) {
    reached_of(isa, table, num_tokens, first, thresholds.data(), masks.data());
    for (size_t c = 0; c < kept.size(); ++c) kept[c] |= masks[c];
  }
  return kept;
}

template <class Item>
FloatResult table_maxsim(const std::string& name, Array<Item, 2> table, Floats weights, float base, Codes codes, Numbers doc_offsets,
                         std::optional<float> threshold, std::optional<Numbers> documents, int threads) {
  const Isa& isa = isa_named(name);
  const int64_t lanes = int64_t(table.shape(1)), count = count_of(documents, doc_offsets);
  require(lanes % (sizeof(Item) == 1 ? kGroup : kStep) == 0 && int64_t(weights.shape(0)) <= lanes, "a table of another query");
  std::vector<uint8_t> kept;
  if constexpr (sizeof(Item) == sizeof(Score))
    if (threshold) kept = kept_centroids(isa, table, int64_t(weights.shape(0)), *threshold);
  Aligned<float> factors(lanes);
  std::copy(weights.data(), weights.data() + weights.shape(0), factors.get());
  float* scores;
  FloatResult result = array_of<float>({size_t(count)}, &scores);
  const CentroidTask task = {shard_of(codes, doc_offsets), table.data(), factors.get(), base, lanes, threshold ? kept.data() : nullptr,
                             documents ? documents->data() : nullptr, count, scores};
  auto* loop = sizeof(Item) == 1 ? isa.byte_maxsim : isa.centroid_maxsim;
  nb::gil_scoped_release release;
  spread(count, 512, threads, [&](int64_t begin, int64_t end) {
    Aligned<float> best(lanes);
    loop(task, begin, end, best.get());
  });
  return result;
}

struct Centroid {
  float score;
  int32_t number;

  bool operator<(const Centroid& other) const { return score > other.score || (score == other.score && number < other.number); }
};

constexpr int64_t kSampled = 16;  // distance of the sampled centroids from which the highest scores are estimated

// Return every `step`th centroid's score for one query token.
std::vector<float> column_of(const Isa& isa, Scores table, int64_t column, int64_t step) {
  std::vector<Score> scores;
  for (int64_t c = 0; c < int64_t(table.shape(0)); c += step) scores.push_back(table.data()[c * int64_t(table.shape(1)) + column]);
  std::vector<float> floats(scores.size());
  isa.to_floats(scores.data(), int64_t(scores.size()), floats.data());
  return floats;
}

// Estimate a score that slightly more than `bound` centroids reach.
float likely_threshold(const Isa& isa, Scores table, int64_t column, int64_t bound) {
  std::vector<float> sample = column_of(isa, table, column, kSampled);
  const int64_t rank = std::min<int64_t>(sample.size() - 1, bound / kSampled + bound / (2 * kSampled) + 8);
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
  return sample[rank];
}

// Return the centroids that reach the threshold of one query token, or all centroids if fewer than `bound` do. The masks are followed by
// zeros up to a multiple of 8.
std::vector<Centroid> found_centroids(const Isa& isa, Scores table, int64_t column, const uint8_t* masks, int bit, int64_t bound) {
  std::vector<Centroid> found;
  const int64_t count = table.shape(0), lanes = table.shape(1);
  std::vector<Score> scores;
  std::vector<int32_t> numbers;
  for (int64_t c = 0; c < count; c += 8) {  // eight masks at a time, because few centroids reach the threshold
    uint64_t eight;
    std::memcpy(&eight, masks + c, 8);
    for (eight &= uint64_t(0x0101010101010101) << bit; eight; eight &= eight - 1) numbers.push_back(int32_t(c + __builtin_ctzll(eight) / 8));
  }
  if (int64_t(numbers.size()) < bound) {
    numbers.resize(count);
    std::iota(numbers.begin(), numbers.end(), 0);
  }
  for (int32_t c : numbers) scores.push_back(table.data()[c * lanes + column]);
  std::vector<float> floats(scores.size());
  isa.to_floats(scores.data(), int64_t(scores.size()), floats.data());
  for (size_t i = 0; i < numbers.size(); ++i) found.push_back({floats[i], numbers[i]});
  return found;
}

// Return the score of the centroid at which t_prime tokens are passed, in the order of scores, or else of the last centroid.
float passed_score(std::vector<Centroid>& found, const int64_t* sizes, int64_t t_prime) {
  int64_t low = 0, high = found.size(), passed = 0;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(found.begin() + low, found.begin() + middle, found.begin() + high);
    int64_t here = 0;
    for (int64_t p = low; p < middle; ++p) here += sizes[found[p].number];
    if (passed + here >= t_prime) {
      high = middle;
    } else {
      passed += here;
      low = middle;
    }
  }
  return found[low].score;
}

// Return the nprobe best centroids of each query token, best first, and the score at which t_prime tokens are passed.
nb::tuple probe(const std::string& name, Scores table, int64_t num_tokens, Numbers sizes, int64_t nprobe, int64_t bound, int64_t t_prime) {
  const Isa& isa = isa_named(name);
  const int64_t num_centroids = table.shape(0);
  require(table.shape(1) % kStep == 0 && num_tokens <= int64_t(table.shape(1)), "a table of another query");
  require(int64_t(sizes.shape(0)) == num_centroids, "sizes of other centroids");
  require(1 <= nprobe && nprobe <= bound && bound <= num_centroids, "nprobe <= bound <= centroids");
  int64_t* clusters;
  float *cluster_scores, *imputed;
  auto cluster_array = array_of<int64_t>({size_t(num_tokens), size_t(nprobe)}, &clusters);
  auto score_array = array_of<float>({size_t(num_tokens), size_t(nprobe)}, &cluster_scores);
  auto imputed_array = array_of<float>({size_t(num_tokens)}, &imputed);
  {
    nb::gil_scoped_release release;
    // Usually t_prime tokens are passed within twice the number of clusters of mean size that hold them, well before `bound`.
    const int64_t total = std::accumulate(sizes.data(), sizes.data() + num_centroids, int64_t(0));
    const int64_t few = std::clamp<int64_t>(2 * num_centroids * t_prime / std::max<int64_t>(1, total), nprobe, bound);
    std::vector<uint8_t> masks(round_up(num_centroids, 8)), more(masks.size());
    const auto reach = [&](int64_t first, int64_t count, std::vector<uint8_t>& reached) {
      float thresholds[kStep];
      for (int j = 0; j < kStep && first + j < num_tokens; ++j) thresholds[j] = likely_threshold(isa, table, first + j, count);
      reached_of(isa, table, num_tokens, first, thresholds, reached.data());
    };
    const auto best = [&](int64_t i, int64_t count, const std::vector<uint8_t>& reached) {
      std::vector<Centroid> found = found_centroids(isa, table, i, reached.data(), int(i % kStep), count);
      std::nth_element(found.begin(), found.begin() + count - 1, found.end());
      found.resize(count);
      return found;
    };
    for (int64_t i = 0; i < num_tokens; ++i) {
      if (i % kStep == 0) reach(i, few, masks);
      std::vector<Centroid> found = best(i, few, masks);
      int64_t passed = 0;
      for (const Centroid& each : found) passed += sizes.data()[each.number];
      if (passed < t_prime && few < bound) {
        reach(i / kStep * kStep, bound, more);
        found = best(i, bound, more);
      }
      std::partial_sort(found.begin(), found.begin() + nprobe, found.end());
      for (int64_t p = 0; p < nprobe; ++p) clusters[i * nprobe + p] = found[p].number, cluster_scores[i * nprobe + p] = found[p].score;
      imputed[i] = passed_score(found, sizes.data(), t_prime);
    }
  }
  return nb::make_tuple(cluster_array, score_array, imputed_array);
}

}  // namespace

void add_centroids(nb::module_& m) {
  using namespace nb::literals;
  m.def("centroid_maxsim", &table_maxsim<Score>, "isa"_a, "table"_a, "weights"_a, "base"_a, "codes"_a, "doc_offsets"_a, "threshold"_a.none(),
        "documents"_a.none(), "threads"_a);
  m.def("byte_maxsim", &table_maxsim<uint8_t>, "isa"_a, "table"_a, "weights"_a, "base"_a, "codes"_a, "doc_offsets"_a, "threshold"_a.none(),
        "documents"_a.none(), "threads"_a);
  m.def("centroid_scores", &centroid_scores, "isa"_a, "vectors"_a, "centroids"_a, "threads"_a);
  m.def("byte_table", &byte_table, "isa"_a, "table"_a);
  m.def("probe", &probe, "isa"_a, "table"_a, "num_tokens"_a, "sizes"_a, "nprobe"_a, "bound"_a, "t_prime"_a);
  m.def("distinct_codes", &distinct_codes, "codes"_a, "doc_offsets"_a, "num_centroids"_a);
}

}  // namespace ray_lir
