// Arrays of the arguments and results of functions: types, checks, and aligned memory.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "isa.h"

namespace nb = nanobind;

namespace ray_lir {

template <class T, int DIMS>
using Array = nb::ndarray<const T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
using Floats = Array<float, 1>;
using Matrix = Array<float, 2>;
using Numbers = Array<int64_t, 1>;
using Scores = Array<Score, 2>;
using Codes = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatResult = nb::ndarray<nb::numpy, float>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline int64_t lanes_of(int64_t num_tokens) { return round_up(std::max<int64_t>(num_tokens, 1), kStep); }

// Memory that is aligned for vector registers. It is filled with zeros unless the caller will write all of it.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count, bool zeros = true)
      : data_(static_cast<T*>(std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * sizeof(T), 64)))) {
    if (!data_) throw std::bad_alloc();
    if (zeros) std::memset(static_cast<void*>(data_.get()), 0, count * sizeof(T));
  }
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
};

template <class T>
nb::ndarray<nb::numpy, T> array_of(std::vector<size_t> shape, T** data, bool zeros = true) {
  size_t size = 1;
  for (size_t n : shape) size *= n;
  auto* memory = new Aligned<T>(int64_t(size), zeros);
  *data = memory->get();
  nb::capsule owner(memory, [](void* p) noexcept { delete static_cast<Aligned<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(*data, shape.size(), shape.data(), owner);
}

}  // namespace ray_lir
