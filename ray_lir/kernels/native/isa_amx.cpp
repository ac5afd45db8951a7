// The kernels for AMX: one instruction multiplies 16 document tokens with 16 query tokens, in bytes. All other code is that of AVX-512.
#include "loops.h"
#include "avx512.h"

namespace {

struct Amx : Avx512 {
  static constexpr bool kMatrix = true;
  static constexpr int64_t kWidest = 128;  // largest number of words of a row, and of columns, for which the stack has memory

  // Tiles have 16 rows of 64 bytes. Tiles 0-3 hold sums (2 groups of document tokens by 2 of query tokens), 4-5 document tokens, 6-7 query
  // tokens.
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

  // Compute products of 32 rows with GROUPS groups of query tokens. Sums begin with `starts`. Products of unused rows are undefined.
  template <int GROUPS>
  static void multiply_groups(const uint8_t* rows, int64_t stride, const int8_t* bytes, const int32_t* starts, Products& products) {
    _tile_loadd(0, starts, 0);  // the same 64 bytes for every row
    _tile_loadd(1, starts, 0);
    if constexpr (GROUPS == 2) {
      _tile_loadd(2, starts + kGroup, 0);
      _tile_loadd(3, starts + kGroup, 0);
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

  // Compute products of 32 rows with up to 32 lanes of a query, from `lane` on.
  static void multiply(const uint8_t* rows, int64_t stride, const PackedQuery& query, int64_t lane, Products& products) {
    (query.lanes - lane > kGroup ? multiply_groups<2> : multiply_groups<1>)(rows, stride, query.bytes + lane * stride, query.starts + lane, products);
  }

  // Split words into two planes of bytes, `size` bytes apart: w = 256 high + low, low from -128 to 127. `count` is a multiple of 32.
  static void split_words(const int16_t* words, int64_t count, int8_t* planes, int64_t size) {
    for (int64_t i = 0; i < count; i += 32) {
      const I32 each = load_i32(words + i), high = _mm512_srai_epi16(_mm512_add_epi16(each, _mm512_set1_epi16(128)), 8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(planes + i), _mm512_cvtepi16_epi8(high));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(planes + size + i), _mm512_cvtepi16_epi8(each));
    }
  }

  // Join two bytes of each of 16 columns with two further bytes, to the 4 bytes that one product multiplies.
  static void join_bytes(int8_t* to, I32 first, I32 second) {
    const I32 low = _mm512_set1_epi32(0x00ff00ff), join = _mm512_set1_epi32(0x0000ffff);
    const auto joined = [&](I32 words) {
      const I32 bytes = _mm512_and_si512(words, low);
      return _mm512_and_si512(_mm512_or_si512(bytes, _mm512_srli_epi32(bytes, 8)), join);
    };
    store_i32(reinterpret_cast<int32_t*>(to), _mm512_or_si512(joined(first), _mm512_slli_epi32(joined(second), 16)));
  }

  // Split packed columns of words into two planes, `size` bytes apart, [width / 4][16][4] for each 16 columns.
  static void split_columns(const int16_t* columns, int64_t groups, int64_t pairs, int64_t width, int64_t size, int8_t* planes) {
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t quad = 0; quad < (pairs + 1) / 2; ++quad) {
        const int16_t* from = columns + (group * pairs + 2 * quad) * 2 * kGroup;
        const I32 first = load_i32(from), second = 2 * quad + 1 < pairs ? load_i32(from + 2 * kGroup) : zero();
        const auto high = [](I32 words) { return _mm512_srai_epi16(_mm512_add_epi16(words, _mm512_set1_epi16(128)), 8); };
        int8_t* to = planes + (group * width / 4 + quad) * 4 * kGroup;
        join_bytes(to, high(first), high(second));
        join_bytes(to + size, first, second);
      }
  }

  // Compute products of 16 rows with 16 columns, of 64 or 128 words, in three sums: high bytes with high bytes, high with low and low with
  // high, and low with low. Rows stay in tiles 4-7, so they are loaded only for the first columns.
  static void multiply_planes(const int8_t* rows, bool load, const int8_t* columns, int64_t size, int64_t width,
                              int32_t (*products)[kGroup][kGroup]) {
    const bool two = width > 64;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if (load) {
      _tile_loadd(4, rows, width);
      _tile_loadd(5, rows + kRows * width, width);
      if (two) _tile_loadd(6, rows + 64, width);
      if (two) _tile_loadd(7, rows + kRows * width + 64, width);
    }
    const int8_t *high = columns, *low = high + size;
    _tile_loadd(3, high, 64);
    _tile_dpbssd(0, 4, 3);
    _tile_dpbssd(1, 5, 3);
    _tile_loadd(3, low, 64);
    _tile_dpbssd(1, 4, 3);
    _tile_dpbssd(2, 5, 3);
    if (two) {
      _tile_loadd(3, high + 64 * kGroup, 64);
      _tile_dpbssd(0, 6, 3);
      _tile_dpbssd(1, 7, 3);
      _tile_loadd(3, low + 64 * kGroup, 64);
      _tile_dpbssd(1, 6, 3);
      _tile_dpbssd(2, 7, 3);
    }
    _tile_stored(0, products[0], 64);
    _tile_stored(1, products[1], 64);
    _tile_stored(2, products[2], 64);
  }

