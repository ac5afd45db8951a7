// Packed residuals decoded to bytes; a part of loops.h.

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
}

// Decode a row of a trellis: the values of a byte depend on the last bits of the byte before. With the first byte in the highest bits of a
// word, both are next to each other.
template <int ITEM>
inline void decode_trellis(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  const uint64_t mask = (uint64_t(256) << d.memory) - 1;
  uint64_t before = 0;
  int64_t i = 0;
  const auto item = [&](int64_t at, uint64_t bits) { std::memcpy(row + at * ITEM, d.lut + (bits & mask) * ITEM, ITEM); };
  for (; i + 8 <= d.packed_bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, packed + i, 8);
    word = __builtin_bswap64(word);
    item(i, before << 8 | word >> 56);
#pragma GCC unroll 8
    for (int j = 1; j < 8; ++j) item(i + j, word >> (56 - 8 * j));
    before = word;
  }
  for (; i < d.packed_bytes; ++i) {
    before = before << 8 | packed[i];
    item(i, before);
  }
}

// Decode rows and prefetch the next rows, one row at a time, because the first-level cache has few outstanding requests.
template <class V>
void decode(const Decoder& decoder, const uint8_t* packed, int64_t count, uint8_t* rows, const uint8_t* next, int64_t next_count) {
  const Decoder d = decoder;  // a local copy, so that the compiler knows that storing bytes does not change it
  const uint8_t* end = next + next_count * d.packed_bytes;
  const auto each = [&](const auto& decode_row) {
    for (int64_t i = 0; i < count; ++i, packed += d.packed_bytes, rows += d.stride) {
      for (int64_t line = 0; line < d.packed_bytes; line += 64, next += 64)
        if (next < end) __builtin_prefetch(next, 0, 2);
      decode_row(packed, rows);
    }
    for (; next < end; next += 64) __builtin_prefetch(next);
  };
  const auto whole = [&](auto item) {
    constexpr int kItem = decltype(item)::value;
    if (d.memory) return each([&](const uint8_t* from, uint8_t* to) { decode_trellis<kItem>(d, from, to); });
    each([&](const uint8_t* from, uint8_t* to) { decode_bytes<kItem>(d, from, to); });
  };
  switch (d.nbits) {
    case 1: return whole(Count<8>{});
    case 2: return whole(Count<4>{});
    case 4: {
      const auto levels = V::levels4(d);
      return each([&](const uint8_t* from, uint8_t* to) { V::decode4(d, levels, from, to); });
    }
    default: return whole(Count<1>{});
  }
}
