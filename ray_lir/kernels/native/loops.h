// The loops of all kernels, over a type V of vector registers that each instruction set defines.
//
// V::kLanes float or int32 lanes; V::tile(groups) document tokens are multiplied at a time with one or two groups of query tokens, as
// many as keep their sums in registers. Included by one file an instruction set, inside an anonymous namespace: two files must not
// share compiled code, since each is compiled for other processors. Sums of floats are made in one order everywhere, and
// products and sums are never fused, so that every instruction set gives the same scores to the bit.
#include <cmath>
#include <cstring>

#include "isa.h"

namespace {
using namespace ray_lir;

inline uint32_t code_of(const Shard& shard, int64_t token) {
  return shard.wide_codes ? static_cast<const uint32_t*>(shard.codes)[token] : static_cast<const uint16_t*>(shard.codes)[token];
}

inline int64_t number_of(const int64_t* documents, int64_t i) { return documents ? documents[i] : i; }

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
}

template <class V>
inline void decode_row(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  switch (d.nbits) {
    case 1: return decode_bytes<8>(d, packed, row);
    case 2: return decode_bytes<4>(d, packed, row);
    case 4: return V::decode4(d, packed, row);
    default: return decode_bytes<1>(d, packed, row);
  }
}

template <class V>
void decode(const Decoder& d, const uint8_t* packed, int64_t count, uint8_t* rows) {
  for (int64_t i = 0; i < count; ++i) decode_row<V>(d, packed + i * d.packed_bytes, rows + i * d.stride);
}

// Sums of lanes in one order whatever the width: 16 running sums, then halves added to halves.
inline float weighted_sum(const float* lanes, const float* weights, int64_t count) {
  float sums[kGroup] = {};
  for (int64_t i = 0; i < count; i += kGroup)
    for (int j = 0; j < kGroup; ++j) sums[j] += lanes[i + j] * weights[i + j];
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

template <class V>
inline void fill(float* lanes, int64_t count, float value) {
  for (int64_t i = 0; i < count; i += V::kLanes) V::store(lanes + i, V::all(value));
}

// int32 products of TOKENS decoded rows with GROUPS groups of 16 query tokens.
template <class V, int GROUPS, int TOKENS>
inline void multiply(const uint8_t* rows, int64_t stride, int64_t quads, const int8_t* bytes,
                     const int32_t* starts, typename V::I32 (&sums)[TOKENS][GROUPS * kGroup / V::kLanes]) {
  constexpr int kEach = kGroup / V::kLanes;
#pragma GCC unroll 16
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < GROUPS * kEach; ++v) sums[t][v] = V::load_i32(starts + v * V::kLanes);
  for (int64_t k = 0; k < quads; ++k) {
    typename V::I32 quad[TOKENS];
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) quad[t] = V::broadcast(rows + t * stride + 4 * k);
#pragma GCC unroll 16
    for (int v = 0; v < GROUPS * kEach; ++v) {
      const auto columns = V::load_i32(bytes + (v / kEach) * stride * kGroup + (k * kGroup + (v % kEach) * V::kLanes) * 4);
#pragma GCC unroll 16
      for (int t = 0; t < TOKENS; ++t) sums[t][v] = V::dot_bytes(sums[t][v], quad[t], columns);
    }
  }
}

// What turns products into scores, score = scale centroid score + scale' slope product, and keeps what is wanted of them.
template <class V, Keep KEEP, int GROUPS, int TOKENS>
inline void keep(const Shard& shard, const PackedQuery& query, int64_t lane, const Block& block, int64_t row,
                 const typename V::I32 (&sums)[TOKENS][GROUPS * kGroup / V::kLanes]) {
  constexpr int kVectors = GROUPS * kGroup / V::kLanes;
  typename V::F32 best[kVectors], factors[kVectors];
  if constexpr (KEEP != kAll) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) best[v] = V::load(query.best + lane + v * V::kLanes);
  }
  if constexpr (KEEP == kWeighted) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) factors[v] = V::load(query.factors + lane + v * V::kLanes);
  }
