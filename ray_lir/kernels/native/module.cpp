// The Python module: checks arrays, packs queries, spreads loops over threads, and picks the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "isa.h"

#if defined(RAY_LIR_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nb = nanobind;

namespace ray_lir {
namespace {

template <class T, int DIMS>
using Array = nb::ndarray<const T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
using Floats = Array<float, 1>;
using Matrix = Array<float, 2>;
using Numbers = Array<int64_t, 1>;
using Scores = Array<Score, 2>;
using Codes = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Memory for vector registers, zero at first unless all of it will be written.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count, bool zeros = true)
      : data_(static_cast<T*>(std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * sizeof(T), 64)))) {
    if (!data_) throw std::bad_alloc();
    if (zeros) std::memset(static_cast<void*>(data_.get()), 0, count * sizeof(T));
  }
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
};

template <class T>
nb::ndarray<nb::numpy, T> array_of(std::vector<size_t> shape, T** data, bool zeros = true) {
  size_t size = 1;
  for (size_t n : shape) size *= n;
  auto* memory = new Aligned<T>(int64_t(size), zeros);
  *data = memory->get();
  nb::capsule owner(memory, [](void* p) noexcept { delete static_cast<Aligned<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(*data, shape.size(), shape.data(), owner);
}

// Runs work(mine, begin, end) over 0 to count in pieces that threads take one after another; each thread makes what is its own first.
template <class Make, class Work>
void spread_with(int64_t count, int64_t piece, int threads, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    auto mine = make();
    for (int64_t begin; (begin = next.fetch_add(piece)) < count;) work(mine, begin, std::min(count, begin + piece));
  };
  const int64_t useful = std::min<int64_t>(threads, (count + piece - 1) / piece);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < useful; ++i) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// The same where nothing is a thread's own.
template <class Work>
void spread(int64_t count, int64_t piece, int threads, const Work& work) {
  spread_with(count, piece, threads, [] { return 0; }, [&](int, int64_t begin, int64_t end) { work(begin, end); });
}

// ---- instruction sets -------------------------------------------------------------------------------------------------

bool has_avx512() {
#if defined(RAY_LIR_EMULATE)
  return true;
#elif defined(RAY_LIR_X86)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool may_use_tiles() {
#if defined(RAY_LIR_EMULATE)
  return true;
#elif defined(RAY_LIR_AMX) && defined(__linux__)
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-int8")) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<const Isa*> supported() {
  std::vector<const Isa*> sets = {portable_isa()};
#ifdef RAY_LIR_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return sets;
  sets.push_back(avx2_isa());
  if (!has_avx512()) return sets;
  sets.push_back(avx512_isa());
#ifdef RAY_LIR_AMX
  if (may_use_tiles()) sets.push_back(amx_isa());
#endif
#endif
  return sets;
}

const Isa& isa_named(const std::string& name) {
  for (const Isa* isa : supported())
    if (name == isa->name) return *isa;
  throw std::invalid_argument("this processor cannot run " + name);
}

// ---- what is made of a query and of a codec ---------------------------------------------------------------------------

struct Levels {
  uint8_t levels[256] = {};
  std::vector<uint8_t> lut;
  float step = 1;
  int nbits = 0;

  explicit Levels(Floats weights) {
    const int64_t count = int64_t(weights.shape(0));
    while ((1 << nbits) < count) ++nbits;
    require((1 << nbits) == count && (nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8), "bucket weights must be 2, 4, 16 or 256");
    float largest = 0;
    for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(weights.data()[k]));
    if (largest > 0) step = largest / 63;
    for (int64_t k = 0; k < count; ++k) levels[k] = uint8_t(64 + std::lround(weights.data()[k] / step));
    const int per_byte = 8 / nbits;
    lut.resize(256 * per_byte);
    for (int byte = 0; byte < 256; ++byte)
      for (int j = 0; j < per_byte; ++j) lut[byte * per_byte + j] = levels[byte >> (8 - nbits * (j + 1)) & (count - 1)];
  }

  // Where a dimension stands in a decoded row.
  int64_t place(int64_t d, int64_t dim) const {
    const int64_t block = d / 64 * 64;
    return nbits == 4 && block + 64 <= dim ? block + d % 2 * 32 + d % 64 / 2 : d;
  }
};

Decoder decoder_of(const Levels& levels, int64_t dim) {
  return {levels.nbits, (dim + 3) / 4, dim * levels.nbits / 8, round_up(dim, 64), levels.lut.data(), levels.levels};
}

