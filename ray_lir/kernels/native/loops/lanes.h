// Loops over lanes and rows, in blocks that fit the registers or the first-level cache; a part of loops.h.

template <int LANES>
using Count = std::integral_constant<int, LANES>;

// The registers of LANES lanes. If the lanes do not fill the last register, its upper half is undefined.
template <class V, int LANES>
struct Part {
  static constexpr bool kHalf = LANES % V::kLanes != 0;
  static bool is_half(int v) { return kHalf && v == LANES / V::kLanes; }

  static auto load(const float* from, int v) {
    from += v * V::kLanes;
    if constexpr (kHalf) if (is_half(v)) return V::widen(V::Half::load(from));
    return V::load(from);
  }
  static auto load_scores(const Score* from, int v) {
    from += v * V::kLanes;
    if constexpr (kHalf) if (is_half(v)) return V::widen(V::Half::load_scores(from));
    return V::load_scores(from);
  }
  static void store(float* to, int v, typename V::F32 lanes) {
    to += v * V::kLanes;
    if constexpr (kHalf) if (is_half(v)) return V::Half::store(to, V::lower(lanes));
    V::store(to, lanes);
  }
};

// Call run(registers, count, lane) for 32 lanes at a time, then for the remaining 24, 16 or 8.
template <class V, class Run>
inline void over_lanes(int64_t lanes, const Run& run) {
  int64_t lane = 0;
  for (; lane + 32 <= lanes; lane += 32) run(V{}, Count<32>{}, lane);
  if constexpr (V::kLanes > kStep) {
    if (lane + kGroup <= lanes) run(V{}, Count<kGroup>{}, lane);
    if (lanes % kGroup) run(typename V::Half{}, Count<kStep>{}, lanes - kStep);
  } else {
    if (lanes - lane == 24) run(V{}, Count<24>{}, lane);
    if (lanes - lane == 16) run(V{}, Count<16>{}, lane);
    if (lanes - lane == 8) run(V{}, Count<8>{}, lane);
  }
}

// Call run(count, row) for as many rows at a time as have room for their sums in registers.
template <class V, int LANES, class Run>
inline void over_rows(int64_t begin, int64_t end, const Run& run) {
  constexpr int kTile = V::tile(LANES);
  int64_t row = begin;
  for (; row + kTile <= end; row += kTile) run(Count<kTile>{}, row);
  for (; row < end; ++row) run(Count<1>{}, row);
}

inline int64_t at_most_a_block(int64_t tokens) { return tokens < kRows ? tokens : kRows; }

inline void fill(float* lanes, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) lanes[i] = value;
}