#pragma GCC unroll 16
  for (int t = 0; t < TOKENS; ++t) {
    const float* table = query.table + code_of(shard, block.token + row + t) * query.lanes + lane;
    const auto centroid_scale = V::all(block.scales[2 * (row + t)]), residual_scale = V::all(block.scales[2 * (row + t) + 1]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto residual = V::mul(V::mul(V::to_float(sums[t][v]), V::load(query.slopes + lane + v * V::kLanes)), residual_scale);
      const auto score = V::add(residual, V::mul(V::load(table + v * V::kLanes), centroid_scale));
      if constexpr (KEEP == kBest) best[v] = V::max(best[v], score);
      if constexpr (KEEP == kWeighted) V::keep_larger(best[v], factors[v], score, V::all(block.weights[row + t]));
      if constexpr (KEEP == kAll) V::store(query.all + (row + t) * query.lanes + lane + v * V::kLanes, score);
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

template <class V, Keep KEEP, int GROUPS, int TOKENS>
inline void score_tile(const Shard& shard, const Decoder& decoder, const PackedQuery& query, int64_t lane, const Block& block, int64_t row) {
  typename V::I32 sums[TOKENS][GROUPS * kGroup / V::kLanes];
  multiply<V, GROUPS, TOKENS>(block.rows + row * decoder.stride, decoder.stride, decoder.quads, query.bytes + lane * decoder.stride,
                              query.starts + lane, sums);
  keep<V, KEEP, GROUPS, TOKENS>(shard, query, lane, block, row, sums);
}

template <class V, Keep KEEP, int GROUPS>
inline void score_rows(const Shard& shard, const Decoder& decoder, const PackedQuery& query, int64_t lane, const Block& block) {
  if constexpr (V::kMatrix) {
    V::template score_rows<KEEP, GROUPS>(shard, decoder, query, lane, block);
  } else {
    constexpr int kTile = V::tile(GROUPS);
    int64_t t = 0;
    for (; t + kTile <= block.count; t += kTile) score_tile<V, KEEP, GROUPS, kTile>(shard, decoder, query, lane, block, t);
    for (; t < block.count; ++t) score_tile<V, KEEP, GROUPS, 1>(shard, decoder, query, lane, block, t);
  }
}

template <class V, Keep KEEP>
inline void score_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, const Block& block) {
  int64_t lane = 0;
  for (; lane + 2 * kGroup <= query.lanes; lane += 2 * kGroup) score_rows<V, KEEP, 2>(shard, decoder, query, lane, block);
  if (lane < query.lanes) score_rows<V, KEEP, 1>(shard, decoder, query, lane, block);
}

inline void prefetch_rows(const Shard& shard, const Decoder& d, int64_t token, int64_t end) {
  const uint8_t* last = shard.residuals + (token + kRows < end ? token + kRows : end) * d.packed_bytes;
  for (const uint8_t* line = shard.residuals + token * d.packed_bytes; line < last; line += 64) __builtin_prefetch(line);
}

// Decodes up to kRows tokens, while the memory after them and their centroids' scores are on their way.
template <class V>
inline Block decode_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, int64_t token, int64_t last, uint8_t* rows,
                          float* scales, float* weights) {
  const int64_t count = last - token < kRows ? last - token : kRows;
  if (token + kRows < last) prefetch_rows(shard, decoder, token + kRows, last);
  V::to_floats(shard.scales + 2 * token, 2 * count, scales);
  if (shard.weights) {
    V::to_floats(shard.weights + token, count, weights);
    for (int64_t t = 0; t < count; ++t) weights[t] += 1;
  }
  for (int64_t t = 0; t < count; ++t) {
    const float* table = query.table + code_of(shard, token + t) * query.lanes;
    for (int64_t lane = 0; lane < query.lanes; lane += 16) __builtin_prefetch(table + lane);
  }
  decode<V>(decoder, shard.residuals + token * decoder.packed_bytes, count, rows);
  return {token, count, rows, scales, weights};
}

