// Rotation of vectors, and compression to residuals.
#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "queries.h"
#include "sets.h"
#include "threads.h"
#include "vectors.h"

namespace ray_lir {
namespace {

nb::tuple compress(const std::string& name, Rows vectors, Numbers codes, Matrix centroids, Floats cutoffs, Weights buckets, bool token_scale,
                   int64_t packed_bytes, bool from_nearest, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const Levels levels(buckets);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(codes.shape(0)) == count && int64_t(centroids.shape(1)) == dim, "one code a vector, and centroids of its dimensions");
  const bool trellis = buckets.ndim() == 2;
  const Decoder decoder = decoder_of(levels, dim, packed_bytes);
  require(int64_t(cutoffs.shape(0)) == (trellis ? 0 : (1 << levels.nbits) - 1) && dim * levels.nbits % 8 == 0,
          "cutoffs between the buckets, in whole bytes");
  require(!trellis || levels.memory <= kTrellisMemory, "a trellis with too many states");
  const int64_t num_rows = int64_t(buckets.shape(0)), width = levels.width;
  std::vector<float> columns(num_rows * width), minus_halves(2 * num_rows);
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t j = 0; j < width; ++j) {
      const float value = buckets.data()[row * width + j];
      columns[row / kRowsTogether * kRowsTogether * width + j * kRowsTogether + row % kRowsTogether] = value;
      minus_halves[row] -= value * value / 2;
      if (j < width - 1) minus_halves[num_rows + row] -= value * value / 2;
    }
  for (int64_t i = 0; i < count; ++i) require(codes.data()[i] >= 0 && codes.data()[i] < int64_t(centroids.shape(0)), "a code without a centroid");
  uint8_t* packed;
  float *scales, *norms;
  auto packed_array = array_of<uint8_t>({size_t(count), size_t(packed_bytes)}, &packed);
  auto scale_array = array_of<float>({size_t(count), 2}, &scales), norm_array = array_of<float>({size_t(count)}, &norms);
  {
    nb::gil_scoped_release release;
    spread(count, 1024, threads, [&](int64_t begin, int64_t end) {
      std::vector<float> memory, residual(dim), decoded(dim);
      std::vector<int32_t> numbers(dim);
      std::vector<uint8_t> paths(trellis ? packed_bytes * (256 + (1 << levels.memory)) : 0);
      CompressTask task = {as_floats(isa, vectors, begin, end - begin, memory), centroids.data(), codes.data() + begin, dim, cutoffs.data(),
                           buckets.data(), trellis ? columns.data() : nullptr, minus_halves.data(), decoder, from_nearest, token_scale, end - begin,
                           packed + begin * packed_bytes, scales + 2 * begin, norms + begin, residual.data(), decoded.data(), numbers.data(),
                           paths.data()};
      isa.compress(task, 0, end - begin);
    });
  }
  return nb::make_tuple(packed_array, scale_array, norm_array);
}

FloatResult rotate(const std::string& name, Rows vectors, Matrix rotation, int threads) {
  const Isa& isa = isa_named(name);
  check_rows(vectors);
  const int64_t count = vectors.shape(0), dim = vectors.shape(1);
  require(int64_t(rotation.shape(0)) == dim && int64_t(rotation.shape(1)) == dim, "a rotation of other dimensions");
  float* turned;
  FloatResult result = array_of<float>({size_t(count), size_t(dim)}, &turned);
  nb::gil_scoped_release release;
  spread(count, 1024, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> memory;
    isa.rotate(as_floats(isa, vectors, begin, end - begin, memory), end - begin, dim, rotation.data(), turned + begin * dim);
  });
  return result;
}

}  // namespace

void add_compressing(nb::module_& m) {
  using namespace nb::literals;
  m.def("compress", &compress, "isa"_a, "vectors"_a, "codes"_a, "centroids"_a, "cutoffs"_a, "buckets"_a, "token_scale"_a,
        "packed_bytes"_a, "from_nearest"_a, "threads"_a);
  m.def("rotate", &rotate, "isa"_a, "vectors"_a, "rotation"_a, "threads"_a);
}

}  // namespace ray_lir
