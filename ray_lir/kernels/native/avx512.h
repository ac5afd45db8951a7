// Registers of 512 bits with VNNI: 64 byte products in one instruction, and nothing saturates.
#include "avx2.h"

namespace {

struct Avx512Half : Avx2 {
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) { return _mm256_dpbusd_epi32(sums, row, columns); }
  static I32 dot_words(I32 sums, I32 row, I32 columns) { return _mm256_dpwssd_epi32(sums, row, columns); }
};

struct Avx512 : Avx2 {
  static constexpr int kLanes = 16;
  static constexpr int tile(int) { return 8; }
  typedef Avx512Half Half;
  typedef __m512i I32;
  typedef __m512 F32;

  static I32 zero() { return _mm512_setzero_si512(); }
  static I32 all_i32(int32_t value) { return _mm512_set1_epi32(value); }
  static I32 load_i32(const void* from) { return _mm512_loadu_si512(from); }
  static void store_i32(int32_t* to, I32 lanes) { _mm512_storeu_si512(to, lanes); }
  static I32 add_i32(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
  static I32 broadcast(const void* from) { int32_t item; std::memcpy(&item, from, 4); return _mm512_set1_epi32(item); }
  static F32 all(float value) { return _mm512_set1_ps(value); }
  static F32 load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F32 lanes) { _mm512_storeu_ps(to, lanes); }
  static F32 load_scores(const Score* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
  static void store(Score* to, F32 lanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_bytes(uint8_t* to, F32 lanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(lanes)));
  }
  static F32 widen(__m256 lanes) { return _mm512_castps256_ps512(lanes); }
  static __m256 lower(F32 lanes) { return _mm512_castps512_ps256(lanes); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static F32 within(F32 a, F32 limit) {  // the smaller in size, with the sign of a
    return _mm512_range_ps(a, limit, 2);
  }
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 to_float(I32 lanes) { return _mm512_cvtepi32_ps(lanes); }
  static F32 power_of_eighths(F32 rounded) {
    const I32 eighths = _mm512_castps_si512(rounded);
    const F32 powers = _mm512_permutexvar_ps(eighths, _mm512_loadu_ps(reinterpret_cast<const float*>(kPowers)));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(eighths, 20), _mm512_castps_si512(powers)));
  }
  static float total(const F32 (&lanes)[1]) {
    const I32 bits = _mm512_castps_si512(lanes[0]);
    return Half::total(_mm256_add_ps(_mm256_castsi256_ps(_mm512_castsi512_si256(bits)), _mm256_castsi256_ps(_mm512_extracti64x4_epi64(bits, 1))));
  }
  static uint32_t at_least(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static void keep_larger(F32& best, F32& factor, F32 value, F32 mine) {
    const __mmask16 larger = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
    best = _mm512_max_ps(best, value);
    factor = _mm512_mask_mov_ps(factor, larger, mine);
  }
  static void keep_larger(I32& best, I32& where, I32 value, int32_t number) {
    const __mmask16 larger = _mm512_cmpgt_epi32_mask(value, best);
    best = _mm512_max_epi32(best, value);
    where = _mm512_mask_mov_epi32(where, larger, _mm512_set1_epi32(number));
  }
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) { return _mm512_dpbusd_epi32(sums, row, columns); }
  static I32 dot_words(I32 sums, I32 row, I32 columns) { return _mm512_dpwssd_epi32(sums, row, columns); }
  static I32 levels4(const Decoder& d) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d.levels))); }
  // Whole registers are stored, so that a load of 64 bytes need not wait until two stores are in the cache.
  static void decode4(const Decoder& d, I32 levels, const uint8_t* packed, uint8_t* row) {
    const I32 low = _mm512_set1_epi8(15);
    int64_t i = 0;
    for (; i + 64 <= d.packed_bytes; i += 64) {
      const I32 bytes = load_i32(packed + i);
      const I32 even = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low));
      const I32 odd = _mm512_shuffle_epi8(levels, _mm512_and_si512(bytes, low));
      _mm512_storeu_si512(row + 2 * i, _mm512_shuffle_i64x2(even, odd, 0x44));
      _mm512_storeu_si512(row + 2 * i + 64, _mm512_shuffle_i64x2(even, odd, 0xee));
    }
    decode4_from(d, _mm512_castsi512_si256(levels), i, packed, row);
  }
  // The values of 8 bytes of two dimensions each, of 16 buckets.
  static void expand4(const uint8_t* packed, const float* buckets, float* to) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed)), low = _mm_set1_epi8(15);
    const __m128i each = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), low), _mm_and_si128(bytes, low));
    store(to, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(each), load(buckets)));
  }
  static int32_t dot_row(const uint8_t* row, const int8_t* query, int64_t count) {
    I32 sums = zero();
    for (int64_t i = 0; i < count; i += 64) sums = dot_bytes(sums, load_i32(row + i), load_i32(query + i));
    return _mm512_reduce_add_epi32(sums);
  }
};

}  // namespace
