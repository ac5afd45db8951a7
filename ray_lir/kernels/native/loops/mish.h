// Mish of 16-bit words; a part of loops.h.

// Compute Mish(y) times 2^(bits - 1) from words y times 2^bits, by lines of equal length. The first line also serves all smaller arguments,
// and the last all larger ones.
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
