// Nearest centroids of vectors, among all centroids or among those of the nearest cells.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "sets.h"
#include "threads.h"
#include "vectors.h"

namespace ray_lir {
namespace {

// Centroids as rows of words with one common scale, so that products stay comparable, and the biases that turn products into distances.
struct WordRows {
  int64_t stride;
  Aligned<int16_t> words;
  std::vector<int32_t> biases;  // -|c|^2 / 2 as a product with a vector of length one; empty if products are compared as they are
  double unit;                  // divisor that converts an integer product to a real one

  WordRows(Matrix centroids, bool euclidean) : stride(round_up(centroids.shape(1), 2)), words(centroids.shape(0) * stride) {
    const int64_t count = centroids.shape(0), dim = centroids.shape(1);
    std::vector<double> squares(count);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t d = 0; d < dim; ++d) squares[c] += double(centroids.data()[c * dim + d]) * centroids.data()[c * dim + d];
    const double longest = count ? std::sqrt(*std::max_element(squares.begin(), squares.end())) : 0;
    const double factor = (1 << kWordBits) / (longest > 0 ? longest : 1);
    unit = factor * (1 << kWordBits);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t d = 0; d < dim; ++d) words.get()[c * stride + d] = int16_t(std::lrint(centroids.data()[c * dim + d] * factor));
    if (euclidean)
      for (double square : squares) biases.push_back(int32_t(-square / 2 * unit));
  }
};

// Find the nearest row, from `first` to `last`, of up to 32 vectors.
void nearest_of(const Isa& isa, const WordRows& rows, int64_t first, int64_t last, const Columns& columns, int32_t* nearest, int32_t* products) {
  isa.word_nearest({rows.words.get() + first * rows.stride, rows.stride, last - first, columns.words.get(), columns.lanes, columns.pairs,
                    nullptr, rows.biases.empty() ? nullptr : rows.biases.data() + first, nearest, products});
}

constexpr int64_t kColumns = 2 * kGroup;

// Find the nearest centroid of each vector: the largest product or, with `euclidean`, the smallest distance from a vector of length one.
nb::tuple assign(const std::string& name, Rows vectors, Matrix centroids, bool euclidean, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(centroids.shape(1)) == dim && centroids.shape(0) > 0, "centroids of other dimensions");
  const WordRows rows(centroids, euclidean);
  int64_t* codes;
  float* nearness;
  auto code_array = array_of<int64_t>({size_t(count)}, &codes);
  auto nearness_array = array_of<float>({size_t(count)}, &nearness);
  {
    nb::gil_scoped_release release;
    spread(count, 32 * kColumns, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> memory;
      int32_t nearest[kColumns], products[kColumns];
      for (int64_t first = begin; first < end; first += kColumns) {
        const int64_t here = std::min(kColumns, end - first);
        const Columns columns(isa, as_floats(isa, vectors, first, here, memory), here, dim);
        nearest_of(isa, rows, 0, centroids.shape(0), columns, nearest, products);
        for (int64_t i = 0; i < here; ++i) {
          codes[first + i] = nearest[i];
          nearness[first + i] = float(products[i] / rows.unit);
        }
      }
    });
  }
  return nb::make_tuple(code_array, nearness_array);
}

// Find the `nprobe` cells with the nearest centres to each vector, scaled to length one; nearest first.
nb::ndarray<nb::numpy, int64_t> nearest_cells(const std::string& name, Rows vectors, Matrix cells, int64_t nprobe, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1), num_cells = cells.shape(0);
  require(int64_t(cells.shape(1)) == dim, "cells of the vectors' dimensions");
  require(1 <= nprobe && nprobe <= num_cells, "nprobe is between 1 and the number of cells");
  const WordRows rows(cells, true);
  int64_t* probes;
  auto result = array_of<int64_t>({size_t(count), size_t(nprobe)}, &probes);
  nb::gil_scoped_release release;
  spread(count, 4096, threads, [&](int64_t begin, int64_t end) {
    const Aligned<int16_t> words = as_words(isa, vectors, begin, end - begin, rows.stride);
    std::vector<float> products(num_cells * kColumns), ones(kColumns, 1.0f), nearness(nprobe);
    Columns columns(kColumns, dim);
    for (int64_t first = begin; first < end; first += kColumns) {
      const int64_t here = std::min(kColumns, end - first);
      for (int64_t i = 0; i < here; ++i) columns.set(i, words.get() + (first - begin + i) * rows.stride);
      isa.word_products({rows.words.get(), rows.stride, num_cells, columns.words.get(), columns.lanes, columns.pairs, ones.data(), nullptr,
                         nullptr, nullptr}, products.data(), 0, num_cells);
      for (int64_t i = 0; i < here; ++i) {
        int64_t* own_probes = probes + (first + i) * nprobe;
        std::fill(nearness.begin(), nearness.end(), -INFINITY);
        for (int64_t c = 0; c < num_cells; ++c) {
          const float product = products[c * kColumns + i] + float(rows.biases[c]);
          if (product <= nearness[nprobe - 1]) continue;
          int64_t p = nprobe - 1;
          for (; p && nearness[p - 1] < product; --p) nearness[p] = nearness[p - 1], own_probes[p] = own_probes[p - 1];
          nearness[p] = product;
          own_probes[p] = c;
        }
      }
    }
  });
  return result;
}