inline void prefetch_document(const Shard& shard, const Decoder& decoder, const int64_t* documents, int64_t i, int64_t end) {
  if (i >= end) return;
  const int64_t number = number_of(documents, i);
  prefetch_rows(shard, decoder, shard.doc_offsets[number], shard.doc_offsets[number + 1]);
}

// MaxSim from codes and residuals: a token is decoded once for all queries.
template <class V, Keep KEEP>
void maxsim_of(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  const Shard& shard = task.shard;
  float scales[2 * kRows], weights[kRows];
  V::begin();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = shard.doc_offsets[number], last = shard.doc_offsets[number + 1];
    for (int64_t q = 0; q < task.num_queries; ++q) fill<V>(task.queries[q].best, task.queries[q].lanes, -INFINITY);
    for (int64_t token = first; token < last; token += kRows) {
      if (token + kRows >= last) prefetch_document(shard, task.decoder, task.documents, i + 1, end);
      const Block block = decode_block<V>(shard, task.decoder, task.queries[0], token, last, rows, scales, weights);
      for (int64_t q = 0; q < task.num_queries; ++q) score_block<V, KEEP>(shard, task.decoder, task.queries[q], block);
    }
    for (int64_t q = 0; q < task.num_queries; ++q) {
      const PackedQuery& query = task.queries[q];
      if (KEEP == kWeighted && first < last)
        for (int64_t lane = 0; lane < query.lanes; ++lane) query.best[lane] *= query.factors[lane];
      task.scores[q * task.count + i] = first == last ? -INFINITY : weighted_sum(query.best, query.weights, query.lanes);
    }
  }
  V::end();
}

template <class V>
void residual_maxsim(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  task.shard.weights ? maxsim_of<V, kWeighted>(task, begin, end, rows) : maxsim_of<V, kBest>(task, begin, end, rows);
}

