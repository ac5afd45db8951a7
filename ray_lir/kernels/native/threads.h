// Loops spread over threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace ray_lir {

// Runs work(mine, begin, end) over 0 to count in pieces that threads take one after another; each thread makes what is its own first.
template <class Make, class Work>
void spread_with(int64_t count, int64_t piece, int threads, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    auto mine = make();
    for (int64_t begin; (begin = next.fetch_add(piece)) < count;) work(mine, begin, std::min(count, begin + piece));
  };
  const int64_t useful = std::min<int64_t>(threads, (count + piece - 1) / piece);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < useful; ++i) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// The same where nothing is a thread's own.
template <class Work>
void spread(int64_t count, int64_t piece, int threads, const Work& work) {
  spread_with(count, piece, threads, [] { return 0; }, [&](int, int64_t begin, int64_t end) { work(begin, end); });
}

}  // namespace ray_lir
