// Selection of the k best scores.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"

namespace ray_lir {
namespace {

// Return the k best documents, best first; ties go to the lower document number. Documents that score minus infinity are left out.
nb::tuple top_k(Floats scores, Numbers documents, int64_t k) {
  require(scores.shape(0) == documents.shape(0) && k >= 0, "one score a document");
  std::vector<std::pair<float, int64_t>> best;
  const auto better = [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); };
  {
    nb::gil_scoped_release release;
    const int64_t count = scores.shape(0);
    // Scores below the k-th best so far are skipped. The list is cut to k entries whenever it is about twice as long.
    float threshold = -INFINITY;
    for (int64_t i = 0; i < count; ++i) {
      const float score = scores.data()[i];
      if (!(score > -INFINITY) || score < threshold) continue;
      best.emplace_back(score, documents.data()[i]);
      if (int64_t(best.size()) >= 2 * k + 64) {
        std::nth_element(best.begin(), best.begin() + k, best.end(), better);
        best.resize(k);
        if (k) threshold = std::min_element(best.begin(), best.end(), [](const auto& a, const auto& b) { return a.first < b.first; })->first;
      }
    }
    std::sort(best.begin(), best.end(), better);
    if (int64_t(best.size()) > k) best.resize(k);
  }
  float* values;
  int64_t* numbers;
  auto value_array = array_of<float>({best.size()}, &values);
  auto number_array = array_of<int64_t>({best.size()}, &numbers);
  for (size_t i = 0; i < best.size(); ++i) values[i] = best[i].first, numbers[i] = best[i].second;
  return nb::make_tuple(value_array, number_array);
}

}  // namespace

void add_top_k(nb::module_& m) {
  using namespace nb::literals;
  m.def("top_k", &top_k, "scores"_a, "documents"_a, "k"_a);
}

}  // namespace ray_lir
