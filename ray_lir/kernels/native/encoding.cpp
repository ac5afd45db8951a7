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

// The weights of a linear layer in bytes, after mixing. Each output has a scale.
class ByteWeights {
 public:
  ByteWeights(Matrix weights, Floats bias)
      : inputs_(weights.shape(1)), outputs_(weights.shape(0)), bytes_(inputs_ * outputs_), scales_(outputs_), totals_(outputs_), bias_(outputs_),
        offsets_(outputs_) {
    require(inputs_ > 0 && inputs_ % kGroup == 0 && outputs_ > 0 && outputs_ % kGroup == 0, "widths that are multiples of 16");
    require(int64_t(bias.shape(0)) == outputs_, "one bias an output");
    std::copy_n(bias.data(), outputs_, bias_.get());
    Aligned<float> mixed(inputs_, false);
    for (int64_t n = 0; n < outputs_; ++n) {
      portable_isa()->mix(weights.data() + n * inputs_, inputs_, mixed.get());
      for (int64_t k = 0; k < inputs_; ++k) mixed.get()[k] *= 1.0f / float(mixing_of(inputs_).power);
      quantize(mixed.get(), n);
    }
  }

  QuantizedLinear get() const { return {bytes_.get(), scales_.get(), totals_.get(), offsets_.get(), bias_.get(), inputs_, outputs_}; }

 private:
  // Store the bytes of output n, and their scale and sum.
  void quantize(const float* row, int64_t n) {
    const float scale = scale_of(row), factor = scale > 0 ? 1 / scale : 0;
    int32_t total = 0;
    for (int64_t k = 0; k < inputs_; ++k) {
      const int8_t byte = int8_t(std::nearbyint(row[k] * factor));
      bytes_.get()[n / kGroup * kGroup * inputs_ + k / 4 * 4 * kGroup + n % kGroup * 4 + k % 4] = byte;
      total += byte;
    }
    scales_.get()[n] = scale, totals_.get()[n] = float(total) * scale, offsets_.get()[n] = 128 * total;
  }

  // Return the smallest scale whose bytes fit: each by itself, and those of one sign among the 4 that AVX2 adds in 16 bits. Rounding adds up to 2 to
  // a sum of 4.
  float scale_of(const float* row) const {
    float largest = 0, sum = 0;
    for (int64_t k = 0; k < inputs_; ++k) largest = std::isfinite(row[k]) ? std::max(largest, std::fabs(row[k])) : NAN;
    for (int64_t k = 0; k < inputs_; k += k % 8 ? 6 : 2)
      for (const float sign : {1.0f, -1.0f}) {
        const auto part = [&](int64_t i) { return std::max(sign * row[k + i], 0.0f); };
        sum = std::max(sum, (part(0) + part(1)) + (part(4) + part(5)));
      }
    return std::isnan(largest) ? NAN : std::max(largest / kLargestWeight, sum / (kLargestFour - 2));
  }

  int64_t inputs_, outputs_;
  Aligned<int8_t> bytes_;
  Aligned<float> scales_, totals_, bias_;
  Aligned<int32_t> offsets_;
};

// Memory for the rows of kTokensTogether tokens as bytes.
class RowMemory {
 public:
  explicit RowMemory(int64_t width) : bytes_(kTokensTogether * width, false), mixed_(width, false) {}
  QuantizedRows get() { return {bytes_.get(), lows_, steps_, mixed_.get()}; }

 private:
  Aligned<uint8_t> bytes_;
  Aligned<float> mixed_;
  float lows_[kTokensTogether], steps_[kTokensTogether];
};

// Scale and shift of a norm.
class NormWeights {
 public:
  NormWeights(Floats scale, Floats shift, float epsilon, int64_t width) : scale_(width), shift_(width), epsilon_(epsilon) {
    require(int64_t(scale.shape(0)) == width && int64_t(shift.shape(0)) == width, "a norm of the layer's width");
    std::copy_n(scale.data(), width, scale_.get());
    std::copy_n(shift.data(), width, shift_.get());
  }

  LayerNorm get() const { return {scale_.get(), shift_.get(), epsilon_}; }

 private:
  Aligned<float> scale_, shift_;
  float epsilon_;
};

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

// One layer of a transformer. Python keeps the weights alive as long as the layer.
class ByteLayer {
 public:
  ByteLayer(const ByteWeights& project, const ByteWeights& output, Floats scale, Floats shift, float epsilon, const ByteWeights& widen,
            const ByteWeights& narrow, Floats last_scale, Floats last_shift, float last_epsilon)
      : norm_(scale, shift, epsilon, output.get().outputs),
        last_norm_(last_scale, last_shift, last_epsilon, output.get().outputs),
        layer_{project.get(), output.get(), widen.get(), narrow.get(), norm_.get(), last_norm_.get()} {
    const int64_t width = layer_.output.outputs;
    require(layer_.project.inputs == width && layer_.output.inputs == width && layer_.widen.inputs == width && layer_.narrow.outputs == width &&
                layer_.narrow.inputs == layer_.widen.outputs, "products that follow each other");
  }

  const EncoderLayer& get() const { return layer_; }