float largest_of(const float* values, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

int64_t lanes_of(int64_t num_tokens) { return round_up(std::max<int64_t>(num_tokens, 1), kStep); }

// A query as bytes: each token's values times 127 over its largest, so that no token's score depends on another token.
struct Packed {
  int64_t lanes;
  Aligned<int8_t> bytes;
  Aligned<int32_t> starts;
  Aligned<float> slopes, weights;

  Packed(Matrix vectors, Floats importance, const Levels& levels)
      : lanes(lanes_of(vectors.shape(0))),
        bytes(round_up(lanes, kGroup) * round_up(vectors.shape(1), 64)), starts(lanes), slopes(lanes), weights(lanes) {
    const int64_t dim = vectors.shape(1), stride = round_up(dim, 64);
    require(dim > 0, "vectors without dimensions");
    require(importance.shape(0) == vectors.shape(0), "one weight a query token");
    for (int64_t i = 0; i < int64_t(vectors.shape(0)); ++i) {
      const float scale = largest_of(vectors.data() + i * dim, dim) / 127;
      slopes.get()[i] = scale * levels.step;
      int8_t* group = bytes.get() + i / kGroup * kGroup * stride + i % kGroup * 4;
      for (int64_t d = 0; d < dim; ++d) {
        const auto byte = int8_t(scale > 0 ? std::lround(vectors.data()[i * dim + d] / scale) : 0);
        const int64_t place = levels.place(d, dim);
        group[place / 4 * kGroup * 4 + place % 4] = byte;
        starts.get()[i] -= 64 * byte;
      }
      weights.get()[i] = importance.data()[i];
    }
  }

  PackedQuery view(const Score* table, float* best, float* factors) const {
    return {bytes.get(), starts.get(), slopes.get(), table, weights.get(), best, factors, nullptr, lanes};
  }
};

// Up to `lanes` columns of 16-bit words, each scaled to length 2^14.
struct Columns {
  int64_t lanes, pairs;
  Aligned<int16_t> words;
  Aligned<float> scales;        // what a product with words of length 2^14 is worth

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

Shard shard_of(const Codes& codes, Numbers doc_offsets) {
  const bool wide = codes.dtype() == nb::dtype<uint32_t>();
  require(wide || codes.dtype() == nb::dtype<uint16_t>(), "codes must be uint16 or uint32");
  require(doc_offsets.shape(0) > 0 && doc_offsets.data()[doc_offsets.shape(0) - 1] <= int64_t(codes.shape(0)), "offsets beyond the codes");
  return {codes.data(), wide, nullptr, nullptr, nullptr, doc_offsets.data()};
}

using TokenWeights = std::optional<Array<uint16_t, 1>>;

// A shard with residuals of as many dimensions as the decoder's.
Shard shard_of(const Codes& codes, const Array<uint8_t, 2>& residuals, const Array<uint16_t, 2>& scales, const TokenWeights& weights,
               Numbers doc_offsets, const Decoder& decoder) {
  require(int64_t(residuals.shape(1)) == decoder.packed_bytes, "residuals of other dimensions or bits");
  require(residuals.shape(0) == codes.shape(0) && scales.shape(0) == codes.shape(0) && scales.shape(1) == 2, "codes, residuals and scales of one length");
  require(!weights || weights->shape(0) == codes.shape(0), "one weight a token");
  Shard shard = shard_of(codes, doc_offsets);
  shard.residuals = residuals.data();
  shard.scales = scales.data();
  shard.weights = weights ? weights->data() : nullptr;
  return shard;
}

int64_t count_of(const std::optional<Numbers>& documents, Numbers doc_offsets) {
  const int64_t num_docs = int64_t(doc_offsets.shape(0)) - 1;
  if (!documents) return num_docs;
  for (size_t i = 0; i < documents->shape(0); ++i)
    require(documents->data()[i] >= 0 && documents->data()[i] < num_docs, "a document number is not in the shard");
  return int64_t(documents->shape(0));
}

// ---- kernels ----------------------------------------------------------------------------------------------------------

using FloatResult = nb::ndarray<nb::numpy, float>;

FloatResult residual_maxsim(const std::string& name, std::vector<Matrix> vectors, std::vector<Floats> weights, std::vector<Scores> tables,
                            Codes codes, Array<uint8_t, 2> residuals, Array<uint16_t, 2> scales, TokenWeights token_weights, Numbers doc_offsets,
                            Floats buckets, std::optional<Numbers> documents, int threads) {
  const Isa& isa = isa_named(name);
  const Levels levels(buckets);
  const size_t num_queries = vectors.size();
  require(num_queries > 0 && weights.size() == num_queries && tables.size() == num_queries, "one table and one row of weights a query");
  const Decoder decoder = decoder_of(levels, vectors[0].shape(1));
  const Shard shard = shard_of(codes, residuals, scales, token_weights, doc_offsets, decoder);
  const int64_t count = count_of(documents, doc_offsets);
  float* scores;
  FloatResult result = array_of<float>({num_queries, size_t(count)}, &scores);
  std::vector<Packed> packed;
  int64_t lanes = 0;
  for (size_t q = 0; q < num_queries; ++q) {
    require(vectors[q].shape(1) == vectors[0].shape(1), "queries of different dimensions");
    packed.emplace_back(vectors[q], weights[q], levels);
    require(int64_t(tables[q].shape(1)) == packed.back().lanes, "a table of another query");
    lanes += packed.back().lanes;
  }
  nb::gil_scoped_release release;
  spread(count, std::max<int64_t>(1, std::min<int64_t>(256, count / (4 * std::max(1, threads)))), threads, [&](int64_t begin, int64_t end) {
    Aligned<uint8_t> rows((2 * kRows + kMoreRows) * decoder.stride);
    Aligned<float> best(2 * lanes);
    std::vector<PackedQuery> queries;
    float* scratch = best.get();
    for (size_t q = 0; q < num_queries; scratch += packed[q++].lanes) queries.push_back(packed[q].view(tables[q].data(), scratch, scratch + lanes));
    isa.residual_maxsim({shard, decoder, queries.data(), int64_t(num_queries), documents ? documents->data() : nullptr, count, scores}, begin,
                        end, rows.get());
  });
  return result;
}

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

// Which of 8 query tokens, from `first`, each centroid scores at least a threshold for, a bit each; of tokens past the last none.
void reached_of(const Isa& isa, Scores table, int64_t num_tokens, int64_t first, const float* thresholds, uint8_t* masks) {
  float padded[kStep];
  for (int j = 0; j < kStep; ++j) padded[j] = first + j < num_tokens ? thresholds[j] : INFINITY;
  isa.reached({table.data() + first, int64_t(table.shape(0)), int64_t(table.shape(1)), padded, masks});
}

// Whether a centroid scores at least the threshold for some query token.
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

struct Centroid {
  float score;
  int32_t number;

  bool operator<(const Centroid& other) const { return score > other.score || (score == other.score && number < other.number); }
};

constexpr int64_t kSampled = 16;  // every so many centroids guess how high the best ones score

// A column of a table, every `step`th centroid.
std::vector<float> column_of(const Isa& isa, Scores table, int64_t column, int64_t step) {
  std::vector<Score> scores;
  for (int64_t c = 0; c < int64_t(table.shape(0)); c += step) scores.push_back(table.data()[c * int64_t(table.shape(1)) + column]);
  std::vector<float> floats(scores.size());
  isa.to_floats(scores.data(), int64_t(scores.size()), floats.data());
  return floats;
}

// A score that a few more than `bound` centroids are likely to reach.
float likely_threshold(const Isa& isa, Scores table, int64_t column, int64_t bound) {
  std::vector<float> sample = column_of(isa, table, column, kSampled);
  const int64_t rank = std::min<int64_t>(sample.size() - 1, bound / kSampled + bound / (2 * kSampled) + 8);
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
  return sample[rank];
}

// The centroids of one query token that were found to score enough, or all of them if those are fewer than `bound`.
std::vector<Centroid> found_centroids(const Isa& isa, Scores table, int64_t column, const uint8_t* masks, int bit, int64_t bound) {
  std::vector<Centroid> found;
  const int64_t count = table.shape(0), lanes = table.shape(1);
  std::vector<Score> scores;
  std::vector<int32_t> numbers;
  for (int64_t c = 0; c < count; ++c)
    if (masks[c] >> bit & 1) numbers.push_back(int32_t(c));
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

// The score of the first centroid, in order, at which t_prime tokens have been passed; or of the last.
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

// The nprobe best centroids of each query token, best first, and the score at which t_prime tokens have been passed.
nb::tuple probe(const std::string& name, Scores table, int64_t num_tokens, Numbers sizes, int64_t nprobe, int64_t bound, int64_t t_prime) {
  const Isa& isa = isa_named(name);
  const int64_t num_centroids = table.shape(0);
  require(table.shape(1) % kStep == 0 && num_tokens <= int64_t(table.shape(1)), "a table of another query");
  require(int64_t(sizes.shape(0)) == num_centroids, "sizes of other centroids");
  require(1 <= nprobe && nprobe <= bound && bound <= num_centroids, "nprobe <= bound <= centroids");
  int64_t* cells;
  float *cell_scores, *imputed;
  auto cell_array = array_of<int64_t>({size_t(num_tokens), size_t(nprobe)}, &cells);
  auto score_array = array_of<float>({size_t(num_tokens), size_t(nprobe)}, &cell_scores);
  auto imputed_array = array_of<float>({size_t(num_tokens)}, &imputed);
  {
    nb::gil_scoped_release release;
    std::vector<uint8_t> masks(num_centroids);
    for (int64_t i = 0; i < num_tokens; ++i) {
      if (i % kStep == 0) {
        float thresholds[kStep];
        for (int j = 0; j < kStep && i + j < num_tokens; ++j) thresholds[j] = likely_threshold(isa, table, i + j, bound);
        reached_of(isa, table, num_tokens, i, thresholds, masks.data());
      }
      std::vector<Centroid> found = found_centroids(isa, table, i, masks.data(), int(i % kStep), bound);
      std::nth_element(found.begin(), found.begin() + bound - 1, found.end());
      found.resize(bound);
      std::partial_sort(found.begin(), found.begin() + nprobe, found.end());
      for (int64_t p = 0; p < nprobe; ++p) cells[i * nprobe + p] = found[p].number, cell_scores[i * nprobe + p] = found[p].score;
      imputed[i] = passed_score(found, sizes.data(), t_prime);
    }
  }
  return nb::make_tuple(cell_array, score_array, imputed_array);
}

struct PostingArrays {
  Array<uint32_t, 1> postings;
  Numbers posting_offsets;
  Array<uint32_t, 1> block_documents;
  Numbers doc_offsets;

  void check(const int64_t* cells, int64_t count) const {
    require(posting_offsets.data()[posting_offsets.shape(0) - 1] == int64_t(postings.shape(0)), "posting offsets of other postings");
    require(int64_t(block_documents.shape(0)) * 64 >= int64_t(postings.shape(0)), "block documents of other postings");
    for (int64_t i = 0; i < count; ++i) require(cells[i] >= 0 && cells[i] + 1 < int64_t(posting_offsets.shape(0)), "a cell does not exist");
  }
};

nb::tuple posting_scores(const std::string& name, Matrix vectors, Floats weights, Array<int64_t, 2> cells, Matrix cell_scores, Floats imputed,
                         bool floor, Array<uint32_t, 1> postings, Numbers posting_offsets, Array<uint32_t, 1> block_documents,
                         Array<uint8_t, 2> residuals, Array<uint16_t, 2> scales, TokenWeights token_weights, Numbers doc_offsets,
                         Floats buckets) {
  const Isa& isa = isa_named(name);
  const Levels levels(buckets);
  const int64_t dim = vectors.shape(1), num_docs = int64_t(doc_offsets.shape(0)) - 1;
  const Decoder decoder = decoder_of(levels, dim);
  require(int64_t(residuals.shape(1)) == decoder.packed_bytes, "residuals of other dimensions or bits");
  require(scales.shape(0) == residuals.shape(0) && scales.shape(1) == 2 && postings.shape(0) <= residuals.shape(0), "postings, residuals and scales of one length");
  require(!token_weights || token_weights->shape(0) == residuals.shape(0), "one weight a token");
  require(cells.shape(0) == vectors.shape(0) && weights.shape(0) == vectors.shape(0) && imputed.shape(0) == vectors.shape(0),
          "one row of cells a query token");
  const PostingArrays arrays{postings, posting_offsets, block_documents, doc_offsets};
  arrays.check(cells.data(), int64_t(cells.size()));
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
        const auto byte = int8_t(scale > 0 ? std::lround(vector[d] / scale) : 0);
        query.get()[levels.place(d, dim)] = byte;
        task.start -= 64 * byte;
      }
      task.shard.residuals = residuals.data();
      task.shard.scales = scales.data();
      task.shard.weights = token_weights ? token_weights->data() : nullptr;
      task.shard.doc_offsets = doc_offsets.data();
      task.decoder = decoder;
      task.postings = postings.data();
      task.posting_offsets = posting_offsets.data();
      task.block_documents = block_documents.data();
      task.query = query.get();
      task.slope = scale * levels.step;
      task.count = int64_t(cells.shape(1));
      task.cells = cells.data() + i * task.count;
      task.cell_scores = cell_scores.data() + i * task.count;
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
  int64_t* documents;
  auto score_array = array_of<float>({totals.size()}, &scores);
  auto document_array = array_of<int64_t>({found.size()}, &documents);
  std::copy(totals.begin(), totals.end(), scores);
  std::copy(found.begin(), found.end(), documents);
  return nb::make_tuple(score_array, document_array);
}

// Every document's centroids, each once, and where each document's begin: a scan asks no token twice for the same score.
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

// Documents with a token in one of the cells, ascending.
nb::ndarray<nb::numpy, int64_t> candidates(Numbers cells, Array<uint32_t, 1> postings, Numbers posting_offsets,
                                           Array<uint32_t, 1> block_documents, Numbers doc_offsets) {
  const PostingArrays arrays{postings, posting_offsets, block_documents, doc_offsets};
  arrays.check(cells.data(), int64_t(cells.shape(0)));
  std::vector<int64_t> found;
  {
    nb::gil_scoped_release release;
    std::vector<uint8_t> seen(doc_offsets.shape(0) - 1);
    for (size_t c = 0; c < cells.shape(0); ++c)
      for (int64_t p = posting_offsets.data()[cells.data()[c]]; p < posting_offsets.data()[cells.data()[c] + 1]; ++p) {
        int64_t document = block_documents.data()[postings.data()[p] / 64];
        while (doc_offsets.data()[document + 1] <= postings.data()[p]) ++document;
        seen[document] = 1;
      }
    for (size_t d = 0; d < seen.size(); ++d)
      if (seen[d]) found.push_back(int64_t(d));
  }
  int64_t* documents;
  auto result = array_of<int64_t>({found.size()}, &documents);
  std::copy(found.begin(), found.end(), documents);
  return result;
}

// [T, D] rows as floats, whatever they come as.
const float* as_floats(const Isa& isa, const nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>& rows, int64_t first, int64_t count,
                       std::vector<float>& memory) {
  const int64_t dim = rows.shape(1);
  if (rows.dtype() == nb::dtype<float>()) return static_cast<const float*>(rows.data()) + first * dim;
  memory.resize(count * dim);
  isa.to_floats(static_cast<const uint16_t*>(rows.data()) + first * dim, count * dim, memory.data());
  return memory.data();
}

using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_rows(const Rows& rows) {
  require(rows.dtype() == nb::dtype<float>() || rows.dtype() == nb::dtype<uint16_t>(), "rows must be float32, or float16 viewed as uint16");
}

// Centroids as rows of words, all scaled alike so that products stay comparable, with what makes products distances.
struct WordRows {
  int64_t stride;
  Aligned<int16_t> words;
  std::vector<int32_t> biases;  // -|c|^2 / 2 as a product with a vector of length one; empty if products are compared as they are
  double unit;                  // what a product is to be divided by

  WordRows(Matrix centroids, bool euclidean) : stride(round_up(centroids.shape(1), 2)), words(centroids.shape(0) * stride) {
    const int64_t count = centroids.shape(0), dim = centroids.shape(1);
    std::vector<double> squares(count);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t d = 0; d < dim; ++d) squares[c] += double(centroids.data()[c * dim + d]) * centroids.data()[c * dim + d];
    const double longest = count ? std::sqrt(*std::max_element(squares.begin(), squares.end())) : 0;
    const double factor = (1 << kWordBits) / (longest > 0 ? longest : 1);
    unit = factor * (1 << kWordBits);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t d = 0; d < dim; ++d) words.get()[c * stride + d] = int16_t(std::lrint(centroids.data()[c * dim + d] * factor));
    if (euclidean)
      for (double square : squares) biases.push_back(int32_t(-square / 2 * unit));
  }
};

