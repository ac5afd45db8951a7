// Mish of registers' lanes, and of four registers at once; a part of loops.h.

// 2^(j / 8) for j from 0 to 7, twice, as the bits of floats less j << 20: with any whole k << 20 added to those of k % 8, 2^(k / 8).
constexpr uint32_t kPowers[16] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
                                  0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

// Mish(z) = z u / (u + 2), u = e (e + 2), e = exp(z), of y = kEighths z, and in those units. 2^(y / 8) is looked up for the nearest
// whole y, times a polynomial for what is left, within 4e-6 of itself. Beyond z = 20 the factor of z is one, or too small to matter.
template <class V>
inline typename V::F32 mish(const typename V::F32& y) {
  const auto x = V::within(y, V::all(20 * kEighths));
  const auto magic = V::all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const auto rounded = V::add(x, magic);
  const auto rest = V::add(x, V::sub(magic, rounded));
  const auto inner = V::add(V::mul(rest, V::all(0.00375397946f)), V::all(0.0866637230f));
  const auto e = V::mul(V::add(V::mul(rest, inner), V::all(1.0f)), V::power_of_eighths(rounded));
  const auto u = V::mul(e, V::add(e, V::all(2.0f)));
  return V::div(V::mul(y, u), V::add(u, V::all(2.0f)));
}

// Four registers as one: what is done to one is done to the others before what depends on it, so that none waits long.
template <class V>
struct Four {
  struct F32 { typename V::F32 parts[4]; };

  template <class Run>
  static F32 each(const Run& run) {
    F32 result;
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) result.parts[p] = run(p);
    return result;
  }
  static F32 all(float value) { return each([&](int) { return V::all(value); }); }
  static F32 load(const float* from) { return each([&](int p) { return V::load(from + p * kGroup); }); }
  static F32 add(const F32& a, const F32& b) { return each([&](int p) { return V::add(a.parts[p], b.parts[p]); }); }
  static F32 sub(const F32& a, const F32& b) { return each([&](int p) { return V::sub(a.parts[p], b.parts[p]); }); }
  static F32 mul(const F32& a, const F32& b) { return each([&](int p) { return V::mul(a.parts[p], b.parts[p]); }); }
  static F32 within(const F32& a, const F32& limit) { return each([&](int p) { return V::within(a.parts[p], limit.parts[p]); }); }
  static F32 power_of_eighths(const F32& a) { return each([&](int p) { return V::power_of_eighths(a.parts[p]); }); }
  // a / b; two share a division.
  static F32 div(const F32& a, const F32& b) {
    const typename V::F32 over[2] = {V::div(V::all(1), V::mul(b.parts[0], b.parts[1])), V::div(V::all(1), V::mul(b.parts[2], b.parts[3]))};
    return each([&](int p) { return V::mul(a.parts[p], V::mul(over[p / 2], b.parts[p ^ 1])); });
  }
};
