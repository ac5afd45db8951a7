// The loops of all kernels, over a type V of vector registers that each instruction set defines.
//
// V::kLanes float or int32 lanes; V::tile(lanes) rows are multiplied at a time with so many columns, as many as keep their sums in
// registers; V::Half has registers of at most 8 lanes. Included by one file an instruction set, inside an anonymous namespace: two files must
// not share compiled code, since each is compiled for other processors. Sums of floats are made in one order everywhere, and
// products and sums are never fused, so that every instruction set gives the same scores to the bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa.h"

namespace {
using namespace ray_lir;

// 2^(j / 8) for j from 0 to 7, twice, as the bits of floats less j << 20: with any whole k << 20 added to those of k % 8, 2^(k / 8).
constexpr uint32_t kPowers[16] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
                                  0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

inline uint32_t code_of(const Shard& shard, int64_t token) {
  return shard.wide_codes ? static_cast<const uint32_t*>(shard.codes)[token] : static_cast<const uint16_t*>(shard.codes)[token];
}

inline int64_t number_of(const int64_t* documents, int64_t i) { return documents ? documents[i] : i; }

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
}

template <class V>
void decode(const Decoder& d, const uint8_t* packed, int64_t count, uint8_t* rows) {
  const auto each = [&](const auto& decode_row) {
    for (int64_t i = 0; i < count; ++i) decode_row(d, packed + i * d.packed_bytes, rows + i * d.stride);
  };
  switch (d.nbits) {
    case 1: return each(decode_bytes<8>);
    case 2: return each(decode_bytes<4>);
    case 4: return each(V::decode4);
    default: return each(decode_bytes<1>);
  }
}

