// Packed residuals decoded to bytes; a part of loops.h.

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
}

template <class V>
void decode(const Decoder& d, const uint8_t* packed, int64_t count, uint8_t* rows) {
  const auto each = [&](const auto& decode_row) {
    for (int64_t i = 0; i < count; ++i) decode_row(d, packed + i * d.packed_bytes, rows + i * d.stride);
  };
  switch (d.nbits) {
    case 1: return each(decode_bytes<8>);
    case 2: return each(decode_bytes<4>);
    case 4: return each(V::decode4);
    default: return each(decode_bytes<1>);
  }
}
