// Registers of 512 bits with VNNI: one instruction computes 64 byte products, without saturation.
#include "avx2.h"

namespace {

struct Avx512Half : Avx2 {
  static constexpr bool kAddsWords = false;
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) { return _mm256_dpbusd_epi32(sums, row, columns); }
  static I32 dot_words(I32 sums, I32 row, I32 columns) { return _mm256_dpwssd_epi32(sums, row, columns); }
};

struct Avx512 : Avx2 {
  static constexpr int kLanes = 16;
  static constexpr bool kAddsWords = false;
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
  static F32 load_byte_scores(const uint8_t* from) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))); }
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
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 root(F32 a) { return _mm512_sqrt_ps(a); }
  static F32 to_float(I32 lanes) { return _mm512_cvtepi32_ps(lanes); }
  static float total(const F32 (&lanes)[1]) {
    const I32 bits = _mm512_castps_si512(lanes[0]);
    return Half::total(_mm256_add_ps(_mm256_castsi256_ps(_mm512_castsi512_si256(bits)), _mm256_castsi256_ps(_mm512_extracti64x4_epi64(bits, 1))));
  }
  static __m256 upper(F32 lanes) { return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(lanes), 1)); }
  static float largest(F32 lanes) { return Half::largest(_mm256_max_ps(lower(lanes), upper(lanes))); }
  static float smallest(F32 lanes) { return Half::smallest(_mm256_min_ps(lower(lanes), upper(lanes))); }
  static uint32_t at_least(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static void keep_larger(F32& best, F32& factor, F32 value, F32 candidate) {
    const __mmask16 larger = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
    best = _mm512_max_ps(best, value);
    factor = _mm512_mask_mov_ps(factor, larger, candidate);
  }
  static void keep_larger(I32& best, I32& where, I32 value, int32_t number) {
    const __mmask16 larger = _mm512_cmpgt_epi32_mask(value, best);
    best = _mm512_max_epi32(best, value);
    where = _mm512_mask_mov_epi32(where, larger, _mm512_set1_epi32(number));
  }
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) { return _mm512_dpbusd_epi32(sums, row, columns); }
  static I32 join_words(F32 low, F32 high) {
    const I32 words = _mm512_and_si512(_mm512_castps_si512(low), _mm512_set1_epi32(0xffff));
    return _mm512_or_si512(words, _mm512_slli_epi32(_mm512_castps_si512(high), 16));
  }
  static F32 times_power_of_two(F32 x, F32 rounded) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(rounded), 23)));
  }
#if defined(RAY_LIR_EMULATE)
  static void keep_in_register(I32&) {}
#else
  static void keep_in_register(I32& lanes) { asm("" : "+v"(lanes)); }
#endif
  static constexpr int kQuantizedRows = 8, kQuantizedColumns = 32;
  static void store_row_bytes(uint8_t* to, F32 lanes) { store_bytes(to, lanes); }
  static I32 first_sums(const int32_t*) { return zero(); }
  static I32 dot_eight(I32 sums, I32 row, I32 columns, I32 next_row, I32 next_columns) {
    return dot_bytes(dot_bytes(sums, row, columns), next_row, next_columns);
  }
  static I32 dot_words(I32 sums, I32 row, I32 columns) { return _mm512_dpwssd_epi32(sums, row, columns); }
  static I32 all_words(int16_t value) { return _mm512_set1_epi16(value); }
  static I32 add_words(I32 a, I32 b) { return _mm512_add_epi16(a, b); }
  static I32 add_saturated(I32 a, I32 b) { return _mm512_adds_epi16(a, b); }
  static I32 min_words(I32 a, I32 b) { return _mm512_min_epi16(a, b); }
  static I32 max_words(I32 a, I32 b) { return _mm512_max_epi16(a, b); }
  static I32 multiply_fractions(I32 a, I32 b) { return _mm512_mulhrs_epi16(a, b); }
  static I32 shift_left_words(I32 a, int count) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(count)); }
  static I32 multiply_high(I32 a, I32 b) { return _mm512_mulhi_epi16(a, b); }
  typedef I32 Table;
  static Table table(const int16_t* words) { return load_i32(words); }
  static I32 look_up(Table table, I32 places) { return _mm512_permutexvar_epi16(places, table); }
  static int32_t total_i32(I32 lanes) { return _mm512_reduce_add_epi32(lanes); }
  static void store_totals(int32_t* to, I32 a, I32 b, I32 c, I32 d) {
    const auto pairs = [](I32 x, I32 y) { return add_i32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y)); };
    const I32 ab = pairs(a, b), cd = pairs(c, d);
    const I32 all = add_i32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
  static I32 to_words(I32 first, I32 second, I32 bits) { return _mm512_packs_epi32(_mm512_srav_epi32(first, bits), _mm512_srav_epi32(second, bits)); }
  static I32 levels4(const Decoder& d) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d.levels))); }
  // Store whole registers, because a load of 64 bytes that spans two stores waits until both are in the cache.
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
  static int32_t dot_row(const uint8_t* row, const int8_t* query, int64_t count) {
    I32 sums = zero();
    for (int64_t i = 0; i < count; i += 64) sums = dot_bytes(sums, load_i32(row + i), load_i32(query + i));
    return total_i32(sums);
  }
};

}  // namespace