// The nearest row, from `first` to `last`, of up to 32 vectors.
void nearest_of(const Isa& isa, const WordRows& rows, int64_t first, int64_t last, const Columns& columns, int32_t* nearest, int32_t* products) {
  isa.word_nearest({rows.words.get() + first * rows.stride, rows.stride, last - first, columns.words.get(), columns.lanes, columns.pairs,
                    nullptr, rows.biases.empty() ? nullptr : rows.biases.data() + first, nearest, products});
}

constexpr int64_t kColumns = 2 * kGroup;

// The nearest centroid of each vector: the largest product, or, with `euclidean`, the smallest distance from a vector of length one.
nb::tuple assign(const std::string& name, Rows vectors, Matrix centroids, bool euclidean, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(centroids.shape(1)) == dim && centroids.shape(0) > 0, "centroids of other dimensions");
  const WordRows rows(centroids, euclidean);
  int64_t* codes;
  float* nearness;
  auto code_array = array_of<int64_t>({size_t(count)}, &codes);
  auto nearness_array = array_of<float>({size_t(count)}, &nearness);
  {
    nb::gil_scoped_release release;
    spread(count, 32 * kColumns, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> memory;
      int32_t nearest[kColumns], products[kColumns];
      for (int64_t first = begin; first < end; first += kColumns) {
        const int64_t here = std::min(kColumns, end - first);
        const Columns columns(isa, as_floats(isa, vectors, first, here, memory), here, dim);
        nearest_of(isa, rows, 0, centroids.shape(0), columns, nearest, products);
        for (int64_t i = 0; i < here; ++i) {
          codes[first + i] = nearest[i];
          nearness[first + i] = float(products[i] / rows.unit);
        }
      }
    });
  }
  return nb::make_tuple(code_array, nearness_array);
}

