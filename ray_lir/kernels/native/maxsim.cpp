// MaxSim from residuals, MaxSim from uncompressed vectors, and byte products alone, as an upper bound of the speed.
#include <algorithm>
#include <atomic>
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
#include "vectors.h"

namespace ray_lir {
namespace {

void check_block_rows(int block_rows) { require(1 <= block_rows && block_rows <= kRows, "a block has 1 to 32 rows"); }

FloatResult residual_maxsim(const std::string& name, std::vector<Matrix> vectors, std::vector<Floats> weights, std::vector<Scores> tables,
                            Codes codes, Array<uint8_t, 2> residuals, Scales scales, Pairs pairs, TokenWeights token_weights, Numbers doc_offsets,
                            Weights buckets, std::optional<Numbers> documents, int block_rows, int threads) {
  const Isa& isa = isa_named(name);
  check_block_rows(block_rows);
  const Levels levels(buckets);
  const size_t num_queries = vectors.size();
  require(num_queries > 0 && weights.size() == num_queries && tables.size() == num_queries, "one table and one row of weights a query");
  const Decoder decoder = decoder_of(levels, vectors[0].shape(1), residuals.shape(1));
  const Shard shard = shard_of(codes, residuals, scales, pairs, token_weights, doc_offsets, decoder);
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
    isa.residual_maxsim({shard, decoder, queries.data(), int64_t(num_queries), block_rows, documents ? documents->data() : nullptr, count, scores}, begin,
                        end, rows.get());
  });
  return result;
}

// Compute MaxSim with only the nearest tokens decoded: those with a query token's best centroid in the document.
FloatResult nearest_maxsim(const std::string& name, Matrix vectors, Floats weights, Array<uint8_t, 2> bytes, Floats lows, Floats steps, Codes codes,
                           Array<uint8_t, 2> residuals, Scales scales, Pairs pairs, TokenWeights token_weights, Numbers doc_offsets, Codes distinct,
                           Numbers distinct_offsets, Weights buckets, Numbers documents, int block_rows, int threads) {
  check_block_rows(block_rows);
  const Isa& isa = isa_named(name);
  const Levels levels(buckets);
  const Decoder decoder = decoder_of(levels, vectors.shape(1), residuals.shape(1));
  const Shard shard = shard_of(codes, residuals, scales, pairs, token_weights, doc_offsets, decoder);
  const int64_t count = count_of(documents, doc_offsets), stride = decoder.stride;
  const Shard distinct_shard = shard_of(distinct, distinct_offsets);
  const Packed packed(vectors, weights, levels);
  require(distinct_shard.wide_codes == shard.wide_codes && distinct_offsets.shape(0) == doc_offsets.shape(0), "distinct codes of another shard");
  require(int64_t(lows.shape(0)) == packed.lanes && lows.shape(0) == steps.shape(0) && int64_t(bytes.shape(1)) == round_up(packed.lanes, kGroup),
          "a table of another query");
  Aligned<int8_t> rows(packed.lanes * stride);
  std::vector<uint32_t> active((packed.lanes + 31) / 32);
  for (int64_t i = 0; i < int64_t(vectors.shape(0)); ++i) {
    const int8_t* group = packed.bytes.get() + i / kGroup * kGroup * stride + i % kGroup * 4;
    for (int64_t p = 0; p < stride; ++p) rows.get()[i * stride + p] = group[p / 4 * kGroup * 4 + p % 4];
    if (packed.weights.get()[i] != 0 && packed.slopes.get()[i] > 0) active[i / 32] |= uint32_t(1) << i % 32;
  }
  float* scores;
  FloatResult result = array_of<float>({size_t(count)}, &scores);
  nb::gil_scoped_release release;
  spread(count, std::max<int64_t>(1, std::min<int64_t>(256, count / (4 * std::max(1, threads)))), threads, [&](int64_t begin, int64_t end) {
    Aligned<uint8_t> rows_of_tokens(kRows * stride);
    Aligned<float> best(2 * packed.lanes);
    isa.nearest_maxsim({shard, decoder, packed.view(nullptr, best.get(), best.get() + packed.lanes), rows.get(), active.data(), distinct_shard.codes,
                        distinct_offsets.data(), bytes.data(), int64_t(bytes.shape(1)), lows.data(), steps.data(), block_rows, documents.data(), scores}, begin, end, rows_of_tokens.get());
  });
  return result;
}

// Compute MaxSim from uncompressed vectors.
FloatResult maxsim(const std::string& name, std::vector<Matrix> vectors, std::vector<Floats> weights, Rows tokens, Numbers offsets, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(tokens);
  require(weights.size() == vectors.size(), "one row of weights a query");
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

// Return the largest product of each query token with any row and nothing else, as an upper bound of the speed.
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

}  // namespace

void add_maxsim(nb::module_& m) {
  using namespace nb::literals;
  m.def("residual_maxsim", &residual_maxsim, "isa"_a, "vectors"_a, "weights"_a, "tables"_a, "codes"_a, "residuals"_a, "scales"_a, "pairs"_a.none(),
        "token_weights"_a.none(), "doc_offsets"_a, "buckets"_a, "documents"_a.none(), "block_rows"_a, "threads"_a);
  m.def("nearest_maxsim", &nearest_maxsim, "isa"_a, "vectors"_a, "weights"_a, "bytes"_a, "lows"_a, "steps"_a, "codes"_a, "residuals"_a, "scales"_a,
        "pairs"_a.none(), "token_weights"_a.none(), "doc_offsets"_a, "distinct"_a, "distinct_offsets"_a, "buckets"_a, "documents"_a, "block_rows"_a, "threads"_a);
  m.def("maxsim", &maxsim, "isa"_a, "vectors"_a, "weights"_a, "tokens"_a, "offsets"_a, "threads"_a);
  m.def("row_maxima", &row_maxima, "isa"_a, "vectors"_a, "rows"_a, "threads"_a);
}

}  // namespace ray_lir
