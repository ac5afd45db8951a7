// The kernels for AMX: byte products of 16 document tokens with 16 query tokens in one instruction; the rest as AVX-512.
#include "loops.h"
#include "avx512.h"

namespace {

struct Amx : Avx512 {
  static constexpr bool kMatrix = true;

  // Tiles 0-3 hold sums (two of tokens by two of query tokens), 4-5 document tokens, 6-7 query tokens; all 16 rows of 64 bytes.
  static void begin() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      const uint16_t row_bytes = 64;
      std::memcpy(config + 16 + 2 * tile, &row_bytes, 2);
      config[48 + tile] = 16;
    }
    _tile_loadconfig(config);
  }
  static void end() { _tile_release(); }

  // Products of 32 rows with GROUPS groups; rows beyond what is asked for are whatever the buffer holds.
  template <int GROUPS>
  static void multiply_matrix(const uint8_t* rows, int64_t stride, const int8_t* bytes, int32_t (*products)[kRows][kGroup]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < stride; at += 64) {
      _tile_loadd(4, rows + at, stride);
      _tile_loadd(5, rows + 16 * stride + at, stride);
      _tile_loadd(6, bytes + at * kGroup, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 5, 6);
      if constexpr (GROUPS == 2) {
        _tile_loadd(7, bytes + (stride + at) * kGroup, 64);
        _tile_dpbusd(2, 4, 7);
        _tile_dpbusd(3, 5, 7);
      }
    }
    _tile_stored(0, products[0][0], 64);
    _tile_stored(1, products[0][16], 64);
    if constexpr (GROUPS == 2) {
      _tile_stored(2, products[1][0], 64);
      _tile_stored(3, products[1][16], 64);
    }
  }

  template <Keep KEEP, int GROUPS>
  static void score_rows(const Shard& shard, const Decoder& decoder, const PackedQuery& query, int64_t lane, const Block& block) {
    alignas(64) int32_t products[2][kRows][kGroup];
    multiply_matrix<GROUPS>(block.rows, decoder.stride, query.bytes + lane * decoder.stride, products);
    for (int64_t t = 0; t < block.count; ++t) {
      I32 sums[1][GROUPS];
      for (int g = 0; g < GROUPS; ++g) sums[0][g] = add_i32(load_i32(products[g][t]), load_i32(query.starts + lane + g * kGroup));
      keep<Amx, KEEP, GROUPS, 1>(shard, query, lane, block, t, sums);
    }
  }

  template <int GROUPS>
  static void bare_rows(const RowsTask& task, int64_t row, int64_t count, int64_t lane) {
    alignas(64) int32_t products[2][kRows][kGroup];
    multiply_matrix<GROUPS>(task.rows + row * task.stride, task.stride, task.query->bytes + lane * task.stride, products);
    for (int g = 0; g < GROUPS; ++g) {
      F32 best = load(task.query->best + lane + g * kGroup);
      for (int64_t t = 0; t < count; ++t) best = max(best, to_float(add_i32(load_i32(products[g][t]), load_i32(task.query->starts + lane + g * kGroup))));
      store(task.query->best + lane + g * kGroup, best);
    }
  }
};

}  // namespace

namespace ray_lir {
const Isa* amx_isa() {
  static const Isa isa = isa_of<Amx>("amx_int8");
  return &isa;
}
}  // namespace ray_lir