// [T, D] rows as words of length 2^14.
Aligned<int16_t> as_words(const Isa& isa, const Rows& vectors, int64_t begin, int64_t count, int64_t stride) {
  std::vector<float> memory, lengths(count);
  Aligned<int16_t> words(count * stride);
  isa.to_words(as_floats(isa, vectors, begin, count, memory), count, vectors.shape(1), stride, words.get(), lengths.data());
  return words;
}

// For each vector the `nprobe` cells whose centres are nearest to it, nearest first.
nb::ndarray<nb::numpy, int64_t> nearest_cells(const std::string& name, Rows vectors, Matrix cells, int64_t nprobe, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1), num_cells = cells.shape(0);
  require(int64_t(cells.shape(1)) == dim, "cells of the vectors' dimensions");
  require(1 <= nprobe && nprobe <= num_cells, "nprobe is between 1 and the number of cells");
  const WordRows rows(cells, true);
  int64_t* probes;
  auto result = array_of<int64_t>({size_t(count), size_t(nprobe)}, &probes);
  nb::gil_scoped_release release;
  spread(count, 4096, threads, [&](int64_t begin, int64_t end) {
    const Aligned<int16_t> words = as_words(isa, vectors, begin, end - begin, rows.stride);
    std::vector<float> products(num_cells * kColumns), ones(kColumns, 1.0f), nearness(nprobe);
    Columns columns(kColumns, dim);
    for (int64_t first = begin; first < end; first += kColumns) {
      const int64_t here = std::min(kColumns, end - first);
      for (int64_t i = 0; i < here; ++i) columns.set(i, words.get() + (first - begin + i) * rows.stride);
      isa.word_products({rows.words.get(), rows.stride, num_cells, columns.words.get(), columns.lanes, columns.pairs, ones.data(), nullptr,
                         nullptr, nullptr}, products.data(), 0, num_cells);
      for (int64_t i = 0; i < here; ++i) {
        int64_t* mine = probes + (first + i) * nprobe;
        std::fill(nearness.begin(), nearness.end(), -INFINITY);
        for (int64_t c = 0; c < num_cells; ++c) {
          const float product = products[c * kColumns + i] + float(rows.biases[c]);
          if (product <= nearness[nprobe - 1]) continue;
          int64_t p = nprobe - 1;
          for (; p && nearness[p - 1] < product; --p) nearness[p] = nearness[p - 1], mine[p] = mine[p - 1];
          nearness[p] = product;
          mine[p] = c;
        }
      }
    }
  });
  return result;
}