// Sums of lanes in one order whatever the width: 16 running sums, then halves added to halves.
inline float weighted_sum(const float* lanes, const float* weights, int64_t count) {
  float sums[kGroup] = {};
  for (int64_t i = 0; i < count; i += kStep)
    for (int j = 0; j < kStep; ++j) sums[i % kGroup + j] += lanes[i + j] * weights[i + j];
  for (int half = kGroup / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

inline float dot(const float* a, const float* b, int64_t count) {
  float sums[kGroup] = {};
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup)
    for (int j = 0; j < kGroup; ++j) sums[j] += a[i + j] * b[i + j];
  for (int j = 0; i < count; ++i, ++j) sums[j] += a[i] * b[i];
  for (int half = kGroup / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

inline void fill(float* lanes, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) lanes[i] = value;
}

template <int LANES>
using Count = std::integral_constant<int, LANES>;

// Calls run(registers, count, lane) for 32 lanes at a time, then for the 24, 16 or 8 that are left.
template <class V, class Run>
inline void over_lanes(int64_t lanes, const Run& run) {
  int64_t lane = 0;
  for (; lane + 32 <= lanes; lane += 32) run(V{}, Count<32>{}, lane);
  if constexpr (V::kLanes > kStep) {
    if (lane + kGroup <= lanes) run(V{}, Count<kGroup>{}, lane);
    if (lanes % kGroup) run(typename V::Half{}, Count<kStep>{}, lanes - kStep);
  } else {
    if (lanes - lane == 24) run(V{}, Count<24>{}, lane);
    if (lanes - lane == 16) run(V{}, Count<16>{}, lane);
    if (lanes - lane == 8) run(V{}, Count<8>{}, lane);
  }
}

// Calls run(count, row) for as many rows at a time as keep their sums in registers.
template <class V, int LANES, class Run>
inline void over_rows(int64_t begin, int64_t end, const Run& run) {
  constexpr int kTile = V::tile(LANES);
  int64_t row = begin;
  for (; row + kTile <= end; row += kTile) run(Count<kTile>{}, row);
  for (; row < end; ++row) run(Count<1>{}, row);
}

// Adds to sums the products of ROWS rows with LANES columns, from the one at `lane`. An item is the 4 bytes that `dot` multiplies at
// a time: a row has them one after another, columns are packed so that an item of 16 columns lies together.
template <class V, int LANES, int ROWS, class Dot>
inline void add_products(const void* rows, int64_t stride, const void* columns, int64_t column_items, int64_t lane, int64_t items,
                         typename V::I32 (&sums)[ROWS][LANES / V::kLanes], const Dot& dot) {
  const auto* row_bytes = static_cast<const uint8_t*>(rows);
  const auto* column_bytes = static_cast<const uint8_t*>(columns) + (lane / kGroup * column_items * kGroup + lane % kGroup) * 4;
  const int64_t group = column_items * kGroup * 4;
  int64_t k = 0;
  do {  // there is one at least; a loop that might not run at all would keep its sums in two registers each
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

// int32 products of ROWS decoded rows with LANES query tokens.
template <class V, int LANES, int ROWS>
inline void multiply_bytes(const uint8_t* rows, int64_t stride, int64_t quads, const PackedQuery& query, int64_t lane,
                           typename V::I32 (&sums)[ROWS][LANES / V::kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < LANES / V::kLanes; ++v) sums[r][v] = V::load_i32(query.starts + lane + v * V::kLanes);
  add_products<V, LANES, ROWS>(rows, stride, query.bytes, stride / 4, lane, quads, sums,
                               [](auto sum, auto row, auto column) { return V::dot_bytes(sum, row, column); });
}

// What turns products into scores, score = scale centroid score + scale' slope product, and keeps what is wanted of them. Tokens are a
// block's from `row` on, at most TOKENS; product(t, v) has vector v of those of token row + t. Sums lie in registers or, for a whole block,
// in memory.
template <class V, Keep KEEP, int LANES, int TOKENS, class Product>
inline void keep(const Shard& shard, const PackedQuery& query, int64_t lane, const Block& block, int64_t row, const Product& product) {
  constexpr int kVectors = LANES / V::kLanes;
  typename V::F32 best[kVectors], factors[kVectors];
  if constexpr (KEEP != kAll) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = V::load(query.best + lane + v * V::kLanes);
  }
  if constexpr (KEEP == kWeighted) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) factors[v] = V::load(query.factors + lane + v * V::kLanes);
  }
  const auto token = [&](int64_t t) {
    const Score* table = query.table + code_of(shard, block.token + row + t) * query.lanes + lane;
    const auto centroid_scale = V::all(block.scales[2 * (row + t)]), residual_scale = V::all(block.scales[2 * (row + t) + 1]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto residual = V::mul(V::mul(V::to_float(product(t, v)), V::load(query.slopes + lane + v * V::kLanes)), residual_scale);
      const auto score = V::add(residual, V::mul(V::load_scores(table + v * V::kLanes), centroid_scale));
      if constexpr (KEEP == kBest) best[v] = V::max(best[v], score);
      if constexpr (KEEP == kWeighted) V::keep_larger(best[v], factors[v], score, V::all(block.weights[row + t]));
      if constexpr (KEEP == kAll) V::store(query.all + (block.token - block.first + row + t) * query.lanes + lane + v * V::kLanes, score);
    }
  };
  if constexpr (TOKENS == kRows) {
    for (int64_t t = 0; t < block.count; ++t) token(t);
  } else {
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) {
      if (TOKENS > 1 && row + t >= block.count) break;
      token(t);
    }
  }
  if constexpr (KEEP != kAll) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store(query.best + lane + v * V::kLanes, best[v]);
  }
  if constexpr (KEEP == kWeighted) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store(query.factors + lane + v * V::kLanes, factors[v]);
  }
}

// Scores a block. `meanwhile` is called once, where a matrix unit would be waited for.
template <class V, Keep KEEP, class Meanwhile>
inline void score_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, const Block& block, const Meanwhile& meanwhile) {
  if constexpr (V::kMatrix) {
    V::template score_block<KEEP>(shard, decoder, query, block, meanwhile);
  } else {
    meanwhile();
    over_lanes<V>(query.lanes, [&](auto registers, auto lanes, int64_t lane) {
      using W = decltype(registers);
      constexpr int kCount = decltype(lanes)::value;
      constexpr int kTile = W::tile(kCount);
      for (int64_t row = 0; row < block.count; row += kTile) {  // there is memory for as many rows as a tile has
        typename W::I32 sums[kTile][kCount / W::kLanes];
        multiply_bytes<W, kCount>(block.rows + row * decoder.stride, decoder.stride, decoder.quads, query, lane, sums);
        keep<W, KEEP, kCount, kTile>(shard, query, lane, block, row, [&](int64_t t, int v) { return sums[t][v]; });
      }
    });
  }
}

