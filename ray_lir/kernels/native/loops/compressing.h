// Vectors as packed residuals and scales; a part of loops.h.

// Find the bucket of each dimension of the residual over `unit`; pack the numbers, and decode them.
inline void bucket_numbers(const CompressTask& task, float unit, const float* residual, uint8_t* packed, float* decoded) {
  int32_t* __restrict buckets = task.buckets;
  std::memset(buckets, 0, task.dim * sizeof(int32_t));
  for (int c = 0; c < (1 << task.decoder.nbits) - 1; ++c) {
    const float cutoff = task.cutoffs[c] * unit;
    for (int64_t d = 0; d < task.dim; ++d) buckets[d] += residual[d] > cutoff;
  }
  const int nbits = task.decoder.nbits, per_byte = 8 / nbits;
  for (int64_t b = 0; b < task.dim / per_byte; ++b) {
    unsigned byte = 0;
    for (int j = 0; j < per_byte; ++j) byte = byte << nbits | unsigned(buckets[b * per_byte + j]);
    packed[b] = uint8_t(byte);
  }
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = task.weights[buckets[d]];
}

constexpr float kNever = -1e30f;

// Find, for every byte with WIDTH dimensions, the best state before it and the value of the path through both.
template <int WIDTH>
inline void best_states(const CompressTask& task, const float* residual, float unit, const float* halves, const float* states, float* best,
                        int32_t* before) {
  const int num_states = 1 << task.decoder.memory, num_rows = 256 << task.decoder.memory;
  float values[WIDTH];
  for (int j = 0; j < WIDTH; ++j) values[j] = residual[j] / unit;
  for (int state = 0; state < num_states; ++state) {
    const float* columns = task.columns + 256 * state;
    const float start = states[state];
    for (int k = 0; k < 256; ++k) {
      float value = start - halves[256 * state + k];
      for (int j = 0; j < WIDTH; ++j) value += values[j] * columns[j * num_rows + k];
      before[k] = value > best[k] ? state : before[k];
      best[k] = value > best[k] ? value : best[k];
    }
  }
}

// Find the bytes with the values nearest to the residual over `unit`, by the Viterbi algorithm (docs/algorithms.md#22-residual-codec). The
// state before a byte is the last bits of the byte before. Ties go to the lowest state, then to the lowest byte.
template <int WIDTH>
inline void nearest_bytes(const CompressTask& task, float unit, const float* residual, uint8_t* packed, float* decoded) {
  const Decoder& decoder = task.decoder;
  const int num_states = 1 << decoder.memory, num_bytes = int(decoder.packed_bytes), step = 256 + num_states;
  float states[1 << kTrellisMemory];
  std::fill(states, states + num_states, kNever);
  states[0] = 0;
  for (int b = 0; b < num_bytes; ++b) {
    float best[256];
    int32_t before[256] = {};
    std::fill(best, best + 256, 4 * kNever);
    if (b < decoder.wide) {
      best_states<WIDTH>(task, residual, unit, task.halves, states, best, before);
      residual += WIDTH;
    } else {
      best_states<WIDTH - 1>(task, residual, unit, task.halves + (256 << decoder.memory), states, best, before);
      residual += WIDTH - 1;
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
    const int64_t width = b < decoder.wide ? WIDTH : WIDTH - 1, place = b * width + (b < decoder.wide ? 0 : decoder.wide);
    std::memcpy(decoded + place, task.weights + (256 * state + packed[b]) * WIDTH, width * sizeof(float));
  }
}

// Compute buckets, packed residuals, the two scales of the decoded token, and the norm of the residual.
//
// With token_scale, the buckets are those of r / rms(r), and the scale s of the residual is |r| / |b| for bucket weights b. The decoded token
// c + s b is normalised to length one.
//
// With from_nearest, r is the residual from a c, the nearest multiple of c. The scale s makes the part of s b across c as long as r, divided by
// the root of the cosine between both, because an encoder's queries resemble the token. The multiple of c corrects the part of s b along c.
inline void compress_one(const CompressTask& task, int64_t i) {
  const float* vector = task.vectors + i * task.dim;
  const float* centroid = task.centroids + task.codes[i] * task.dim;
  float* __restrict residual = task.residual;
  float* __restrict decoded = task.decoded;
  const float squared = task.from_nearest ? dot(centroid, centroid, task.dim) : 0;
  const float multiple = squared > 0 ? dot(vector, centroid, task.dim) / squared : 1;
  for (int64_t d = 0; d < task.dim; ++d) residual[d] = vector[d] - multiple * centroid[d];
  const float norm = std::sqrt(dot(residual, residual, task.dim));
  const float unit = task.token_scale && norm > 0 ? norm / std::sqrt(float(task.dim)) : 1.0f;
  uint8_t* packed = task.packed + i * task.decoder.packed_bytes;
  switch (task.decoder.width) {
    case 0: bucket_numbers(task, unit, residual, packed, decoded); break;
    case 2: nearest_bytes<2>(task, unit, residual, packed, decoded); break;
    case 3: nearest_bytes<3>(task, unit, residual, packed, decoded); break;
    case 4: nearest_bytes<4>(task, unit, residual, packed, decoded); break;
    case 5: nearest_bytes<5>(task, unit, residual, packed, decoded); break;
    case 6: nearest_bytes<6>(task, unit, residual, packed, decoded); break;
    case 7: nearest_bytes<7>(task, unit, residual, packed, decoded); break;
    default: nearest_bytes<8>(task, unit, residual, packed, decoded);
  }
  const float along = dot(decoded, residual, task.dim), squares = dot(decoded, decoded, task.dim);
  float scale = !task.token_scale ? 1 : squares > 0 && along > 0 ? norm / std::sqrt(squares) : 0, factor = 1;
  if (squared > 0) {
    const float over = dot(centroid, decoded, task.dim) / squared, across = std::sqrt(std::max(squares - over * over * squared, 1e-24f));
    const float cosine = norm > 0 ? along / (norm * across) : 0;
    scale = cosine > 0 ? norm / across / std::sqrt(std::max(cosine, 0.25f)) : 0;
    factor = multiple - scale * over;
  }
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = factor * centroid[d] + scale * decoded[d];
  const float length = std::sqrt(dot(decoded, decoded, task.dim)), inverse = 1 / (length > 1e-12f ? length : 1e-12f);
  task.scales[2 * i] = inverse * factor;
  task.scales[2 * i + 1] = inverse * scale;
  task.norms[i] = squared > 0 ? std::sqrt(norm * norm + (1 - multiple) * (1 - multiple) * squared) : norm;
}

template <class V>
void compress(const CompressTask& task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) compress_one(task, i);
}