// The nearest centroid among those of the cells that a vector probes; -1 if they hold none. Centroids of a cell lie side by side, and
// vectors that probe the same cell are compared with it together.
nb::ndarray<nb::numpy, int64_t> assign_in_cells(const std::string& name, Rows vectors, Matrix centroids, Numbers offsets,
                                                Array<int64_t, 2> probes, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1), num_cells = int64_t(offsets.shape(0)) - 1, nprobe = probes.shape(1);
  require(int64_t(centroids.shape(1)) == dim && int64_t(probes.shape(0)) == count, "centroids of the vectors' dimensions, probes of every vector");
  require(num_cells >= 0 && offsets.data()[num_cells] == int64_t(centroids.shape(0)), "offsets of other centroids");
  for (size_t i = 0; i < probes.size(); ++i) require(probes.data()[i] >= 0 && probes.data()[i] < num_cells, "a cell does not exist");
  const WordRows rows(centroids, true);
  int64_t* codes;
  auto result = array_of<int64_t>({size_t(count)}, &codes);
  nb::gil_scoped_release release;
  spread(count, 65536, threads, [&](int64_t begin, int64_t end) {
    const int64_t here = end - begin;
    const int64_t* mine = probes.data() + begin * nprobe;
    const Aligned<int16_t> words = as_words(isa, vectors, begin, here, rows.stride);
    std::fill(codes + begin, codes + end, -1);
    std::vector<int32_t> best(here, INT32_MIN), members(here * nprobe);
    std::vector<int64_t> starts(num_cells + 1);
    for (int64_t i = 0; i < here * nprobe; ++i) ++starts[mine[i] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < here * nprobe; ++i) members[next[mine[i]]++] = int32_t(i / nprobe);
    int32_t nearest[kColumns], products[kColumns];
    Columns columns(kColumns, dim);
    for (int64_t cell = 0; cell < num_cells; ++cell) {
      const int64_t first = offsets.data()[cell], last = offsets.data()[cell + 1];
      if (first == last) continue;
      for (int64_t m = starts[cell]; m < starts[cell + 1]; m += kColumns) {
        const int64_t width = std::min(kColumns, starts[cell + 1] - m);
        for (int64_t j = 0; j < width; ++j) columns.set(j, words.get() + members[m + j] * rows.stride);
        nearest_of(isa, rows, first, last, columns, nearest, products);
        for (int64_t j = 0; j < width; ++j)
          if (products[j] > best[members[m + j]]) {
            best[members[m + j]] = products[j];
            codes[begin + members[m + j]] = first + nearest[j];
          }
      }
    }
  });
  return result;
}