// MaxSim of centroid scores in float, of the tokens whose centroids are kept.
template <class V>
void centroid_maxsim(const CentroidTask& task, int64_t begin, int64_t end) {
  const float* table = static_cast<const float*>(task.table);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    float total = 0;
    bool any = false;
    for (int64_t lane = 0; lane < task.lanes; lane += kGroup) {
      typename V::F32 best[kGroup / V::kLanes];
#pragma GCC unroll 16
      for (auto& lanes : best) lanes = V::all(-INFINITY);
      any = false;
      for (int64_t token = first; token < last; ++token) {
        const int64_t code = code_of(task.shard, token);
        if (task.keep && !task.keep[code]) continue;
        any = true;
#pragma GCC unroll 16
        for (int v = 0; v < kGroup / V::kLanes; ++v) best[v] = V::max(best[v], V::load(table + code * task.lanes + lane + v * V::kLanes));
      }
      alignas(64) float lanes[kGroup];
#pragma GCC unroll 16
      for (int v = 0; v < kGroup / V::kLanes; ++v) V::store(lanes + v * V::kLanes, best[v]);
      if (any) total += weighted_sum(lanes, task.weights + lane, kGroup);
    }
    task.scores[i] = any ? total + task.base : -INFINITY;
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
void byte_maxsim(const CentroidTask& task, int64_t begin, int64_t end) {
  alignas(64) float lanes[2 * kGroup];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = number_of(task.documents, i);
    const int64_t first = task.shard.doc_offsets[number], last = task.shard.doc_offsets[number + 1];
    float total = 0;
    int64_t lane = 0;
    for (; lane + 2 * kGroup <= task.lanes; lane += 2 * kGroup) {
      byte_document<V, 2 * kGroup>(task, first, last, lane, lanes);
      total += weighted_sum(lanes, task.weights + lane, 2 * kGroup);
    }
    if (lane < task.lanes) {
      byte_document<V, kGroup>(task, first, last, lane, lanes);
      total += weighted_sum(lanes, task.weights + lane, kGroup);
    }
    task.scores[i] = first == last ? -INFINITY : total + task.base;
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
      decode_row<V>(task.decoder, shard.residuals + token * task.decoder.packed_bytes, row);
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

template <class V, int GROUPS, int ROWS>
inline void multiply_words(const int16_t* rows, int64_t stride, int64_t pairs, const int16_t* columns,
                           typename V::I32 (&sums)[ROWS][GROUPS * kGroup / V::kLanes]) {
  constexpr int kEach = kGroup / V::kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < GROUPS * kEach; ++v) sums[r][v] = V::zero();
  for (int64_t k = 0; k < pairs; ++k) {
    typename V::I32 pair[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) pair[r] = V::broadcast(rows + r * stride + 2 * k);
#pragma GCC unroll 16
    for (int v = 0; v < GROUPS * kEach; ++v) {
      const auto column = V::load_i32(columns + (v / kEach) * pairs * kGroup * 2 + (k * kGroup + (v % kEach) * V::kLanes) * 2);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sums[r][v] = V::dot_words(sums[r][v], pair[r], column);
    }
  }
}

template <class V, int GROUPS, int ROWS>
inline void store_products(const WordsTask& task, int64_t row, int64_t lane) {
  typename V::I32 sums[ROWS][GROUPS * kGroup / V::kLanes];
  multiply_words<V, GROUPS, ROWS>(task.rows + row * task.stride, task.stride, task.pairs, task.columns + lane * task.pairs * 2, sums);
#pragma GCC unroll 16
  for (int v = 0; v < GROUPS * kGroup / V::kLanes; ++v) {
    const auto scale = V::load(task.scales + lane + v * V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
      V::store(task.products + (row + r) * task.lanes + lane + v * V::kLanes, V::mul(V::to_float(sums[r][v]), scale));
  }
}

template <class V, int GROUPS>
inline void store_rows(const WordsTask& task, int64_t begin, int64_t end, int64_t lane) {
  constexpr int kTile = V::tile(GROUPS);
  int64_t row = begin;
  for (; row + kTile <= end; row += kTile) store_products<V, GROUPS, kTile>(task, row, lane);
  for (; row < end; ++row) store_products<V, GROUPS, 1>(task, row, lane);
}

template <class V>
void word_products(const WordsTask& task, int64_t begin, int64_t end) {
  int64_t lane = 0;
  for (; lane + 2 * kGroup <= task.lanes; lane += 2 * kGroup) store_rows<V, 2>(task, begin, end, lane);
  if (lane < task.lanes) store_rows<V, 1>(task, begin, end, lane);
}

template <class V, int GROUPS, int ROWS>
inline void nearest_rows(const WordsTask& task, int64_t row, int64_t lane, typename V::I32 (&best)[GROUPS * kGroup / V::kLanes],
                         typename V::I32 (&where)[GROUPS * kGroup / V::kLanes]) {
  typename V::I32 sums[ROWS][GROUPS * kGroup / V::kLanes];
  multiply_words<V, GROUPS, ROWS>(task.rows + row * task.stride, task.stride, task.pairs, task.columns + lane * task.pairs * 2, sums);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const auto bias = V::all_i32(task.biases ? task.biases[row + r] : 0);
#pragma GCC unroll 16
    for (int v = 0; v < GROUPS * kGroup / V::kLanes; ++v) V::keep_larger(best[v], where[v], V::add_i32(sums[r][v], bias), int32_t(row + r));
  }
}

template <class V, int GROUPS>
inline void nearest_lanes(const WordsTask& task, int64_t lane) {
  constexpr int kVectors = GROUPS * kGroup / V::kLanes;
  typename V::I32 best[kVectors], where[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) best[v] = V::all_i32(INT32_MIN), where[v] = V::zero();
  constexpr int kTile = V::tile(GROUPS);
  int64_t row = 0;
  for (; row + kTile <= task.num_rows; row += kTile) nearest_rows<V, GROUPS, kTile>(task, row, lane, best, where);
  for (; row < task.num_rows; ++row) nearest_rows<V, GROUPS, 1>(task, row, lane, best, where);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    V::store_i32(task.nearness + lane + v * V::kLanes, best[v]);
    V::store_i32(task.nearest + lane + v * V::kLanes, where[v]);
  }
}

