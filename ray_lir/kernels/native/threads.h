// Loops that are divided among threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace ray_lir {

// Call work(state, begin, end) for blocks of 0 to count; each thread takes the next free block. make() creates the state of a thread.
template <class Make, class Work>
void spread_with(int64_t count, int64_t block, int threads, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    auto state = make();
    for (int64_t begin; (begin = next.fetch_add(block)) < count;) work(state, begin, std::min(count, begin + block));
  };
  const int64_t useful = std::min<int64_t>(threads, (count + block - 1) / block);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < useful; ++i) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// The same without a state for each thread.
template <class Work>
void spread(int64_t count, int64_t block, int threads, const Work& work) {
  spread_with(count, block, threads, [] { return 0; }, [&](int, int64_t begin, int64_t end) { work(begin, end); });
}

}  // namespace ray_lir