// Asks for the lines that neighbouring rows begin to fill.
inline void fetch_rows(const void* rows, int64_t bytes, int64_t first, int64_t count) {
  const auto* begin = static_cast<const uint8_t*>(rows) + first * bytes;
  for (const uint8_t* line = begin; line < begin + count * bytes; line += 64) __builtin_prefetch(line);
}

// Asks for the rows of a query's table that scoring a block looks into.
inline void fetch_scores(const Shard& shard, const PackedQuery& query, const Block& block) {
  const int64_t bytes = query.lanes * int64_t(sizeof(Score));
  const auto* table = reinterpret_cast<const uint8_t*>(query.table);
  for (int64_t t = 0; t < block.count; ++t) {
    const uint8_t* row = table + code_of(shard, block.token + t) * bytes;
    __builtin_prefetch(row);
    if (64 % bytes) __builtin_prefetch(row + bytes - 1);  // rows that divide a line never cross one, since tables begin with one
    if (bytes > 128) fetch_rows(row, bytes, 0, 1);
  }
}

inline int64_t at_most_a_block(int64_t tokens) { return tokens < kRows ? tokens : kRows; }

// Decodes a block that has its place, while what scoring it will read of the queries' tables is fetched, and the residuals that are
// decoded after it.
template <class V>
inline void decode_block(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, const Block& block) {
  V::to_floats(shard.scales + 2 * block.token, 2 * block.count, block.scales);
  if (shard.weights) {
    V::to_floats(shard.weights + block.token, block.count, block.weights);
    for (int64_t t = 0; t < block.count; ++t) block.weights[t] += 1;
  }
  fetch_rows(shard.residuals, decoder.packed_bytes, block.next, block.next_count);
  fetch_rows(shard.scales, 2 * sizeof(uint16_t), block.next, block.next_count);
  fetch_rows(shard.codes, shard.wide_codes ? 4 : 2, block.next, block.next_count);
  for (int64_t q = 0; q < num_queries; ++q) fetch_scores(shard, queries[q], block);
  decode<V>(decoder, shard.residuals + block.token * decoder.packed_bytes, block.count, block.rows);
}

// The blocks of some documents one after another; documents without tokens have none.
class Blocks {
 public:
  Blocks(const Shard& shard, const int64_t* documents, int64_t begin, int64_t end)
      : shard_(shard), documents_(documents), place_(begin - 1), end_(end) {
    advance(0);
  }

  // The next block, to be decoded into this memory; without tokens if there is none.
  Block take(uint8_t* rows, float* scales, float* weights) {
    Block block = {place_, first_, last_, token_, count(), rows, scales, weights, 0, 0};
    advance(block.count);
    block.next = token_;
    block.next_count = count();
    return block;
  }

 private:
  int64_t count() const { return at_most_a_block(last_ - token_); }
  void advance(int64_t tokens) {
    for (token_ += tokens; token_ >= last_ && ++place_ < end_; token_ = first_) {
      const int64_t number = number_of(documents_, place_);
      first_ = shard_.doc_offsets[number];
      last_ = shard_.doc_offsets[number + 1];
    }
  }

  const Shard& shard_;
  const int64_t* documents_;
  int64_t place_, end_, first_ = 0, last_ = 0, token_ = 0;
};

// Scores all tokens of documents for some queries and calls finish(block) after each document's last block. A block is decoded while the one
// before it is multiplied.
template <class V, Keep KEEP, class Finish>
inline void over_blocks(const Shard& shard, const Decoder& decoder, const PackedQuery* queries, int64_t num_queries, const int64_t* documents,
                        int64_t begin, int64_t end, uint8_t* rows, const Finish& finish) {
  float scales[2][2 * kRows], weights[2][kRows];
  Blocks blocks(shard, documents, begin, end);
  int turn = 0;
  const auto decoded = [&] {
    const Block block = blocks.take(rows + turn * kRows * decoder.stride, scales[turn], weights[turn]);
    turn = 1 - turn;
    if (block.count) decode_block<V>(shard, decoder, queries, num_queries, block);
    return block;
  };
  V::begin();
  for (Block block = decoded(), next; block.count; block = next) {
    for (int64_t q = 0; q < num_queries; ++q) {
      if (KEEP != kAll && block.token == block.first) fill(queries[q].best, queries[q].lanes, -INFINITY);
      score_block<V, KEEP>(shard, decoder, queries[q], block, [&] { if (!q) next = decoded(); });
    }
    if (block.token + block.count == block.last) finish(block);
  }
  V::end();
}

