// Products of 8-bit rows with a query and nothing else, as an upper bound of the speed; a part of loops.h.

template <class V>
inline void bare_rows(const RowsTask& task, int64_t begin, int64_t end) {
  over_lanes<V>(task.query->lanes, [&](auto registers, auto lanes, int64_t lane) {
    using W = decltype(registers);
    constexpr int kCount = decltype(lanes)::value;
    over_rows<W, kCount>(begin, end, [&](auto rows, int64_t row) {
      typename W::I32 sums[decltype(rows)::value][kCount / W::kLanes];
      multiply_bytes<W, kCount>(task.rows + row * task.stride, task.stride, task.quads, *task.query, lane, sums);
#pragma GCC unroll 16
      for (int v = 0; v < kCount / W::kLanes; ++v) {
        auto best = W::load(task.query->best + lane + v * W::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < decltype(rows)::value; ++r) best = W::max(best, W::to_float(sums[r][v]));
        W::store(task.query->best + lane + v * W::kLanes, best);
      }
    });
  });
}

template <class V>
void row_maxima(const RowsTask& task, int64_t begin, int64_t end) {
  V::begin();
  for (int64_t block = begin; block < end; block += kRows) {
    if constexpr (V::kMatrix) V::bare_rows(task, block, at_most_a_block(end - block));
    else bare_rows<V>(task, block, block + at_most_a_block(end - block));
  }
  V::end();
}