 private:
  NormWeights norm_, last_norm_;
  EncoderLayer layer_;
};

// The texts whose tokens pass through the layers together: as many as follow each other with at most kGroupTokens tokens, or one.
constexpr int64_t kGroupTokens = 256;

FloatResult encode_layers(const std::string& name, const std::vector<const ByteLayer*>& layers, Matrix hidden, Numbers lengths, Numbers attended,
                          int64_t heads, int64_t dim, std::optional<Matrix> biases) {
  const Isa& isa = isa_named(name);
  require(!layers.empty() && heads > 0 && dim > 0, "layers with heads");
  std::vector<EncoderLayer> each;
  for (const ByteLayer* layer : layers) each.push_back(layer->get());
  EncoderTask task = {};
  task.layers = each.data(), task.num_layers = int64_t(each.size());
  task.heads = heads, task.dim = dim, task.padded = round_up(dim, 2 * kGroup);
  task.word_limit = std::floor(std::sqrt(float(INT32_MAX - 128) / float(task.padded)));
  task.logit_scale = 1.44269504f / (std::sqrt(float(dim)) * task.word_limit);
  const int64_t width = heads * dim, count = hidden.shape(0), size = heads * task.padded, num_texts = lengths.shape(0);
  require(int64_t(hidden.shape(1)) == width && int64_t(attended.shape(0)) == num_texts, "a row a token, and attended tokens a text");
  int64_t widest = 0, most_inputs = 0, total = 0, longest = 0, most_keys = 0, most_tokens = 0, most_padded = 0;
  for (const EncoderLayer& layer : each) {
    require(layer.output.outputs == width && layer.project.outputs == 3 * size, "layers of one width");
    widest = std::max({widest, layer.project.outputs, layer.widen.outputs}), most_inputs = std::max({most_inputs, width, layer.narrow.inputs});
  }
  std::vector<EncoderText> texts(num_texts);
  std::vector<int64_t> ends;  // of the groups of texts
  int64_t tokens = 0, keys = 0;
  for (int64_t i = 0; i < num_texts; ++i) {
    const int64_t length = lengths.data()[i], own = attended.data()[i], padded = padded_keys_of(own);
    require(own > 0 && own <= length, "each text attends to its first token");
    if (tokens && tokens + length > kGroupTokens) ends.push_back(i), tokens = keys = 0;
    texts[i] = {tokens, length, own, keys};
    total += length, tokens += length, keys += padded, longest = std::max(longest, length);
    most_tokens = std::max(most_tokens, tokens), most_keys = std::max(most_keys, keys), most_padded = std::max(most_padded, padded);
  }
  require(total == count, "the tokens of all texts");
  if (num_texts) ends.push_back(num_texts);
  if (biases) {
    require(int64_t(biases->shape(0)) == heads && int64_t(biases->shape(1)) >= 2 * longest + 2 * kGroup, "a bias for each distance");
    task.biases = biases->data(), task.bias_stride = biases->shape(1), task.reach = longest;
  }
  float* results;
  FloatResult result = array_of<float>({size_t(count), size_t(width)}, &results, false);
  nb::gil_scoped_release release;
  std::copy_n(hidden.data(), count * width, results);
  RowMemory rows(most_inputs);
  Aligned<float> narrow(kTokensTogether * width, false), wide(kTokensTogether * widest, false);
  Aligned<float> query_scales(most_tokens), key_scales(most_keys), value_scales(most_keys), logits(kQueriesTogether * most_padded);
  Aligned<int32_t> queries(most_tokens * size / 2), key_words(most_keys * size / 2), value_words(most_keys * size / 2);
  Aligned<int32_t> shares(kQueriesTogether * most_padded / 2);
  const EncoderScratch scratch = {rows.get(), narrow.get(), wide.get(), queries.get(), key_words.get(), value_words.get(),
                                  query_scales.get(), key_scales.get(), value_scales.get(), logits.get(), shares.get()};
  int64_t first = 0;
  task.hidden = results;
  for (int64_t end : ends) {
    task.texts = texts.data() + first, task.num_texts = end - first;
    task.num_tokens = texts[end - 1].first + texts[end - 1].length;
    isa.encode_layers(task, scratch);
    task.hidden += task.num_tokens * width, first = end;
  }
  return result;
}

}  // namespace

void add_encoding(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<ByteWeights>(m, "ByteWeights").def(nb::init<Matrix, Floats>(), "weights"_a, "bias"_a);
  m.def("quantized_linear", &quantized_linear, "isa"_a, "rows"_a, "weights"_a);
  nb::class_<ByteLayer>(m, "ByteLayer")
      .def(nb::init<const ByteWeights&, const ByteWeights&, Floats, Floats, float, const ByteWeights&, const ByteWeights&, Floats, Floats, float>(),
           "project"_a, "output"_a, "scale"_a, "shift"_a, "epsilon"_a, "widen"_a, "narrow"_a, "last_scale"_a, "last_shift"_a, "last_epsilon"_a,
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>());
  m.def("encode_layers", &encode_layers, "isa"_a, "layers"_a, "hidden"_a, "lengths"_a, "attended"_a, "heads"_a, "dim"_a, "biases"_a.none());
}

}  // namespace ray_lir