// MaxSim from codes and residuals: a token is decoded once for all queries.
template <class V, Keep KEEP>
void maxsim_of(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  for (int64_t q = 0; q < task.num_queries; ++q) fill(task.scores + q * task.count + begin, end - begin, -INFINITY);
  over_blocks<V, KEEP>(task.shard, task.decoder, task.queries, task.num_queries, task.documents, begin, end, rows, [&](const Block& block) {
    for (int64_t q = 0; q < task.num_queries; ++q) {
      const PackedQuery& query = task.queries[q];
      if (KEEP == kWeighted)
        for (int64_t lane = 0; lane < query.lanes; ++lane) query.best[lane] *= query.factors[lane];
      task.scores[q * task.count + block.place] = weighted_sum(query.best, query.weights, query.lanes);
    }
  });
}

template <class V>
void residual_maxsim(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  task.shard.weights ? maxsim_of<V, kWeighted>(task, begin, end, rows) : maxsim_of<V, kBest>(task, begin, end, rows);
}

// MaxSim of centroid scores, of the tokens whose centroids are kept.
template <class V, int LANES>
inline bool best_centroids(const CentroidTask& task, int64_t first, int64_t last, int64_t lane, float* lanes) {
  constexpr int kVectors = LANES / V::kLanes;
  const Score* table = static_cast<const Score*>(task.table) + lane;
  typename V::F32 best[kVectors];
#pragma GCC unroll 16
  for (auto& each : best) each = V::all(-INFINITY);
  bool any = false;
  for (int64_t token = first; token < last; ++token) {
    const int64_t code = code_of(task.shard, token);
    if (task.keep && !task.keep[code]) continue;
    any = true;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = V::max(best[v], V::load_scores(table + code * task.lanes + v * V::kLanes));
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) V::store(lanes + v * V::kLanes, best[v]);
  return any;
}

template <class V>
void centroid_maxsim(const CentroidTask& task, int64_t begin, int64_t end, float* best) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    bool any = false;
    over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
      any = best_centroids<decltype(registers), decltype(lanes)::value>(task, first, last, lane, best + lane);
    });
    task.scores[i] = any ? weighted_sum(best, task.weights, task.lanes) + task.base : -INFINITY;
  }
}

// The same over a table of bytes: one load and one maximum a token and 16 (or more) query tokens.
template <class V, int BYTES>
inline void byte_document(const CentroidTask& task, int64_t first, int64_t last, int64_t lane, float* lanes) {
  const uint8_t* table = static_cast<const uint8_t*>(task.table) + lane;
  auto even = V::template zero_bytes<BYTES>(), odd = even;
  int64_t token = first;
  for (; token + 1 < last; token += 2) {
    even = V::max_bytes(even, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token)) * task.lanes));
    odd = V::max_bytes(odd, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token + 1)) * task.lanes));
  }
  if (token < last) even = V::max_bytes(even, V::template load_bytes<BYTES>(table + int64_t(code_of(task.shard, token)) * task.lanes));
  even = V::max_bytes(even, odd);
  uint8_t bytes[BYTES];
  std::memcpy(bytes, &even, BYTES);
  for (int i = 0; i < BYTES; ++i) lanes[i] = bytes[i];
}

template <class V>
void byte_maxsim(const CentroidTask& task, int64_t begin, int64_t end, float* best) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    int64_t lane = 0;
    for (; lane + 2 * kGroup <= task.lanes; lane += 2 * kGroup) byte_document<V, 2 * kGroup>(task, first, last, lane, best + lane);
    if (lane < task.lanes) byte_document<V, kGroup>(task, first, last, lane, best + lane);
    task.scores[i] = first == last ? -INFINITY : weighted_sum(best, task.weights, task.lanes) + task.base;
  }
}

// With token weights the best score is chosen first, and its token's weight multiplied then.
template <class V>
inline void raise_weighted(const PostingTask& task, DocumentState& state, int64_t token, int64_t document, float score) {
  const bool first = state.stamp != task.stamp;
  if (!first && !(score > state.best)) return;
  float weight;
  V::to_floats(task.shard.weights + token, 1, &weight);
  float worth = score * (weight + 1);
  if (task.floor && worth < task.imputed) worth = task.imputed;
  state.total += task.weight * (double(worth) - (first ? task.imputed : task.worths[document]));
  state.stamp = task.stamp;
  state.best = score;
  task.worths[document] = worth;
}