// Find the nearest centroid of each vector, scaled to length one, in the cells that it probes; -1 if they are empty. A cell's centroids are
// consecutive, and all vectors that probe a cell are compared with them together.
nb::ndarray<nb::numpy, int64_t> assign_in_cells(const std::string& name, Rows vectors, Matrix centroids, Numbers offsets,
                                                Array<int64_t, 2> probes, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1), num_cells = int64_t(offsets.shape(0)) - 1, nprobe = probes.shape(1);
  require(int64_t(centroids.shape(1)) == dim && int64_t(probes.shape(0)) == count, "centroids of the vectors' dimensions, probes of every vector");
  require(num_cells >= 0 && offsets.data()[num_cells] == int64_t(centroids.shape(0)), "offsets of other centroids");
  for (size_t i = 0; i < probes.size(); ++i) require(probes.data()[i] >= 0 && probes.data()[i] < num_cells, "a cell does not exist");
  const WordRows rows(centroids, true);
  int64_t* codes;
  auto result = array_of<int64_t>({size_t(count)}, &codes);
  nb::gil_scoped_release release;
  spread(count, 65536, threads, [&](int64_t begin, int64_t end) {
    const int64_t here = end - begin;
    const int64_t* own_probes = probes.data() + begin * nprobe;
    const Aligned<int16_t> words = as_words(isa, vectors, begin, here, rows.stride);
    std::fill(codes + begin, codes + end, -1);
    std::vector<int32_t> best(here, INT32_MIN), members(here * nprobe);
    std::vector<int64_t> starts(num_cells + 1);
    for (int64_t i = 0; i < here * nprobe; ++i) ++starts[own_probes[i] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < here * nprobe; ++i) members[next[own_probes[i]]++] = int32_t(i / nprobe);
    int32_t nearest[kColumns], products[kColumns];
    Columns columns(kColumns, dim);
    for (int64_t cell = 0; cell < num_cells; ++cell) {
      const int64_t first = offsets.data()[cell], last = offsets.data()[cell + 1];
      if (first == last) continue;
      for (int64_t m = starts[cell]; m < starts[cell + 1]; m += kColumns) {
        const int64_t width = std::min(kColumns, starts[cell + 1] - m);
        for (int64_t j = 0; j < width; ++j) columns.set(j, words.get() + members[m + j] * rows.stride);
        nearest_of(isa, rows, first, last, columns, nearest, products);
        for (int64_t j = 0; j < width; ++j)
          if (products[j] > best[members[m + j]]) {
            best[members[m + j]] = products[j];
            codes[begin + members[m + j]] = first + nearest[j];
          }
      }
    }
  });
  return result;
}

}  // namespace

void add_clustering(nb::module_& m) {
  using namespace nb::literals;
  m.def("assign", &assign, "isa"_a, "vectors"_a, "centroids"_a, "euclidean"_a, "threads"_a);
  m.def("nearest_cells", &nearest_cells, "isa"_a, "vectors"_a, "cells"_a, "nprobe"_a, "threads"_a);
  m.def("assign_in_cells", &assign_in_cells, "isa"_a, "vectors"_a, "centroids"_a, "offsets"_a, "probes"_a, "threads"_a);
}

}  // namespace ray_lir