nb::tuple compress(const std::string& name, Rows vectors, Numbers codes, Matrix centroids, Floats cutoffs, Floats buckets, bool token_scale,
                   int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const Levels levels(buckets);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(codes.shape(0)) == count && int64_t(centroids.shape(1)) == dim, "one code a vector, and centroids of its dimensions");
  require(int64_t(cutoffs.shape(0)) == (1 << levels.nbits) - 1 && dim * levels.nbits % 8 == 0, "cutoffs between the buckets, in whole bytes");
  for (int64_t i = 0; i < count; ++i) require(codes.data()[i] >= 0 && codes.data()[i] < int64_t(centroids.shape(0)), "a code without a centroid");
  uint8_t* packed;
  float *scales, *norms;
  auto packed_array = array_of<uint8_t>({size_t(count), size_t(dim * levels.nbits / 8)}, &packed);
  auto scale_array = array_of<float>({size_t(count), 2}, &scales), norm_array = array_of<float>({size_t(count)}, &norms);
  {
    nb::gil_scoped_release release;
    spread(count, 1024, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> memory, residual(dim), decoded(dim);
      std::vector<int32_t> numbers(dim);
      CompressTask task = {as_floats(isa, vectors, begin, end - begin, memory), centroids.data(), codes.data() + begin, dim, cutoffs.data(),
                           buckets.data(), levels.nbits, token_scale, end - begin, packed + begin * (dim * levels.nbits / 8), scales + 2 * begin,
                           norms + begin, residual.data(), decoded.data(), numbers.data()};
      isa.compress(task, 0, end - begin);
    });
  }
  return nb::make_tuple(packed_array, scale_array, norm_array);
}