// WARP: the tokens of some cells against one query token; a document's best is raised in place, so nothing is sorted.
template <class V>
void score_postings(const PostingTask& task, uint8_t* row) {
  const Shard& shard = task.shard;
  for (int64_t c = 0; c < task.count; ++c) {
    const int64_t end = task.posting_offsets[task.cells[c] + 1];
    for (int64_t p = task.posting_offsets[task.cells[c]]; p < end; ++p) {
      const int64_t token = task.postings[p];
      if (p + 8 < end) {
        __builtin_prefetch(shard.residuals + task.postings[p + 8] * task.decoder.packed_bytes);
        __builtin_prefetch(shard.scales + 2 * int64_t(task.postings[p + 8]));
      }
      decode<V>(task.decoder, shard.residuals + token * task.decoder.packed_bytes, 1, row);
      const float residual = float(V::dot_row(row, task.query, task.decoder.quads * 4) + task.start) * task.slope;
      // WARP does not bring tokens to length one: its token is the centroid plus the buckets in the residual's own scale.
      float scales[2];
      V::to_floats(shard.scales + 2 * token, 2, scales);
      float score = task.cell_scores[c] + residual * (scales[1] / scales[0]);
      if (task.floor && !shard.weights && score < task.imputed) score = task.imputed;
      int64_t document = task.block_documents[token / 64];
      while (shard.doc_offsets[document + 1] <= token) ++document;
      DocumentState& state = task.states[document];
      if (shard.weights) {
        raise_weighted<V>(task, state, token, document, score);
      } else if (state.stamp != task.stamp) {
        state.total += task.weight * (double(score) - task.imputed);
        state.stamp = task.stamp;
        state.best = score;
      } else if (score > state.best) {
        state.total += task.weight * (double(score) - state.best);
        state.best = score;
      }
    }
  }
}

template <class V, int LANES, int ROWS>
inline void multiply_words(const WordsTask& task, int64_t row, int64_t lane, typename V::I32 (&sums)[ROWS][LANES / V::kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < LANES / V::kLanes; ++v) sums[r][v] = V::zero();
  add_products<V, LANES, ROWS>(task.rows + row * task.stride, 2 * task.stride, task.columns, task.pairs, lane, task.pairs, sums,
                               [](auto sum, auto row, auto column) { return V::dot_words(sum, row, column); });
}

template <class V>
inline void store_product(float* to, typename V::F32 products) { V::store(to, products); }

template <class V>
inline void store_product(Score* to, typename V::F32 products) {
  V::store(to, V::min(V::max(products, V::all(-kLargestScore)), V::all(kLargestScore)));
}

template <class V, class Item>
void word_products(const WordsTask& task, Item* products, int64_t begin, int64_t end) {
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value;
    over_rows<W, kCount>(begin, end, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kCount / W::kLanes];
      multiply_words<W, kCount>(task, row, lane, sums);
#pragma GCC unroll 16
      for (int v = 0; v < kCount / W::kLanes; ++v) {
        const auto scale = W::load(task.scales + lane + v * W::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < decltype(rows)::value; ++r)
          store_product<W>(products + (row + r) * task.lanes + lane + v * W::kLanes, W::mul(W::to_float(sums[r][v]), scale));
      }
    });
  });
}

template <class V>
void word_nearest(const WordsTask& task) {
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value, kVectors = kCount / W::kLanes;
    typename W::I32 best[kVectors], where[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = W::all_i32(INT32_MIN), where[v] = W::zero();
    over_rows<W, kCount>(0, task.num_rows, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kVectors];
      multiply_words<W, kCount>(task, row, lane, sums);
#pragma GCC unroll 16
      for (int r = 0; r < decltype(rows)::value; ++r) {
        const auto bias = W::all_i32(task.biases ? task.biases[row + r] : 0);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) W::keep_larger(best[v], where[v], W::add_i32(sums[r][v], bias), int32_t(row + r));
      }
    });
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      W::store_i32(task.nearness + lane + v * W::kLanes, best[v]);
      W::store_i32(task.nearest + lane + v * W::kLanes, where[v]);
    }
  });
}

