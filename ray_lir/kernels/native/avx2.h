// Registers of 256 bits (AVX2, FMA, F16C), for the file that includes it in an anonymous namespace of its own.
#include <immintrin.h>

namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int tile(int lanes) { return lanes == 8 ? 8 : lanes == 16 ? 4 : 2; }
  static constexpr bool kMatrix = false;
  typedef Avx2 Half;
  typedef __m256i I32;
  typedef __m256 F32;

  static void begin() {}
  static void end() {}
  static I32 zero() { return _mm256_setzero_si256(); }
  static I32 all_i32(int32_t value) { return _mm256_set1_epi32(value); }
  static I32 load_i32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store_i32(int32_t* to, I32 lanes) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), lanes); }
  static I32 add_i32(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
  static I32 broadcast(const void* from) { int32_t item; std::memcpy(&item, from, 4); return _mm256_set1_epi32(item); }
  static F32 all(float value) { return _mm256_set1_ps(value); }
  static F32 load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, F32 lanes) { _mm256_storeu_ps(to, lanes); }
  static F32 load_scores(const Score* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
  static void store(Score* to, F32 lanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // Return the integer parts of numbers from 0 to 255.
  static void store_bytes(uint8_t* to, F32 lanes) {
    const __m256i numbers = _mm256_cvttps_epi32(lanes);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
  }
  static F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  static F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  static F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
  static F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
  static F32 root(F32 a) { return _mm256_sqrt_ps(a); }
  static F32 to_float(I32 lanes) { return _mm256_cvtepi32_ps(lanes); }
  static float total(__m128 lanes) {
    lanes = _mm_add_ps(lanes, _mm_movehl_ps(lanes, lanes));
    return _mm_cvtss_f32(_mm_add_ss(lanes, _mm_shuffle_ps(lanes, lanes, 1)));
  }
  static float total(F32 lanes) { return total(_mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1))); }
  static float total(const F32 (&lanes)[2]) { return total(_mm256_add_ps(lanes[0], lanes[1])); }
  static float largest(F32 lanes) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static float smallest(F32 lanes) {
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static uint32_t at_least(F32 a, F32 b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
  static void keep_larger(F32& best, F32& factor, F32 value, F32 candidate) {
    const F32 larger = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
    best = _mm256_blendv_ps(best, value, larger);
    factor = _mm256_blendv_ps(factor, candidate, larger);
  }
  static void keep_larger(I32& best, I32& where, I32 value, int32_t number) {
    const I32 larger = _mm256_cmpgt_epi32(value, best);
    best = _mm256_max_epi32(best, value);
    where = _mm256_blendv_epi8(where, _mm256_set1_epi32(number), larger);
  }

  // Bytes of rows are below 128, so the sum of two products fits 16 bits and does not saturate.
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(row, columns), _mm256_set1_epi16(1)));
  }
  // Join the lowest 16 bits of two registers in each lane.
  static I32 join_words(F32 low, F32 high) {
    return _mm256_blend_epi16(_mm256_castps_si256(low), _mm256_slli_epi32(_mm256_castps_si256(high), 16), 0xaa);
  }
  // Return x 2^n, with n in the lowest bits of each lane of `rounded` (see kRound). The result must be a normal number.
  static F32 times_power_of_two(F32 x, F32 rounded) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(rounded), 23)));
  }
  // Hinder the compiler from using a second register for sums after a loop, and the stack for those without one.
  static void keep_in_register(I32& lanes) { asm("" : "+x"(lanes)); }
  static constexpr int kQuantizedRows = 4, kQuantizedColumns = 16;  // their sums stay in registers
  static void store_row_bytes(uint8_t* to, F32 lanes) { store_bytes(to, lanes); }
  static I32 first_sums(const int32_t*) { return zero(); }
  // Add 8 products a lane. The sums of 4 products must fit 16 bits. In the encoder they do, because bytes of rows are at most kLargestByte and
  // 4 of one sign in a column at most kLargestFour. In searches, PackedQuery::four_fit says so.
  static constexpr bool kAddsWords = true;
  static I32 dot_eight(I32 sums, I32 row, I32 columns, I32 next_row, I32 next_columns) {
    const I32 words = _mm256_add_epi16(_mm256_maddubs_epi16(row, columns), _mm256_maddubs_epi16(next_row, next_columns));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  }
  static I32 dot_words(I32 sums, I32 row, I32 columns) { return _mm256_add_epi32(sums, _mm256_madd_epi16(row, columns)); }

  // 16-bit words.
  static I32 all_words(int16_t value) { return _mm256_set1_epi16(value); }
  static I32 add_words(I32 a, I32 b) { return _mm256_add_epi16(a, b); }
  static I32 add_saturated(I32 a, I32 b) { return _mm256_adds_epi16(a, b); }
  static I32 min_words(I32 a, I32 b) { return _mm256_min_epi16(a, b); }
  static I32 max_words(I32 a, I32 b) { return _mm256_max_epi16(a, b); }
  static I32 multiply_fractions(I32 a, I32 b) { return _mm256_mulhrs_epi16(a, b); }  // a b / 2^15, rounded
  static I32 shift_left_words(I32 a, int count) { return _mm256_sll_epi16(a, _mm_cvtsi32_si128(count)); }
  static I32 multiply_high(I32 a, I32 b) { return _mm256_mulhi_epi16(a, b); }  // a b / 2^16, rounded down
  struct Table { I32 low[2], high[2]; };  // the bytes of 32 words, 16 in each half of a register
  static Table table(const int16_t* words) {
    uint8_t low[32], high[32];
    for (int i = 0; i < 32; ++i) low[i] = uint8_t(words[i]), high[i] = uint8_t(uint16_t(words[i]) >> 8);
    const auto half = [](const uint8_t* bytes) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))); };
    return {{half(low), half(low + 16)}, {half(high), half(high + 16)}};
  }
  static I32 look_up(const Table& table, I32 places) {  // the low 5 bits are the position in the table
    const I32 second = _mm256_slli_epi16(places, 11);   // moves bit 4 to the top, where it selects one of two bytes
    const I32 place = _mm256_or_si256(_mm256_and_si256(places, _mm256_set1_epi16(15)), _mm256_set1_epi16(int16_t(0x8000)));
    const auto bytes = [&](const I32 (&halves)[2]) {
      const I32 first = _mm256_shuffle_epi8(halves[0], place), other = _mm256_shuffle_epi8(halves[1], place);
      return _mm256_blendv_epi8(first, other, _mm256_srai_epi16(second, 15));
    };
    return _mm256_or_si256(bytes(table.low), _mm256_slli_epi16(bytes(table.high), 8));
  }
  static int32_t total_i32(__m128i lanes) {
    lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0xb1)));
  }
  static int32_t total_i32(I32 lanes) { return total_i32(_mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1))); }
  static void store_totals(int32_t* to, I32 a, I32 b, I32 c, I32 d) {
    const I32 pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
  }
  // Divide two registers of products by 2^bits and pack them to words: 4 lanes of the first, then 4 lanes of the second, and so on.
  static I32 to_words(I32 first, I32 second, I32 bits) { return _mm256_packs_epi32(_mm256_srav_epi32(first, bits), _mm256_srav_epi32(second, bits)); }

  static int32_t dot_row(const uint8_t* row, const int8_t* query, int64_t count) {
    I32 sums = zero(), more = zero();
    for (int64_t i = 0; i < count; i += 64) {
      sums = dot_bytes(sums, load_i32(row + i), load_i32(query + i));
      more = dot_bytes(more, load_i32(row + i + 32), load_i32(query + i + 32));
    }
    return total_i32(add_i32(sums, more));
  }
  static I32 levels4(const Decoder& d) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d.levels))); }
  static void decode4(const Decoder& d, I32 levels, const uint8_t* packed, uint8_t* row) { decode4_from(d, levels, 0, packed, row); }
  static void decode4_from(const Decoder& d, I32 levels, int64_t i, const uint8_t* packed, uint8_t* row) {
    const I32 low = _mm256_set1_epi8(15);
    for (; i + 32 <= d.packed_bytes; i += 32) {
      const I32 bytes = _mm256_loadu_si256(reinterpret_cast<const I32*>(packed + i));
      const I32 even = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), odd = _mm256_and_si256(bytes, low);
      _mm256_storeu_si256(reinterpret_cast<I32*>(row + 2 * i), _mm256_shuffle_epi8(levels, even));
      _mm256_storeu_si256(reinterpret_cast<I32*>(row + 2 * i + 32), _mm256_shuffle_epi8(levels, odd));
    }
    for (; i < d.packed_bytes; ++i) std::memcpy(row + 2 * i, d.lut + 2 * packed[i], 2);
  }
  static void to_floats(const uint16_t* halves, int64_t count, float* floats) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(floats + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i))));
    for (; i < count; ++i) floats[i] = _cvtsh_ss(halves[i]);
  }

  static F32 load_byte_scores(const uint8_t* from) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))); }
  template <int BYTES> static auto zero_bytes() {
    if constexpr (BYTES == 32) return _mm256_setzero_si256();
    else return _mm_setzero_si128();
  }
  template <int BYTES> static auto load_bytes(const uint8_t* from) {
    if constexpr (BYTES == 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    else return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static __m256i max_bytes(__m256i a, __m256i b) { return _mm256_max_epu8(a, b); }
  static __m128i max_bytes(__m128i a, __m128i b) { return _mm_max_epu8(a, b); }
  static __m256i min_bytes(__m256i a, __m256i b) { return _mm256_min_epu8(a, b); }
  static __m128i min_bytes(__m128i a, __m128i b) { return _mm_min_epu8(a, b); }
  // Return one bit for each pair of equal bytes.
  static uint32_t equal_bytes(__m256i a, __m256i b) { return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b))); }
  static uint32_t equal_bytes(__m128i a, __m128i b) { return uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b))); }
};

}  // namespace
