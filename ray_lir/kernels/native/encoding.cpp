// Layers of a transformer with products of bytes, for encoding on a CPU.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "sets.h"

namespace ray_lir {
namespace {

// The weights of a linear layer in bytes: each output has a scale of its own.
class ByteWeights {
 public:
  ByteWeights(Matrix weights, Floats bias)
      : inputs_(weights.shape(1)), outputs_(weights.shape(0)), bytes_(inputs_ * outputs_), scales_(outputs_), totals_(outputs_), bias_(outputs_) {
    require(inputs_ > 0 && inputs_ % kGroup == 0 && outputs_ > 0 && outputs_ % kGroup == 0, "widths that are multiples of 16");
    require(int64_t(bias.shape(0)) == outputs_, "one bias an output");
    for (int64_t n = 0; n < outputs_; ++n) {
      const float* row = weights.data() + n * inputs_;
      float largest = 0;
      for (int64_t k = 0; k < inputs_; ++k) largest = std::isfinite(row[k]) ? std::max(largest, std::fabs(row[k])) : NAN;
      const float scale = largest / kLargestWeight, factor = largest > 0 ? kLargestWeight / largest : 0;
      int32_t total = 0;
      for (int64_t k = 0; k < inputs_; ++k) {
        const int8_t byte = int8_t(std::nearbyint(row[k] * factor));
        bytes_.get()[n / kGroup * kGroup * inputs_ + k / 4 * 4 * kGroup + n % kGroup * 4 + k % 4] = byte;
        total += byte;
      }
      scales_.get()[n] = scale;
      totals_.get()[n] = float(total) * scale;
      bias_.get()[n] = bias.data()[n];
    }
  }

  QuantizedLinear get() const { return {bytes_.get(), scales_.get(), totals_.get(), bias_.get(), inputs_, outputs_}; }

 private:
  int64_t inputs_, outputs_;
  Aligned<int8_t> bytes_;
  Aligned<float> scales_, totals_, bias_;
};

// Memory for the rows of kTokensTogether tokens as bytes.
class RowMemory {
 public:
  explicit RowMemory(int64_t width) : bytes_(kTokensTogether * width, false) {}
  QuantizedRows get() { return {bytes_.get(), lows_, steps_}; }

 private:
  Aligned<uint8_t> bytes_;
  float lows_[kTokensTogether], steps_[kTokensTogether];
};

LayerNorm norm_of(Floats scale, Floats shift, float epsilon, int64_t width) {
  require(int64_t(scale.shape(0)) == width && int64_t(shift.shape(0)) == width, "a norm of the layer's width");
  return {scale.data(), shift.data(), epsilon};
}

FloatResult quantized_linear(const std::string& name, Matrix rows, const ByteWeights& weights) {
  const Isa& isa = isa_named(name);
  const QuantizedLinear linear = weights.get();
  const int64_t count = rows.shape(0);
  require(int64_t(rows.shape(1)) == linear.inputs, "rows of the layer's inputs");
  float* products;
  FloatResult result = array_of<float>({size_t(count), size_t(linear.outputs)}, &products, false);
  nb::gil_scoped_release release;
  RowMemory memory(linear.inputs);
  for (int64_t first = 0; first < count; first += kTokensTogether)
    isa.quantized_linear(rows.data() + first * linear.inputs, std::min(kTokensTogether, count - first), linear, memory.get(),
                         products + first * linear.outputs);
  return result;
}

FloatResult encoder_layer(const std::string& name, Matrix attended, Matrix hidden, const ByteWeights& output, Floats scale, Floats shift, float epsilon,
                        const ByteWeights& widen, const ByteWeights& narrow, Floats last_scale, Floats last_shift, float last_epsilon) {
  const Isa& isa = isa_named(name);
  EncoderLayerTask task = {attended.data(), hidden.data(), output.get(), widen.get(), narrow.get(), {}, {}, nullptr};
  const int64_t count = hidden.shape(0), width = task.output.outputs, wide = task.widen.outputs;
  require(int64_t(attended.shape(0)) == count && int64_t(attended.shape(1)) == task.output.inputs, "the result of attention for each token");
  require(int64_t(hidden.shape(1)) == width && task.output.inputs == width && task.widen.inputs == width && task.narrow.inputs == wide &&
          task.narrow.outputs == width, "products that follow each other");
  task.norm = norm_of(scale, shift, epsilon, width);
  task.last_norm = norm_of(last_scale, last_shift, last_epsilon, width);
  FloatResult results = array_of<float>({size_t(count), size_t(width)}, &task.results, false);
  nb::gil_scoped_release release;
  RowMemory rows(std::max(width, wide));
  Aligned<float> narrow_memory(kTokensTogether * width, false), wide_memory(kTokensTogether * wide, false);
  const EncoderScratch scratch = {rows.get(), narrow_memory.get(), wide_memory.get()};
  for (int64_t first = 0; first < count; first += kTokensTogether)
    isa.encoder_layer(task, first, std::min(kTokensTogether, count - first), scratch);
  return results;
}

}  // namespace

void add_encoding(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<ByteWeights>(m, "ByteWeights").def(nb::init<Matrix, Floats>(), "weights"_a, "bias"_a);
  m.def("quantized_linear", &quantized_linear, "isa"_a, "rows"_a, "weights"_a);
  m.def("encoder_layer", &encoder_layer, "isa"_a, "attended"_a, "hidden"_a, "output"_a, "scale"_a, "shift"_a, "epsilon"_a, "widen"_a, "narrow"_a,
        "last_scale"_a, "last_shift"_a, "last_epsilon"_a);
}

}  // namespace ray_lir