template <class V>
inline void bare_rows(const RowsTask& task, int64_t begin, int64_t end) {
  over_lanes<V>(task.query->lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value;
    over_rows<W, kCount>(begin, end, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kCount / W::kLanes];
      multiply_bytes<W, kCount>(task.rows + row * task.stride, task.stride, task.quads, *task.query, lane, sums);
#pragma GCC unroll 16
      for (int v = 0; v < kCount / W::kLanes; ++v) {
        auto best = W::load(task.query->best + lane + v * W::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < decltype(rows)::value; ++r) best = W::max(best, W::to_float(sums[r][v]));
        W::store(task.query->best + lane + v * W::kLanes, best);
      }
    });
  });
}

template <class V>
void row_maxima(const RowsTask& task, int64_t begin, int64_t end) {
  V::begin();
  for (int64_t block = begin; block < end; block += kRows) {
    if constexpr (V::kMatrix) V::bare_rows(task, block, at_most_a_block(end - block));
    else bare_rows<V>(task, block, block + at_most_a_block(end - block));
  }
  V::end();
}

// Buckets, packed residuals, the two scales of the decoded token, and the norm of what the centroid left over.
//
// With token_scale, buckets are of r / rms(r), and the residual's scale s is the least-squares one, <r, b> / <b, b> for bucket
// weights b; the decoded token c + s b is brought to length one.
inline void compress_one(const CompressTask& task, int64_t i) {
  const float* vector = task.vectors + i * task.dim;
  const float* centroid = task.centroids + task.codes[i] * task.dim;
  float* __restrict residual = task.residual;
  float* __restrict decoded = task.decoded;
  int32_t* __restrict buckets = task.buckets;
  for (int64_t d = 0; d < task.dim; ++d) residual[d] = vector[d] - centroid[d];
  const float norm = std::sqrt(dot(residual, residual, task.dim));
  const float unit = task.token_scale && norm > 0 ? norm / std::sqrt(float(task.dim)) : 1.0f;
  std::memset(buckets, 0, task.dim * sizeof(int32_t));
  for (int c = 0; c < (1 << task.nbits) - 1; ++c) {
    const float cutoff = task.cutoffs[c] * unit;
    for (int64_t d = 0; d < task.dim; ++d) buckets[d] += residual[d] > cutoff;
  }
  const int per_byte = 8 / task.nbits;
  uint8_t* packed = task.packed + i * (task.dim / per_byte);
  for (int64_t b = 0; b < task.dim / per_byte; ++b) {
    unsigned byte = 0;
    for (int j = 0; j < per_byte; ++j) byte = byte << task.nbits | unsigned(buckets[b * per_byte + j]);
    packed[b] = uint8_t(byte);
  }
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = task.weights[buckets[d]];
  const float along = dot(decoded, residual, task.dim), squares = dot(decoded, decoded, task.dim);
  const float scale = !task.token_scale ? 1 : squares > 0 && along > 0 ? along / squares : 0;
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = centroid[d] + scale * decoded[d];
  const float length = std::sqrt(dot(decoded, decoded, task.dim)), inverse = 1 / (length > 1e-12f ? length : 1e-12f);
  task.scales[2 * i] = inverse;
  task.scales[2 * i + 1] = inverse * scale;
  task.norms[i] = norm;
}

// A byte is worth a 255th of the range of its query token's scores.
template <class V>
void byte_table(const TableTask& task) {
  std::memset(task.bytes, 0, task.num_centroids * task.byte_lanes);
  over_lanes<V>(task.lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kVectors = decltype(lanes)::value / W::kLanes;
    typename W::F32 lows[kVectors], highs[kVectors], factors[kVectors];
    for (int v = 0; v < kVectors; ++v) lows[v] = W::all(INFINITY), highs[v] = W::all(-INFINITY);
    for (int64_t c = 0; c < task.num_centroids; ++c)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto scores = W::load_scores(task.table + c * task.lanes + lane + v * W::kLanes);
        lows[v] = W::min(lows[v], scores);
        highs[v] = W::max(highs[v], scores);
      }
    for (int v = 0; v < kVectors; ++v) {
      const auto steps = W::div(W::add(highs[v], W::mul(lows[v], W::all(-1))), W::all(255));
      W::store(task.lows + lane + v * W::kLanes, lows[v]);
      W::store(task.steps + lane + v * W::kLanes, steps);
      factors[v] = W::div(W::all(1), W::max(steps, W::all(1e-30f)));
    }
    for (int64_t c = 0; c < task.num_centroids; ++c)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto scores = W::load_scores(task.table + c * task.lanes + lane + v * W::kLanes);
        const auto above = W::mul(W::add(scores, W::mul(lows[v], W::all(-1))), factors[v]);
        W::store_bytes(task.bytes + c * task.byte_lanes + lane + v * W::kLanes, W::add(above, W::all(0.5f)));
      }
  });
}

