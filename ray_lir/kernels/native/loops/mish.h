// Mish of 16-bit words; a part of loops.h.

// Mish(y) of words of y times 2^bits, times 2^(bits - 1), by lines of some length. The last is that of all that is larger, the first of all
// that is smaller.
template <class V>
struct Mish {
  typename V::Table slopes, starts;
  typename V::I32 lines_a_unit;

  Mish(const int16_t* lines, int16_t lines_a_unit)
      : slopes(V::table(lines)), starts(V::table(lines + kMishLines)), lines_a_unit(V::all_words(lines_a_unit)) {}

  typename V::I32 operator()(typename V::I32 y) const {
    const auto line = V::max_words(V::min_words(V::multiply_high(y, lines_a_unit), V::all_words(kMishLeast + kMishLines - 1)), V::all_words(kMishLeast));
    return V::add_words(V::look_up(starts, line), V::multiply_fractions(y, V::look_up(slopes, line)));
  }
};
