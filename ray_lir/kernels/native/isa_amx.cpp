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

  // Products of 32 rows with GROUPS groups, begun with their starts; rows beyond what is asked for are whatever the buffer holds.
  template <int GROUPS>
  static void multiply_matrix(const uint8_t* rows, int64_t stride, const int8_t* bytes, const int32_t (*starts)[kGroup],
                              int32_t (*products)[kRows][kGroup]) {
    _tile_loadd(0, starts[0], 0);  // the same 64 bytes for every row
    _tile_loadd(1, starts[0], 0);
    if constexpr (GROUPS == 2) {
      _tile_loadd(2, starts[1], 0);
      _tile_loadd(3, starts[1], 0);
    }
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

  // Calls run(products, lane, lanes) for the products of 32 rows with 32 query tokens at a time.
  template <class Run>
  static void multiply_lanes(const uint8_t* rows, int64_t stride, const PackedQuery& query, const Run& run) {
    alignas(64) int32_t products[2][kRows][kGroup], starts[2][kGroup] = {};
    for (int64_t lane = 0; lane < query.lanes; lane += 2 * kGroup) {
      const int64_t lanes = query.lanes - lane < 2 * kGroup ? query.lanes - lane : 2 * kGroup;
      std::memcpy(starts, query.starts + lane, lanes * 4);
      (lanes > kGroup ? multiply_matrix<2> : multiply_matrix<1>)(rows, stride, query.bytes + lane * stride, starts, products);
      run(products, lane, lanes);
    }
  }

  template <Keep KEEP, class Meanwhile>
  static void score_block(const Shard& shard, const Decoder& decoder, const PackedQuery& query, const Block& block,
                          const Meanwhile& meanwhile) {
    multiply_lanes(block.rows, decoder.stride, query, [&](const auto& products, int64_t first, int64_t count) {
      if (!first) meanwhile();
      over_lanes<Amx>(count, [&](auto registers, auto lanes, int64_t at) {
        using W = decltype(registers);
        keep<W, KEEP, decltype(lanes)::value, kRows>(shard, query, first + at, block, 0, [&](int64_t t, int v) {
          const int64_t lane = at + v * W::kLanes;
          return W::load_i32(products[lane / kGroup][t] + lane % kGroup);
        });
      });
    });
  }

  static void bare_rows(const RowsTask& task, int64_t row, int64_t count) {
    multiply_lanes(task.rows + row * task.stride, task.stride, *task.query, [&](const auto& products, int64_t first, int64_t lanes) {
      for (int64_t lane = 0; lane < lanes; lane += kStep) {
        auto best = Half::load(task.query->best + first + lane);
        for (int64_t t = 0; t < count; ++t) {
          best = Half::max(best, Half::to_float(Half::load_i32(products[lane / kGroup][t] + lane % kGroup)));
        }
        Half::store(task.query->best + first + lane, best);
      }
    });
  }
};

}  // namespace

namespace ray_lir {
const Isa* amx_isa() {
  static const Isa isa = isa_of<Amx>("amx_int8");
  return &isa;
}
}  // namespace ray_lir