// Which of 8 query tokens a centroid scores at least a threshold for, a bit each.
template <class V>
void reached(const ReachTask& task) {
  typedef typename V::Half W;
  for (int64_t c = 0; c < task.num_centroids; ++c) {
    uint32_t mask = 0;
#pragma GCC unroll 16
    for (int v = 0; v < kStep / W::kLanes; ++v)
      mask |= W::at_least(W::load_scores(task.table + c * task.lanes + v * W::kLanes), W::load(task.thresholds + v * W::kLanes)) << (v * W::kLanes);
    task.masks[c] = uint8_t(mask);
  }
}

// rows @ rotation, summed in the order of the rows' dimensions: the same bits for any block of rows, on any thread.
template <class V>
void rotate(const float* rows, int64_t count, int64_t dim, const float* rotation, float* turned) {
  constexpr int kVectors = 4, kRowsAtOnce = 2;
  constexpr int64_t kColumns = kVectors * V::kLanes;
  for (int64_t i = 0; i < count; i += kRowsAtOnce) {
    const int64_t other = i + 1 < count ? i + 1 : i;
    int64_t d = 0;
    for (; d + kColumns <= dim; d += kColumns) {
      typename V::F32 sums[kRowsAtOnce][kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[0][v] = sums[1][v] = V::all(0);
      for (int64_t k = 0; k < dim; ++k) {
        const auto first = V::all(rows[i * dim + k]), second = V::all(rows[other * dim + k]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const auto column = V::load(rotation + k * dim + d + v * V::kLanes);
          sums[0][v] = V::add(sums[0][v], V::mul(first, column));
          sums[1][v] = V::add(sums[1][v], V::mul(second, column));
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        V::store(turned + i * dim + d + v * V::kLanes, sums[0][v]);
        V::store(turned + other * dim + d + v * V::kLanes, sums[1][v]);
      }
    }
    for (int64_t row = i; row <= other; ++row)
      for (int64_t e = d; e < dim; ++e) {
        float sum = 0;
        for (int64_t k = 0; k < dim; ++k) sum += rows[row * dim + k] * rotation[k * dim + e];
        turned[row * dim + e] = sum;
      }
  }
}

// dot(row, row, count), to the bit.
template <class V>
inline float squares(const float* row, int64_t count) {
  if (count % kGroup) return dot(row, row, count);
  constexpr int kEach = kGroup / V::kLanes;
  typename V::F32 sums[kEach];
#pragma GCC unroll 16
  for (int v = 0; v < kEach; ++v) sums[v] = V::all(0);
  for (int64_t k = 0; k < count; k += kGroup)
#pragma GCC unroll 16
    for (int v = 0; v < kEach; ++v) {
      const auto x = V::load(row + k + v * V::kLanes);
      sums[v] = V::add(sums[v], V::mul(x, x));
    }
  return V::total(sums);
}

// Rows of floats as words of length 2^14, and what each is to be multiplied with to be what it was, over 2^14.
template <class V>
void to_words(const float* rows, int64_t count, int64_t dim, int64_t stride, int16_t* words, float* lengths) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * dim;
    lengths[i] = std::sqrt(squares<V>(row, dim));
    const float factor = lengths[i] > 0 ? (1 << kWordBits) / lengths[i] : 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float value = row[d] * factor;
      words[i * stride + d] = int16_t(int32_t(value + (value < 0 ? -0.5f : 0.5f)));
    }
  }
}

#include "relation.h"

template <class V>
void compress(const CompressTask& task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) compress_one(task, i);
}

template <class V>
Isa isa_of(const char* name) {
  return {name, residual_maxsim<V>, relation_maxsim<V>, centroid_maxsim<V>, byte_maxsim<V>, score_postings<V>, word_products<V, float>,
          word_products<V, Score>, word_nearest<V>,
          row_maxima<V>, byte_table<V>, reached<V>, compress<V>, rotate<V>, V::to_floats, to_words<V>, decode<V>};
}

}  // namespace
