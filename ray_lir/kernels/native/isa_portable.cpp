// The kernels in plain C++, for any processor.
#include "loops.h"

namespace {

struct Plain {
  static constexpr int kLanes = 4;
  static constexpr int tile(int) { return 1; }
  static constexpr bool kMatrix = false;
  static constexpr bool kAddsWords = false;
  typedef Plain Half;
  typedef int32_t I32 __attribute__((vector_size(16)));
  typedef float F32 __attribute__((vector_size(16)));

  static void begin() {}
  static void end() {}
  static I32 zero() { return I32{}; }
  static I32 all_i32(int32_t value) { return I32{} + value; }
  static I32 load_i32(const void* from) { I32 lanes; std::memcpy(&lanes, from, 16); return lanes; }
  static void store_i32(int32_t* to, I32 lanes) { std::memcpy(to, &lanes, 16); }
  static I32 add_i32(I32 a, I32 b) { return a + b; }
  static I32 broadcast(const void* from) { int32_t item; std::memcpy(&item, from, 4); return all_i32(item); }
  static F32 all(float value) { return F32{} + value; }
  static F32 load(const float* from) { F32 lanes; std::memcpy(&lanes, from, 16); return lanes; }
  static void store(float* to, F32 lanes) { std::memcpy(to, &lanes, 16); }
  static F32 add(F32 a, F32 b) { return a + b; }
  static F32 sub(F32 a, F32 b) { return a - b; }
  static F32 mul(F32 a, F32 b) { return a * b; }
  static F32 max(F32 a, F32 b) { return a > b ? a : b; }
  static F32 min(F32 a, F32 b) { return a < b ? a : b; }
  static F32 div(F32 a, F32 b) { return a / b; }
  static F32 root(F32 a) {
    for (int lane = 0; lane < 4; ++lane) a[lane] = std::sqrt(a[lane]);
    return a;
  }
  static F32 to_float(I32 lanes) { return __builtin_convertvector(lanes, F32); }
  static float total(const F32 (&lanes)[4]) {
    const F32 sums = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }
  static float largest(F32 a) { return std::max(std::max(a[0], a[1]), std::max(a[2], a[3])); }
  static float smallest(F32 a) { return std::min(std::min(a[0], a[1]), std::min(a[2], a[3])); }
  static uint32_t at_least(F32 a, F32 b) {
    uint32_t mask = 0;
    for (int lane = 0; lane < 4; ++lane) mask |= uint32_t(a[lane] >= b[lane]) << lane;
    return mask;
  }
  static void keep_larger(F32& best, F32& factor, F32 value, F32 candidate) {
    const I32 larger = value > best;
    best = larger ? value : best;
    factor = larger ? candidate : factor;
  }
  static void keep_larger(I32& best, I32& where, I32 value, int32_t number) {
    const I32 larger = value > best;
    best = larger ? value : best;
    where = larger ? all_i32(number) : where;
  }

  static I32 dot_bytes(I32 sums, I32 row, I32 columns) {
    uint8_t a[16];
    int8_t b[16];
    std::memcpy(a, &row, 16);
    std::memcpy(b, &columns, 16);
    for (int lane = 0; lane < 4; ++lane)
      for (int i = 4 * lane; i < 4 * lane + 4; ++i) sums[lane] += int(a[i]) * b[i];
    return sums;
  }
  static I32 join_words(F32 low, F32 high) {
    uint32_t a[4], b[4];
    std::memcpy(a, &low, 16);
    std::memcpy(b, &high, 16);
    for (int lane = 0; lane < 4; ++lane) a[lane] = (a[lane] & 0xffff) | b[lane] << 16;
    return load_i32(a);
  }
  static F32 times_power_of_two(F32 x, F32 rounded) {
    uint32_t lanes[4], whole[4];
    std::memcpy(lanes, &x, 16);
    std::memcpy(whole, &rounded, 16);
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += whole[lane] << 23;
    std::memcpy(&x, lanes, 16);
    return x;
  }
  static void keep_in_register(I32&) {}
  static constexpr int kQuantizedRows = 1, kQuantizedColumns = kGroup;
  static void store_row_bytes(uint8_t* to, F32 lanes) { store_bytes(to, lanes); }
  static I32 first_sums(const int32_t*) { return zero(); }
  static I32 dot_eight(I32 sums, I32 row, I32 columns, I32 next_row, I32 next_columns) {
    return dot_bytes(dot_bytes(sums, row, columns), next_row, next_columns);
  }
  static I32 dot_words(I32 sums, I32 row, I32 columns) {
    int16_t a[8], b[8];
    std::memcpy(a, &row, 16);
    std::memcpy(b, &columns, 16);
    for (int lane = 0; lane < 4; ++lane)
      sums[lane] = int32_t(uint32_t(sums[lane]) + uint32_t(a[2 * lane] * b[2 * lane]) + uint32_t(a[2 * lane + 1] * b[2 * lane + 1]));
    return sums;
  }

