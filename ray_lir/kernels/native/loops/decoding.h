// Packed residuals decoded to bytes; a part of loops.h.

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
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
    each([&](const uint8_t* from, uint8_t* to) { decode_bytes<decltype(item)::value>(d, from, to); });
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
