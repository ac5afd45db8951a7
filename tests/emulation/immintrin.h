// Instructions that a processor may lack, in plain C++, so that `make sanitize` tests the kernels for AVX-512 and AMX everywhere:
// SIMDe (Debian: libsimde-dev) for AVX-512, and the tiles of AMX by their definition in Intel's manual.
#pragma once
#include_next <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __m512i simde__m512i
#define __m512 simde__m512
#define __mmask16 simde__mmask16

namespace emulated {

// Some that SIMDe 0.7 does not have.

// A register of run(lane, its number) for each of 16 lanes.
template <class Result, class Out, class In, class Register, class Run>
inline Result each_of_16(const Register& lanes, const Run& run) {
  static_assert(sizeof(Register) == 16 * sizeof(In) && sizeof(Result) == 16 * sizeof(Out));
  In in[16];
  Out out[16];
  std::memcpy(in, &lanes, sizeof in);
  for (int i = 0; i < 16; ++i) out[i] = Out(run(in[i], i));
  Result result;
  std::memcpy(&result, out, sizeof out);
  return result;
}

inline __m512 to_float(__m512i lanes) { return each_of_16<__m512, float, int32_t>(lanes, [](int32_t lane, int) { return lane; }); }
inline __m512i whole_parts(__m512 lanes) { return each_of_16<__m512i, int32_t, float>(lanes, [](float lane, int) { return lane; }); }
inline __m128i to_bytes(__m512i lanes) { return each_of_16<__m128i, uint8_t, int32_t>(lanes, [](int32_t lane, int) { return lane; }); }

inline __m512i shifted(__m512i lanes, __m512i counts) {
  int32_t by[16];
  std::memcpy(by, &counts, 64);
  return each_of_16<__m512i, int32_t, int32_t>(lanes, [&](int32_t lane, int i) { return lane >> by[i]; });
}

inline int32_t sum(__m512i lanes) {
  int32_t in[16], total = 0;
  std::memcpy(in, &lanes, 64);
  for (int32_t lane : in) total += lane;
  return total;
}

inline __m512 from_halves(__m256i halves) {
  __m256 out[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  __m512 result;
  std::memcpy(&result, out, 64);
  return result;
}

inline __m256i to_halves(__m512 lanes) {
  __m256 in[2];
  std::memcpy(in, &lanes, 64);
  return _mm256_set_m128i(_mm256_cvtps_ph(in[1], _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(in[0], _MM_FROUND_TO_NEAREST_INT));
}

struct Tiles {
  bool configured = false;
  uint8_t config[64];
  uint8_t bytes[8][16][64];
};
inline thread_local Tiles tiles;

inline int rows_of(int tile) { return tiles.config[48 + tile]; }

inline int row_bytes(int tile) {
  uint16_t count;
  std::memcpy(&count, tiles.config + 16 + 2 * tile, 2);
  return count;
}

inline void configure(const void* from) {
  std::memcpy(tiles.config, from, 64);
  std::memset(tiles.bytes, 0, sizeof tiles.bytes);
  tiles.configured = true;
  if (tiles.config[0] != 1) std::abort();
}

inline void clear(int tile) {
  if (!tiles.configured) std::abort();
  std::memset(tiles.bytes[tile], 0, sizeof tiles.bytes[tile]);
}

inline void load(int tile, const void* from, int64_t stride) {
  clear(tile);
  for (int row = 0; row < rows_of(tile); ++row)
    std::memcpy(tiles.bytes[tile][row], static_cast<const uint8_t*>(from) + row * stride, row_bytes(tile));
}

inline void store(int tile, void* to, int64_t stride) {
  if (!tiles.configured) std::abort();
  for (int row = 0; row < rows_of(tile); ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles.bytes[tile][row], row_bytes(tile));
}

// Adds products of bytes of a, unsigned or signed, with signed bytes of b, four at a time, to the int32 of sums.
template <class Byte>
inline void multiply(int sums, int a, int b) {
  if (!tiles.configured) std::abort();
  for (int row = 0; row < rows_of(sums); ++row)
    for (int k = 0; k < row_bytes(a) / 4; ++k)
      for (int column = 0; column < row_bytes(sums) / 4; ++column) {
        int32_t sum;
        std::memcpy(&sum, tiles.bytes[sums][row] + 4 * column, 4);
        for (int i = 0; i < 4; ++i) sum += int32_t(Byte(tiles.bytes[a][row][4 * k + i])) * int8_t(tiles.bytes[b][k][4 * column + i]);
        std::memcpy(tiles.bytes[sums][row] + 4 * column, &sum, 4);
      }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbssd
#define _mm512_cvtepi32_ps(lanes) emulated::to_float(lanes)
#define _mm512_cvttps_epi32(lanes) emulated::whole_parts(lanes)
#define _mm512_cvtepi32_epi8(lanes) emulated::to_bytes(lanes)
#undef _mm512_shuffle_i64x2  // which SIMDe 0.7 gives no alias
#define _mm512_shuffle_i64x2(a, b, lanes) simde_mm512_shuffle_i64x2(a, b, lanes)
#define _mm512_srav_epi32(lanes, counts) emulated::shifted(lanes, counts)
#define _mm512_reduce_add_epi32(lanes) emulated::sum(lanes)
#define _mm512_cvtph_ps(halves) emulated::from_halves(halves)
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(lanes, rounding) emulated::to_halves(lanes)
#define _tile_loadconfig(from) emulated::configure(from)
#define _tile_release() (emulated::tiles.configured = false)
#define _tile_zero(tile) emulated::clear(tile)
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbusd(sums, a, b) emulated::multiply<uint8_t>(sums, a, b)
#define _tile_dpbssd(sums, a, b) emulated::multiply<int8_t>(sums, a, b)
