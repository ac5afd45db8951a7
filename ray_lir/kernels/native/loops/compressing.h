// Vectors as packed residuals and scales; a part of loops.h.

// Find the bucket of each dimension of the residual over `unit`; pack the numbers, and decode them.
inline void bucket_numbers(const CompressTask& task, float unit, const float* residual, uint8_t* packed, float* decoded) {
  int32_t* __restrict buckets = task.buckets;
  std::memset(buckets, 0, task.dim * sizeof(int32_t));
  for (int c = 0; c < (1 << task.nbits) - 1; ++c) {
    const float cutoff = task.cutoffs[c] * unit;
    for (int64_t d = 0; d < task.dim; ++d) buckets[d] += residual[d] > cutoff;
  }
  const int per_byte = 8 / task.nbits;
  for (int64_t b = 0; b < task.dim / per_byte; ++b) {
    unsigned byte = 0;
    for (int j = 0; j < per_byte; ++j) byte = byte << task.nbits | unsigned(buckets[b * per_byte + j]);
    packed[b] = uint8_t(byte);
  }
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = task.weights[buckets[d]];
}

// Find the bytes with the values nearest to the residual over `unit`, by the Viterbi algorithm (docs/algorithms.md#22-residual-codec). The
// state before a byte is the last bits of the byte before. Ties go to the lowest state, then to the lowest byte.
template <int ITEM>
inline void nearest_bytes(const CompressTask& task, float unit, const float* residual, uint8_t* packed, float* decoded) {
  constexpr float kNever = -1e30f;
  const int num_states = 1 << task.memory, num_rows = 256 << task.memory, num_bytes = int(task.dim / ITEM), step = 256 + num_states;
  float states[1 << kTrellisMemory];
  std::fill(states, states + num_states, kNever);
  states[0] = 0;
  for (int b = 0; b < num_bytes; ++b) {
    float values[ITEM], best[256];
    int32_t before[256] = {};
    for (int j = 0; j < ITEM; ++j) values[j] = residual[b * ITEM + j] / unit;
    std::fill(best, best + 256, 4 * kNever);
    for (int state = 0; state < num_states; ++state) {
      const float* columns = task.columns + 256 * state;
      const float* halves = task.halves + 256 * state;
      const float start = states[state];
      for (int k = 0; k < 256; ++k) {
        float value = start - halves[k];
        for (int j = 0; j < ITEM; ++j) value += values[j] * columns[j * num_rows + k];
        before[k] = value > best[k] ? state : before[k];
        best[k] = value > best[k] ? value : best[k];
      }
    }
    // The last 4 bits of a byte decide its state, so 16 running maxima are enough.
    float largest[16];
    int32_t bytes[16];
    for (int j = 0; j < 16; ++j) largest[j] = best[j], bytes[j] = j;
    for (int k = 16; k < 256; k += 16)
      for (int j = 0; j < 16; ++j) {
        bytes[j] = best[k + j] > largest[j] ? k + j : bytes[j];
        largest[j] = best[k + j] > largest[j] ? best[k + j] : largest[j];
      }
    uint8_t* path = task.paths + b * step;
    for (int k = 0; k < 256; ++k) path[k] = uint8_t(before[k]);
    for (int state = 0; state < num_states; ++state) {
      int at = state;
      for (int j = state + num_states; j < 16; j += num_states)
        if (largest[j] > largest[at] || (largest[j] == largest[at] && bytes[j] < bytes[at])) at = j;
      states[state] = largest[at];
      path[256 + state] = uint8_t(bytes[at]);
    }
  }
  int state = int(std::max_element(states, states + num_states) - states);
  for (int b = num_bytes - 1; b >= 0; --b) {
    const uint8_t* path = task.paths + b * step;
    packed[b] = path[256 + state];
    state = path[packed[b]];
    std::memcpy(decoded + b * ITEM, task.weights + (256 * state + packed[b]) * ITEM, ITEM * sizeof(float));
  }
}

// Compute buckets, packed residuals, the two scales of the decoded token, and the norm of the residual.
//
// With token_scale, the buckets are those of r / rms(r), and the scale s of the residual is |r| / |b| for bucket weights b. The decoded token
// c + s b is normalised to length one.
inline void compress_one(const CompressTask& task, int64_t i) {
  const float* vector = task.vectors + i * task.dim;
  const float* centroid = task.centroids + task.codes[i] * task.dim;
  float* __restrict residual = task.residual;
  float* __restrict decoded = task.decoded;
  for (int64_t d = 0; d < task.dim; ++d) residual[d] = vector[d] - centroid[d];
  const float norm = std::sqrt(dot(residual, residual, task.dim));
  const float unit = task.token_scale && norm > 0 ? norm / std::sqrt(float(task.dim)) : 1.0f;
  uint8_t* packed = task.packed + i * (task.dim * task.nbits / 8);
  if (!task.columns) bucket_numbers(task, unit, residual, packed, decoded);
  else if (task.nbits == 1) nearest_bytes<8>(task, unit, residual, packed, decoded);
  else nearest_bytes<4>(task, unit, residual, packed, decoded);
  const float along = dot(decoded, residual, task.dim), squares = dot(decoded, decoded, task.dim);
  const float scale = !task.token_scale ? 1 : squares > 0 && along > 0 ? norm / std::sqrt(squares) : 0;
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = centroid[d] + scale * decoded[d];
  const float length = std::sqrt(dot(decoded, decoded, task.dim)), inverse = 1 / (length > 1e-12f ? length : 1e-12f);
  task.scales[2 * i] = inverse;
  task.scales[2 * i + 1] = inverse * scale;
  task.norms[i] = norm;
}

template <class V>
void compress(const CompressTask& task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) compress_one(task, i);
}