FloatResult rotate(const std::string& name, Rows vectors, Matrix rotation, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(rotation.shape(0)) == dim && int64_t(rotation.shape(1)) == dim, "a rotation of other dimensions");
  float* turned;
  FloatResult result = array_of<float>({size_t(count), size_t(dim)}, &turned);
  nb::gil_scoped_release release;
  spread(count, 1024, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> memory;
    isa.rotate(as_floats(isa, vectors, begin, end - begin, memory), end - begin, dim, rotation.data(), turned + begin * dim);
  });
  return result;
}

// MaxSim over vectors that are not compressed.
FloatResult maxsim(const std::string& name, std::vector<Matrix> vectors, std::vector<Floats> weights, Rows tokens, Numbers offsets, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(tokens);
  const int64_t dim = tokens.shape(1), count = int64_t(offsets.shape(0)) - 1, stride = round_up(dim, 2);
  require(count >= 0 && offsets.data()[count] <= int64_t(tokens.shape(0)), "offsets beyond the tokens");
  std::vector<Columns> columns;
  int64_t widest = 0;
  for (size_t q = 0; q < vectors.size(); ++q) {
    require(int64_t(vectors[q].shape(1)) == dim && weights[q].shape(0) == vectors[q].shape(0), "queries of the tokens' dimensions");
    columns.emplace_back(isa, vectors[q].data(), int64_t(vectors[q].shape(0)), dim);
    widest = std::max(widest, columns.back().lanes);
  }
  float* scores;
  FloatResult result = array_of<float>({vectors.size(), size_t(count)}, &scores);
  nb::gil_scoped_release release;
  spread(count, 16, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> memory, lengths(kRows), best(widest * vectors.size());
    Aligned<int16_t> rows(kRows * stride);
    Aligned<float> products(kRows * widest);
    for (int64_t document = begin; document < end; ++document) {
      std::fill(best.begin(), best.end(), -INFINITY);
      for (int64_t first = offsets.data()[document]; first < offsets.data()[document + 1]; first += kRows) {
        const int64_t here = std::min<int64_t>(kRows, offsets.data()[document + 1] - first);
        const float* block = as_floats(isa, tokens, first, here, memory);
        isa.to_words(block, here, dim, stride, rows.get(), lengths.data());
        for (size_t q = 0; q < vectors.size(); ++q) {
          isa.word_products({rows.get(), stride, here, columns[q].words.get(), columns[q].lanes, columns[q].pairs, columns[q].scales.get(),
                             nullptr, nullptr, nullptr}, products.get(), 0, here);
          for (int64_t t = 0; t < here; ++t)
            for (int64_t lane = 0; lane < columns[q].lanes; ++lane)
              best[q * widest + lane] = std::max(best[q * widest + lane], products.get()[t * columns[q].lanes + lane] * lengths[t]);
        }
      }
      for (size_t q = 0; q < vectors.size(); ++q) {
        double total = 0;
        for (size_t i = 0; i < vectors[q].shape(0); ++i) total += double(weights[q].data()[i]) * best[q * widest + i];
        scores[q * count + document] = offsets.data()[document] == offsets.data()[document + 1] ? -INFINITY : float(total);
      }
    }
  });
  return result;
}

// The k best, best first, ties to the lower document number; minus infinity is never among them.
nb::tuple top_k(Floats scores, Numbers documents, int64_t k) {
  require(scores.shape(0) == documents.shape(0) && k >= 0, "one score a document");
  std::vector<std::pair<float, int64_t>> best;
  const auto better = [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); };
  {
    nb::gil_scoped_release release;
    const int64_t count = scores.shape(0);
    // Whatever is not above the k-th of what was seen so far can be left out; the list is cut when it has grown twice as long.
    float threshold = -INFINITY;
    for (int64_t i = 0; i < count; ++i) {
      const float score = scores.data()[i];
      if (!(score > -INFINITY) || score < threshold) continue;
      best.emplace_back(score, documents.data()[i]);
      if (int64_t(best.size()) >= 2 * k + 64) {
        std::nth_element(best.begin(), best.begin() + k, best.end(), better);
        best.resize(k);
        if (k) threshold = std::min_element(best.begin(), best.end(), [](const auto& a, const auto& b) { return a.first < b.first; })->first;
      }
    }
    std::sort(best.begin(), best.end(), better);
    if (int64_t(best.size()) > k) best.resize(k);
  }
  float* values;
  int64_t* numbers;
  auto value_array = array_of<float>({best.size()}, &values);
  auto number_array = array_of<int64_t>({best.size()}, &numbers);
  for (size_t i = 0; i < best.size(); ++i) values[i] = best[i].first, numbers[i] = best[i].second;
  return nb::make_tuple(value_array, number_array);
}