  // Return the products of words for one row, from the three sums of products of bytes.
  static I32 join_products(const int32_t (&sums)[3][kGroup][kGroup], int64_t t) {
    return add_i32(add_i32(_mm512_slli_epi32(load_i32(sums[0][t]), 16), _mm512_slli_epi32(load_i32(sums[1][t]), 8)), load_i32(sums[2][t]));
  }

  // Return whether the planes of rows and columns fit the memory on the stack.
  static bool fits(const WordsTask& task) {
    return task.stride % 64 == 0 && task.stride == 2 * task.pairs && task.stride <= kWidest && task.lanes <= kWidest;
  }

  // Call keep(sums, row, lane) for the products of rows with all columns, 16 by 16, while the next products are computed.
  template <class Keep>
  static void over_words(const WordsTask& task, int64_t begin, int64_t end, const Keep& keep) {
    alignas(64) int8_t columns[2 * kWidest * kWidest], rows[2 * kRows * kWidest];
    alignas(64) int32_t sums[2][3][kGroup][kGroup];
    const int64_t width = task.stride, groups = (task.lanes + kGroup - 1) / kGroup, size = groups * kGroup * width;
    const int64_t blocks = (end - begin + kGroup - 1) / kGroup * groups;
    split_columns(task.columns, groups, task.pairs, width, size, columns);
    Amx::begin();
    for (int64_t block = 0; block <= blocks; ++block) {
      if (block < blocks) {
        const int64_t row = begin + block / groups * kGroup;
        if (block % groups == 0) split_words(task.rows + row * width, (end - row < kGroup ? end - row : kGroup) * width, rows, kRows * width);
        multiply_planes(rows, block % groups == 0, columns + block % groups * kGroup * width, size, width, sums[block % 2]);
      }
      if (block) keep(sums[(block - 1) % 2], begin + (block - 1) / groups * kGroup, (block - 1) % groups * kGroup);
    }
    Amx::end();
  }

  template <class Item>
  static void multiply_words(const WordsTask& task, Item* products, int64_t begin, int64_t end) {
    over_words(task, begin, end, [&](const auto& sums, int64_t row, int64_t lane) { keep_words(task, sums, row, end, lane, products); });
  }

  static void nearest_words(const WordsTask& task) {
    alignas(64) int32_t best[kWidest], where[kWidest] = {};
    for (int32_t& each : best) each = INT32_MIN;
    over_words(task, 0, task.num_rows, [&](const auto& sums, int64_t row, int64_t lane) {
      I32 most = load_i32(best + lane), number = load_i32(where + lane);
      for (int64_t t = 0; t < kGroup && row + t < task.num_rows; ++t)
        keep_larger(most, number, add_i32(join_products(sums, t), all_i32(task.biases ? task.biases[row + t] : 0)), int32_t(row + t));
      store_i32(best + lane, most);
      store_i32(where + lane, number);
    });
    std::memcpy(task.nearness, best, task.lanes * sizeof(int32_t));
    std::memcpy(task.nearest, where, task.lanes * sizeof(int32_t));
  }

  template <class Item>
  static void keep_words(const WordsTask& task, const int32_t (&sums)[3][kGroup][kGroup], int64_t row, int64_t end, int64_t lane, Item* products) {
    const bool whole = task.lanes - lane >= kGroup;
    const F32 scale = whole ? load(task.scales + lane) : widen(Half::load(task.scales + lane));
    Item* to = products + row * task.lanes + lane;
    for (int64_t t = 0; t < kGroup && row + t < end; ++t, to += task.lanes) {
      const F32 product = mul(to_float(join_products(sums, t)), scale);
      if (whole) store_product<Avx512>(to, product);
      else store_product<Half>(to, lower(product));
    }
  }

  static void bare_rows(const RowsTask& task, int64_t row, int64_t count) {
    alignas(64) Products products;
    const PackedQuery& query = *task.query;
    for (int64_t first = 0; first < query.lanes; first += kLanesTogether) {
      multiply(task.rows + row * task.stride, task.stride, query, first, products);
      for (int64_t lane = 0; lane < kLanesTogether && first + lane < query.lanes; lane += kStep) {
        auto best = Half::load(query.best + first + lane);
        for (int64_t t = 0; t < count; ++t) {
          best = Half::max(best, Half::to_float(Half::load_i32(products[lane / kGroup][t] + lane % kGroup)));
        }
        Half::store(query.best + first + lane, best);
      }
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