  template <class Run>
  static I32 each_word(I32 lanes, const Run& run) {
    int16_t words[8];
    std::memcpy(words, &lanes, 16);
    for (int i = 0; i < 8; ++i) words[i] = run(words[i], i);
    std::memcpy(&lanes, words, 16);
    return lanes;
  }
  template <class Run>
  static I32 each_word(I32 a, I32 b, const Run& run) {
    int16_t others[8];
    std::memcpy(others, &b, 16);
    return each_word(a, [&](int16_t word, int i) { return run(word, others[i]); });
  }
  static int16_t saturated(int32_t value) { return int16_t(value > 32767 ? 32767 : value < -32768 ? -32768 : value); }
  static I32 all_words(int16_t value) { return each_word(zero(), [&](int16_t, int) { return value; }); }
  static I32 add_words(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return int16_t(x + y); }); }
  static I32 add_saturated(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return saturated(x + y); }); }
  static I32 min_words(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return x < y ? x : y; }); }
  static I32 max_words(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return x > y ? x : y; }); }
  static I32 multiply_fractions(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return int16_t((x * y + (1 << 14)) >> 15); }); }
  static I32 shift_left_words(I32 a, int count) { return each_word(a, [&](int16_t x, int) { return int16_t(uint32_t(x) << count); }); }
  static I32 multiply_high(I32 a, I32 b) { return each_word(a, b, [](int16_t x, int16_t y) { return int16_t(x * y >> 16); }); }
  typedef const int16_t* Table;
  static Table table(const int16_t* words) { return words; }
  static I32 look_up(Table words, I32 places) { return each_word(places, [&](int16_t x, int) { return words[x & 31]; }); }
  static int32_t total_i32(I32 lanes) {
    return int32_t((uint32_t(lanes[0]) + uint32_t(lanes[1])) + (uint32_t(lanes[2]) + uint32_t(lanes[3])));
  }
  static void store_totals(int32_t* to, I32 a, I32 b, I32 c, I32 d) {
    to[0] = total_i32(a), to[1] = total_i32(b), to[2] = total_i32(c), to[3] = total_i32(d);
  }
  static I32 to_words(I32 first, I32 second, I32 bits) {
    return each_word(zero(), [&](int16_t, int i) { return saturated((i < 4 ? first[i] : second[i - 4]) >> bits[0]); });
  }
  static int32_t dot_row(const uint8_t* row, const int8_t* query, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += int(row[i]) * query[i];
    return sum;
  }
  static const uint8_t* levels4(const Decoder& d) { return d.levels; }
  static void decode4(const Decoder& d, const uint8_t* levels, const uint8_t* packed, uint8_t* row) {
    const int64_t whole = d.packed_bytes / 32 * 32;
    for (int64_t i = 0; i < whole; ++i) {
      row[i / 32 * 64 + i % 32] = levels[packed[i] >> 4];
      row[i / 32 * 64 + 32 + i % 32] = levels[packed[i] & 15];
    }
    for (int64_t i = whole; i < d.packed_bytes; ++i) std::memcpy(row + 2 * i, d.lut + 2 * packed[i], 2);
  }

  static float half(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = float(fraction) * (1.0f / (1 << 24));  // exact for a subnormal number
    uint32_t word;
    std::memcpy(&word, &value, 4);
    if (exponent) word = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    word |= sign;
    std::memcpy(&value, &word, 4);
    return value;
  }

  static void to_floats(const uint16_t* halves, int64_t count, float* floats) {
    for (int64_t i = 0; i < count; ++i) floats[i] = half(halves[i]);
  }

  // Round to the nearest value, ties to even, like the instruction of other processors.
  static uint16_t to_half(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
    if (size >= 0x47800000) return uint16_t(sign | 0x7c00);  // 2^16 and more; callers keep scores below
    if (size < 0x38800000) {  // below 2^-14: a subnormal number, in units of 2^-24
      float scaled;
      std::memcpy(&scaled, &size, 4);
      return uint16_t(sign | uint32_t(std::lrintf(scaled * (1 << 24))));
    }
    return uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
  }
  static F32 load_scores(const Score* from) {
    F32 lanes;
    for (int lane = 0; lane < 4; ++lane) lanes[lane] = half(from[lane]);
    return lanes;
  }
  static void store(Score* to, F32 lanes) {
    for (int lane = 0; lane < 4; ++lane) to[lane] = to_half(lanes[lane]);
  }

  static void store_bytes(uint8_t* to, F32 lanes) {
    for (int lane = 0; lane < 4; ++lane) to[lane] = uint8_t(int32_t(lanes[lane]));
  }

  static F32 load_byte_scores(const uint8_t* from) { return F32{float(from[0]), float(from[1]), float(from[2]), float(from[3])}; }
  template <int BYTES> struct Bytes { uint8_t items[BYTES]; };
  template <int BYTES> static Bytes<BYTES> zero_bytes() { return {}; }
  template <int BYTES> static Bytes<BYTES> load_bytes(const uint8_t* from) { Bytes<BYTES> b; std::memcpy(&b, from, BYTES); return b; }
  template <int BYTES> static Bytes<BYTES> max_bytes(Bytes<BYTES> a, const Bytes<BYTES>& b) {
    for (int i = 0; i < BYTES; ++i) a.items[i] = a.items[i] > b.items[i] ? a.items[i] : b.items[i];
    return a;
  }
  template <int BYTES> static Bytes<BYTES> min_bytes(Bytes<BYTES> a, const Bytes<BYTES>& b) {
    for (int i = 0; i < BYTES; ++i) a.items[i] = a.items[i] < b.items[i] ? a.items[i] : b.items[i];
    return a;
  }
  // Return one bit for each pair of equal bytes.
  template <int BYTES> static uint32_t equal_bytes(const Bytes<BYTES>& a, const Bytes<BYTES>& b) {
    uint32_t mask = 0;
    for (int i = 0; i < BYTES; ++i) mask |= uint32_t(a.items[i] == b.items[i]) << i;
    return mask;
  }
};

}  // namespace

namespace ray_lir {
const Isa* portable_isa() {
  static const Isa isa = isa_of<Plain>("portable");
  return &isa;
}
}  // namespace ray_lir
