// Registers of 128 bits (NEON with the dot product of Armv8.2), for the file that includes it in an anonymous namespace of its own.
#include <arm_neon.h>

namespace {

struct Neon {
  static constexpr int kLanes = 4;
  static constexpr int tile(int lanes) { return lanes == 8 ? 8 : lanes == 16 ? 5 : lanes == 24 ? 4 : 3; }
  static constexpr bool kMatrix = false;
  static constexpr bool kAddsWords = false;
  typedef Neon Half;
  typedef int32x4_t I32;
  typedef float32x4_t F32;

  static void begin() {}
  static void end() {}
  static I32 zero() { return vdupq_n_s32(0); }
  static I32 all_i32(int32_t value) { return vdupq_n_s32(value); }
  static I32 load_i32(const void* from) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(from))); }
  static void store_i32(int32_t* to, I32 lanes) { vst1q_s32(to, lanes); }
  static I32 add_i32(I32 a, I32 b) { return vaddq_s32(a, b); }
  static I32 broadcast(const void* from) { int32_t item; std::memcpy(&item, from, 4); return vdupq_n_s32(item); }
  static F32 all(float value) { return vdupq_n_f32(value); }
  static F32 load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, F32 lanes) { vst1q_f32(to, lanes); }
  static F32 load_scores(const Score* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
  static void store(Score* to, F32 lanes) { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(lanes))); }
  // Return the integer parts of numbers from 0 to 255.
  static void store_bytes(uint8_t* to, F32 lanes) {
    const uint16x4_t words = vqmovun_s32(vcvtq_s32_f32(lanes));
    const uint32x2_t bytes = vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words)));
    const uint32_t four = vget_lane_u32(bytes, 0);
    std::memcpy(to, &four, 4);
  }
  static F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
  static F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
  static F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
  // Of two equal numbers the second, as on x86: the instruction for the maximum would prefer 0 to -0.
  static F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
  static F32 root(F32 a) { return vsqrtq_f32(a); }
  static F32 to_float(I32 lanes) { return vcvtq_f32_s32(lanes); }
  static float total(const F32 (&lanes)[4]) {
    const F32 sums = add(add(lanes[0], lanes[2]), add(lanes[1], lanes[3]));
    const float32x2_t halves = vadd_f32(vget_low_f32(sums), vget_high_f32(sums));
    return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
  }
  static float largest(F32 lanes) { return vmaxvq_f32(lanes); }
  static float smallest(F32 lanes) { return vminvq_f32(lanes); }
  static uint32_t at_least(F32 a, F32 b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(a, b), bits));
  }
  static void keep_larger(F32& best, F32& factor, F32 value, F32 candidate) {
    const uint32x4_t larger = vcgtq_f32(value, best);
    best = vbslq_f32(larger, value, best);
    factor = vbslq_f32(larger, candidate, factor);
  }
  static void keep_larger(I32& best, I32& where, I32 value, int32_t number) {
    const uint32x4_t larger = vcgtq_s32(value, best);
    best = vmaxq_s32(best, value);
    where = vbslq_s32(larger, vdupq_n_s32(number), where);
  }

  // Bytes of rows are signed bytes too: they are below 128, or less 128.
  static I32 dot_bytes(I32 sums, I32 row, I32 columns) { return vdotq_s32(sums, vreinterpretq_s8_s32(row), vreinterpretq_s8_s32(columns)); }
  static I32 join_words(F32 low, F32 high) { return vsliq_n_s32(vreinterpretq_s32_f32(low), vreinterpretq_s32_f32(high), 16); }
  static F32 times_power_of_two(F32 x, F32 rounded) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(rounded), 23)));
  }
  static void keep_in_register(I32& lanes) { asm("" : "+w"(lanes)); }
  static constexpr int kQuantizedRows = 4, kQuantizedColumns = 16;  // their sums stay in registers
  // Bytes from 0 to 255 less 128, as signed bytes: their products' sums begin with `offsets`.
  static void store_row_bytes(uint8_t* to, F32 lanes) {
    store_bytes(to, lanes);
    for (int i = 0; i < kLanes; ++i) to[i] ^= 128;
  }
  static I32 first_sums(const int32_t* offsets) { return vld1q_s32(offsets); }
  static I32 dot_eight(I32 sums, I32 row, I32 columns, I32 next_row, I32 next_columns) {
    return dot_bytes(dot_bytes(sums, row, columns), next_row, next_columns);
  }
  static I32 dot_words(I32 sums, I32 row, I32 columns) {
    const int16x8_t a = words_of(row), b = words_of(columns);
    return vaddq_s32(sums, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
  }

  // 16-bit words. No factor of a product is -2^15 on both sides, where the instructions saturate and those of x86 do not.
  static int16x8_t words_of(I32 lanes) { return vreinterpretq_s16_s32(lanes); }
  static I32 lanes_of(int16x8_t words) { return vreinterpretq_s32_s16(words); }
  static I32 all_words(int16_t value) { return lanes_of(vdupq_n_s16(value)); }
  static I32 add_words(I32 a, I32 b) { return lanes_of(vaddq_s16(words_of(a), words_of(b))); }
  static I32 add_saturated(I32 a, I32 b) { return lanes_of(vqaddq_s16(words_of(a), words_of(b))); }
  static I32 min_words(I32 a, I32 b) { return lanes_of(vminq_s16(words_of(a), words_of(b))); }
  static I32 max_words(I32 a, I32 b) { return lanes_of(vmaxq_s16(words_of(a), words_of(b))); }
  static I32 multiply_fractions(I32 a, I32 b) { return lanes_of(vqrdmulhq_s16(words_of(a), words_of(b))); }  // a b / 2^15, rounded
  static I32 shift_left_words(I32 a, int count) { return lanes_of(vshlq_s16(words_of(a), vdupq_n_s16(int16_t(count)))); }
  // a b / 2^16, rounded down: the instruction computes 2 a b / 2^16, rounded down.
  static I32 multiply_high(I32 a, I32 b) { return lanes_of(vshrq_n_s16(vqdmulhq_s16(words_of(a), words_of(b)), 1)); }
  typedef uint8x16x4_t Table;
  static Table table(const int16_t* words) { return vld1q_u8_x4(reinterpret_cast<const uint8_t*>(words)); }
  static I32 look_up(const Table& table, I32 places) {  // the low 5 bits are the position in the table; its bytes are 2 p and 2 p + 1
    const uint16x8_t place = vandq_u16(vreinterpretq_u16_s32(places), vdupq_n_u16(31));
    const uint16x8_t bytes = vaddq_u16(vmulq_n_u16(place, 0x0202), vdupq_n_u16(0x0100));
    return vreinterpretq_s32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u16(bytes)));
  }
  static int32_t total_i32(I32 lanes) { return vaddvq_s32(lanes); }
  static void store_totals(int32_t* to, I32 a, I32 b, I32 c, I32 d) { store_i32(to, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))); }
  // Divide two registers of products by 2^bits and pack them to words: the lanes of the first, then those of the second.
  static I32 to_words(I32 first, I32 second, I32 bits) {
    const I32 right = vnegq_s32(bits);
    return lanes_of(vqmovn_high_s32(vqmovn_s32(vshlq_s32(first, right)), vshlq_s32(second, right)));
  }

  static int32_t dot_row(const uint8_t* row, const int8_t* query, int64_t count) {
    I32 sums = zero();
    for (int64_t i = 0; i < count; i += 16) sums = dot_bytes(sums, load_i32(row + i), load_i32(query + i));
    return total_i32(sums);
  }
  static uint8x16_t levels4(const Decoder& d) { return vld1q_u8(d.levels); }
  static void decode4(const Decoder& d, uint8x16_t levels, const uint8_t* packed, uint8_t* row) {
    int64_t i = 0;
    for (; i + 32 <= d.packed_bytes; i += 32)
      for (int half = 0; half < 32; half += 16) {
        const uint8x16_t bytes = vld1q_u8(packed + i + half);
        vst1q_u8(row + 2 * i + half, vqtbl1q_u8(levels, vshrq_n_u8(bytes, 4)));
        vst1q_u8(row + 2 * i + 32 + half, vqtbl1q_u8(levels, vandq_u8(bytes, vdupq_n_u8(15))));
      }
    for (; i < d.packed_bytes; ++i) std::memcpy(row + 2 * i, d.lut + 2 * packed[i], 2);
  }
  static void to_floats(const uint16_t* halves, int64_t count, float* floats) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) store(floats + i, load_scores(halves + i));
    for (; i < count; ++i) {
      uint16_t last[4] = {halves[i]};
      floats[i] = vgetq_lane_f32(load_scores(last), 0);
    }
  }

  static F32 load_byte_scores(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
  }
  template <int BYTES> static auto zero_bytes() {
    if constexpr (BYTES == 32) return uint8x16x2_t{};
    else return vdupq_n_u8(0);
  }
  template <int BYTES> static auto load_bytes(const uint8_t* from) {
    if constexpr (BYTES == 32) return vld1q_u8_x2(from);
    else return vld1q_u8(from);
  }
  static uint8x16_t max_bytes(uint8x16_t a, uint8x16_t b) { return vmaxq_u8(a, b); }
  static uint8x16x2_t max_bytes(uint8x16x2_t a, uint8x16x2_t b) { return {{vmaxq_u8(a.val[0], b.val[0]), vmaxq_u8(a.val[1], b.val[1])}}; }
  static uint8x16_t min_bytes(uint8x16_t a, uint8x16_t b) { return vminq_u8(a, b); }
  static uint8x16x2_t min_bytes(uint8x16x2_t a, uint8x16x2_t b) { return {{vminq_u8(a.val[0], b.val[0]), vminq_u8(a.val[1], b.val[1])}}; }
  // Return one bit for each pair of equal bytes.
  static uint32_t equal_bytes(uint8x16_t a, uint8x16_t b) {
    const uint8x16_t bits = vandq_u8(vceqq_u8(a, b), vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)));
    return uint32_t(vaddv_u8(vget_low_u8(bits))) | uint32_t(vaddv_u8(vget_high_u8(bits))) << 8;
  }
  static uint32_t equal_bytes(uint8x16x2_t a, uint8x16x2_t b) {
    return equal_bytes(a.val[0], b.val[0]) | equal_bytes(a.val[1], b.val[1]) << 16;
  }
};

}  // namespace