// The largest product of each query token with any of the rows, nothing else: the speed limit of byte products.
FloatResult row_maxima(const std::string& name, Matrix vectors, Array<uint8_t, 2> rows, int threads) {
  const Isa& isa = isa_named(name);
  const int64_t stride = round_up(vectors.shape(1), 64);
  require(int64_t(rows.shape(1)) == stride && rows.shape(0) % kRows == 0, "rows padded to 64 dimensions and to a multiple of 32 rows");
  std::vector<float> ones(vectors.shape(0), 1.0f);
  const float pair[2] = {-63, 63};
  const size_t two = 2, many = ones.size();
  const Levels levels(Floats(pair, 1, &two));
  const Packed packed(vectors, Floats(ones.data(), 1, &many), levels);
  float* maxima;
  FloatResult result = array_of<float>({size_t(packed.lanes)}, &maxima);
  {
    nb::gil_scoped_release release;
    std::atomic_flag lock = ATOMIC_FLAG_INIT;
    spread(int64_t(rows.shape(0)), 1024 * kRows, threads, [&](int64_t begin, int64_t end) {
      Aligned<float> best(packed.lanes);
      const PackedQuery query = packed.view(nullptr, best.get(), nullptr);
      isa.row_maxima({rows.data(), stride, (int64_t(vectors.shape(1)) + 3) / 4, &query}, begin, end);
      while (lock.test_and_set()) {}
      for (int64_t i = 0; i < packed.lanes; ++i) maxima[i] = std::max(maxima[i], best.get()[i]);
      lock.clear();
    });
  }
  return result;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Isa* isa : supported()) names.emplace_back(isa->name);
  return names;
}

}  // namespace
}  // namespace ray_lir

NB_MODULE(ray_lir_native, m) {
  using namespace ray_lir;
  using namespace nb::literals;
  m.attr("__doc__") = "Compiled kernels of ray_lir; use ray_lir.kernels.select('native').";
  m.attr("ABI") = 5;
  m.def("instruction_sets", &instruction_sets);
  m.def("residual_maxsim", &residual_maxsim, "isa"_a, "vectors"_a, "weights"_a, "tables"_a, "codes"_a, "residuals"_a, "scales"_a,
        "token_weights"_a.none(), "doc_offsets"_a, "buckets"_a, "documents"_a.none(), "threads"_a);
  m.def("relation_maxsim", &relation_maxsim, "isa"_a, "vectors"_a, "weights"_a, "table"_a, "products"_a, "constants"_a, "upper"_a,
        "codes"_a, "residuals"_a, "scales"_a, "token_weights"_a.none(), "doc_offsets"_a, "buckets"_a, "centroids"_a, "before"_a, "before_scales"_a,
        "after"_a, "after_scales"_a, "bias"_a, "scale"_a, "shift"_a, "by_cosine"_a, "documents"_a.none(), "threads"_a);
  m.def("centroid_maxsim", &table_maxsim<Score>, "isa"_a, "table"_a, "weights"_a, "base"_a, "codes"_a, "doc_offsets"_a, "threshold"_a.none(),
        "documents"_a.none(), "threads"_a);
  m.def("byte_maxsim", &table_maxsim<uint8_t>, "isa"_a, "table"_a, "weights"_a, "base"_a, "codes"_a, "doc_offsets"_a, "threshold"_a.none(),
        "documents"_a.none(), "threads"_a);
  m.def("centroid_scores", &centroid_scores, "isa"_a, "vectors"_a, "centroids"_a, "threads"_a);
  m.def("byte_table", &byte_table, "isa"_a, "table"_a);
  m.def("probe", &probe, "isa"_a, "table"_a, "num_tokens"_a, "sizes"_a, "nprobe"_a, "bound"_a, "t_prime"_a);
  m.def("posting_scores", &posting_scores, "isa"_a, "vectors"_a, "weights"_a, "cells"_a, "cell_scores"_a, "imputed"_a, "floor"_a, "postings"_a,
        "posting_offsets"_a, "block_documents"_a, "residuals"_a, "scales"_a, "token_weights"_a.none(), "doc_offsets"_a, "buckets"_a);
  m.def("distinct_codes", &distinct_codes, "codes"_a, "doc_offsets"_a, "num_centroids"_a);
  m.def("candidates", &candidates, "cells"_a, "postings"_a, "posting_offsets"_a, "block_documents"_a, "doc_offsets"_a);
  m.def("assign", &assign, "isa"_a, "vectors"_a, "centroids"_a, "euclidean"_a, "threads"_a);
  m.def("nearest_cells", &nearest_cells, "isa"_a, "vectors"_a, "cells"_a, "nprobe"_a, "threads"_a);
  m.def("assign_in_cells", &assign_in_cells, "isa"_a, "vectors"_a, "centroids"_a, "offsets"_a, "probes"_a, "threads"_a);
  m.def("compress", &compress, "isa"_a, "vectors"_a, "codes"_a, "centroids"_a, "cutoffs"_a, "buckets"_a, "token_scale"_a,
        "threads"_a);
  m.def("rotate", &rotate, "isa"_a, "vectors"_a, "rotation"_a, "threads"_a);
  m.def("maxsim", &maxsim, "isa"_a, "vectors"_a, "weights"_a, "tokens"_a, "offsets"_a, "threads"_a);
  m.def("top_k", &top_k, "scores"_a, "documents"_a, "k"_a);
  m.def("row_maxima", &row_maxima, "isa"_a, "vectors"_a, "rows"_a, "threads"_a);
}