template <class V>
void word_nearest(const WordsTask& task) {
  int64_t lane = 0;
  for (; lane + 2 * kGroup <= task.lanes; lane += 2 * kGroup) nearest_lanes<V, 2>(task, lane);
  if (lane < task.lanes) nearest_lanes<V, 1>(task, lane);
}

template <class V, int GROUPS, int TOKENS>
inline void bare_tile(const RowsTask& task, const uint8_t* rows, int64_t lane) {
  typename V::I32 sums[TOKENS][GROUPS * kGroup / V::kLanes];
  multiply<V, GROUPS, TOKENS>(rows, task.stride, task.quads, task.query->bytes + lane * task.stride, task.query->starts + lane, sums);
#pragma GCC unroll 16
  for (int v = 0; v < GROUPS * kGroup / V::kLanes; ++v) {
    auto best = V::load(task.query->best + lane + v * V::kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) best = V::max(best, V::to_float(sums[t][v]));
    V::store(task.query->best + lane + v * V::kLanes, best);
  }
}

template <class V, int GROUPS>
inline void bare_rows(const RowsTask& task, int64_t begin, int64_t end, int64_t lane) {
  if constexpr (V::kMatrix) {
    V::template bare_rows<GROUPS>(task, begin, end - begin, lane);
  } else {
    constexpr int kTile = V::tile(GROUPS);
    int64_t row = begin;
    for (; row + kTile <= end; row += kTile) bare_tile<V, GROUPS, kTile>(task, task.rows + row * task.stride, lane);
    for (; row < end; ++row) bare_tile<V, GROUPS, 1>(task, task.rows + row * task.stride, lane);
  }
}

template <class V>
void row_maxima(const RowsTask& task, int64_t begin, int64_t end) {
  V::begin();
  for (int64_t block = begin; block < end; block += kRows) {
    const int64_t last = block + kRows < end ? block + kRows : end;
    int64_t lane = 0;
    for (; lane + 2 * kGroup <= task.query->lanes; lane += 2 * kGroup) bare_rows<V, 2>(task, block, last, lane);
    if (lane < task.query->lanes) bare_rows<V, 1>(task, block, last, lane);
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
  const int64_t size = task.num_centroids * task.lanes;
  for (int64_t first = 0; first < task.lanes; first += kGroup) {
    float lows[kGroup], highs[kGroup];
    for (int j = 0; j < kGroup; ++j) lows[j] = INFINITY, highs[j] = -INFINITY;
    for (int64_t at = first; at < size; at += task.lanes)
      for (int j = 0; j < kGroup; ++j) {
        lows[j] = task.table[at + j] < lows[j] ? task.table[at + j] : lows[j];
        highs[j] = task.table[at + j] > highs[j] ? task.table[at + j] : highs[j];
      }
    float factors[kGroup];
    for (int j = 0; j < kGroup; ++j) {
      task.lows[first + j] = lows[j];
      task.steps[first + j] = (highs[j] - lows[j]) / 255;
      factors[j] = highs[j] > lows[j] ? 255 / (highs[j] - lows[j]) : 0;
    }
    for (int64_t at = first; at < size; at += task.lanes)
      for (int j = 0; j < kGroup; ++j) task.bytes[at + j] = uint8_t(int32_t((task.table[at + j] - lows[j]) * factors[j] + 0.5f));
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

// Rows of floats as words of length 2^14, and what each is to be multiplied with to be what it was, over 2^14.
template <class V>
void to_words(const float* rows, int64_t count, int64_t dim, int64_t stride, int16_t* words, float* lengths) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * dim;
    lengths[i] = std::sqrt(dot(row, row, dim));
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
  return {name, residual_maxsim<V>, relation_maxsim<V>, centroid_maxsim<V>, byte_maxsim<V>, score_postings<V>, word_products<V>, word_nearest<V>,
          row_maxima<V>, byte_table<V>, compress<V>, rotate<V>, V::to_floats, to_words<V>, decode<V>};
}

}  // namespace
