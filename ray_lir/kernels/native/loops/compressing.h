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

// Find, for every byte with WIDTH dimensions, the best state before it. Then find the best path to each value of a byte's last 4 bits: the value of
// the path, and its byte. These bits decide the state, because a trellis remembers at most kTrellisMemory bits.
template <class V, int WIDTH>
inline void best_states(const CompressTask& task, const float* residual, float unit, const float* minus_halves, const float* states, uint8_t* before,
                        float* largest, uint8_t* bytes) {
  constexpr int kParts = kRowsTogether / V::kLanes;
  const int num_states = 1 << task.decoder.memory;
  typename V::F32 values[WIDTH];
  for (int j = 0; j < WIDTH; ++j) values[j] = V::all(residual[j] / unit);
  typename V::F32 best[kParts], first[kParts];
  for (int part = 0; part < kParts; ++part) best[part] = V::all(4 * kNever), first[part] = V::all(0);
  for (int k = 0; k < 256; k += kRowsTogether)
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int lane = part * V::kLanes;
      const float* columns = task.columns + k * task.decoder.width + lane;
      auto top = V::all(4 * kNever), from = V::all(0);
      for (int state = 0; state < num_states; ++state, columns += 256 * task.decoder.width) {
        auto value = V::add(V::all(states[state]), V::load(minus_halves + 256 * state + k + lane));
#pragma GCC unroll 8
        for (int j = 0; j < WIDTH; ++j) value = V::add(value, V::mul(values[j], V::load(columns + j * kRowsTogether)));
        V::keep_larger(top, from, value, V::all(float(state)));
      }
      V::store_bytes(before + k + lane, from);
      V::keep_larger(best[part], first[part], top, V::all(float(k)));
    }
  for (int part = 0; part < kParts; ++part) {
    V::store(largest + part * V::kLanes, best[part]);
    V::store_bytes(bytes + part * V::kLanes, first[part]);
  }
  for (int j = 0; j < kRowsTogether; ++j) bytes[j] = uint8_t(bytes[j] + j);
}

// Find the bytes with the values nearest to the residual over `unit`, by the Viterbi algorithm (docs/algorithms.md#22-residual-codec). The
// state before a byte is the last bits of the byte before. Ties go to the lowest state, then to the lowest byte.
template <class V, int WIDTH>
inline void nearest_bytes(const CompressTask& task, float unit, const float* residual, uint8_t* packed, float* decoded) {
  const Decoder& decoder = task.decoder;
  const int num_states = 1 << decoder.memory, num_bytes = int(decoder.packed_bytes), step = 256 + num_states;
  float states[1 << kTrellisMemory];
  std::fill(states, states + num_states, kNever);
  states[0] = 0;
  for (int b = 0; b < num_bytes; ++b) {
    float largest[kRowsTogether];
    uint8_t bytes[kRowsTogether];
    uint8_t* path = task.paths + b * step;
    if (b < decoder.wide) {
      best_states<V, WIDTH>(task, residual, unit, task.minus_halves, states, path, largest, bytes);
      residual += WIDTH;
    } else {
      best_states<V, WIDTH - 1>(task, residual, unit, task.minus_halves + (256 << decoder.memory), states, path, largest, bytes);
      residual += WIDTH - 1;
    }
    for (int state = 0; state < num_states; ++state) {
      int at = state;
      for (int j = state + num_states; j < kRowsTogether; j += num_states)
        if (largest[j] > largest[at] || (largest[j] == largest[at] && bytes[j] < bytes[at])) at = j;
      states[state] = largest[at];
      path[256 + state] = bytes[at];
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
template <class V>
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
    case 2: nearest_bytes<V, 2>(task, unit, residual, packed, decoded); break;
    case 3: nearest_bytes<V, 3>(task, unit, residual, packed, decoded); break;
    case 4: nearest_bytes<V, 4>(task, unit, residual, packed, decoded); break;
    case 5: nearest_bytes<V, 5>(task, unit, residual, packed, decoded); break;
    case 6: nearest_bytes<V, 6>(task, unit, residual, packed, decoded); break;
    case 7: nearest_bytes<V, 7>(task, unit, residual, packed, decoded); break;
    default: nearest_bytes<V, 8>(task, unit, residual, packed, decoded);
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
  for (int64_t i = begin; i < end; ++i) compress_one<V>(task, i);
}
