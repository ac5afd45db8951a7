// Packed residuals decoded to bytes; a part of loops.h.

template <int ITEM>
inline void decode_bytes(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  for (int64_t i = 0; i < d.packed_bytes; ++i) std::memcpy(row + i * ITEM, d.lut + packed[i] * ITEM, ITEM);
}

// Decode bytes `first` to `end` of a trellis: the values of a byte depend on the last bits of the byte before. With the bytes in the order of a
// word's bits, the lowest bits are the number of a row. Each byte writes COPIED values, and the next byte overwrites those after WIDTH.
template <int WIDTH, int COPIED, int STRIDE>
inline void decode_run(const Decoder& d, const uint8_t* packed, int64_t first, int64_t end, uint8_t* row) {
  const uint64_t mask = (uint64_t(256) << d.memory) - 1;
  int64_t i = first;
  const auto item = [&](int64_t at, uint64_t bits) { std::memcpy(row + (at - first) * WIDTH, d.lut + (bits & mask) * STRIDE, COPIED); };
  if (i == 0 && end > 0) item(i++, packed[0]);
  for (; i + 7 <= end; i += 7) {
    uint64_t word;
    std::memcpy(&word, packed + i - 1, 8);
    word = __builtin_bswap64(word);
#pragma GCC unroll 7
    for (int j = 0; j < 7; ++j) item(i + j, word >> (48 - 8 * j));
  }
  for (; i < end; ++i) item(i, uint64_t(packed[i - 1]) << 8 | packed[i]);
}

// Decode a row of a trellis. The last bytes are written exactly, because another row follows.
template <int WIDTH>
inline void decode_trellis(const Decoder& d, const uint8_t* packed, uint8_t* row) {
  constexpr int kStride = lut_stride(WIDTH), kNarrow = WIDTH - 1, kExact = (kStride + kNarrow - 1) / kNarrow - 1;
  if (kStride == WIDTH && d.wide == d.packed_bytes) return decode_run<WIDTH, WIDTH, kStride>(d, packed, 0, d.packed_bytes, row);
  const int64_t loose = d.packed_bytes > kExact ? d.packed_bytes - kExact : 0, wide = d.wide < loose ? d.wide : loose;
  decode_run<WIDTH, kStride, kStride>(d, packed, 0, wide, row);
  decode_run<kNarrow, kStride, kStride>(d, packed, wide, loose, row + wide * WIDTH);
  row += wide * WIDTH + (loose - wide) * kNarrow;
  for (int64_t i = loose; i < d.packed_bytes; ++i) {
    if (i < d.wide) decode_run<WIDTH, WIDTH, kStride>(d, packed, i, i + 1, row), row += WIDTH;
    else decode_run<kNarrow, kNarrow, kStride>(d, packed, i, i + 1, row), row += kNarrow;
  }
}

// Call each(decode_row), where decode_row(packed, row) decodes one row.
template <class V, class Each>
inline void with_row_decoder(const Decoder& decoder, const Each& each) {
  const Decoder d = decoder;  // a local copy, so that the compiler knows that storing bytes does not change it
  const auto whole = [&](auto item) { each([&](const uint8_t* from, uint8_t* to) { decode_bytes<decltype(item)::value>(d, from, to); }); };
  const auto trellis = [&](auto width) { each([&](const uint8_t* from, uint8_t* to) { decode_trellis<decltype(width)::value>(d, from, to); }); };
  switch (d.width) {
    case 0: break;
    case 2: return trellis(Count<2>{});
    case 3: return trellis(Count<3>{});
    case 4: return trellis(Count<4>{});
    case 5: return trellis(Count<5>{});
    case 6: return trellis(Count<6>{});
    case 7: return trellis(Count<7>{});
    default: return trellis(Count<8>{});
  }
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

// Decode rows and prefetch the next rows, one row at a time, because the first-level cache has few outstanding requests.
template <class V>
void decode(const Decoder& decoder, const uint8_t* packed, int64_t count, uint8_t* rows, const uint8_t* next, int64_t next_count) {
  const int64_t packed_bytes = decoder.packed_bytes, stride = decoder.stride;
  const uint8_t* end = next + next_count * packed_bytes;
  with_row_decoder<V>(decoder, [&](const auto& decode_row) {
    for (int64_t i = 0; i < count; ++i, packed += packed_bytes, rows += stride) {
      for (int64_t line = 0; line < packed_bytes; line += 64, next += 64)
        if (next < end) __builtin_prefetch(next, 0, 2);
      decode_row(packed, rows);
    }
    for (; next < end; next += 64) __builtin_prefetch(next);
  });
}
