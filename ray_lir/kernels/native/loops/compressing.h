// Vectors as packed residuals and scales; a part of loops.h.

// Compute buckets, packed residuals, the two scales of the decoded token, and the norm of the residual.
//
// With token_scale, the buckets are those of r / rms(r), and the scale s of the residual is |r| / |b| for bucket weights b. The decoded token
// c + s b is normalised to length one.
inline void compress_one(const CompressTask& task, int64_t i) {
  const float* vector = task.vectors + i * task.dim;
  const float* centroid = task.centroids + task.codes[i] * task.dim;
  float* __restrict residual = task.residual;
  float* __restrict decoded = task.decoded;
  int32_t* __restrict buckets = task.buckets;
  for (int64_t d = 0; d < task.dim; ++d) residual[d] = vector[d] - centroid[d];
  const float norm = std::sqrt(dot(residual, residual, task.dim));
  const float unit = task.token_scale && norm > 0 ? norm / std::sqrt(float(task.dim)) : 1.0f;
  std::memset(buckets, 0, task.dim * sizeof(int32_t));
  for (int c = 0; c < (1 << task.nbits) - 1; ++c) {
    const float cutoff = task.cutoffs[c] * unit;
    for (int64_t d = 0; d < task.dim; ++d) buckets[d] += residual[d] > cutoff;
  }
  const int per_byte = 8 / task.nbits;
  uint8_t* packed = task.packed + i * (task.dim / per_byte);
  for (int64_t b = 0; b < task.dim / per_byte; ++b) {
    unsigned byte = 0;
    for (int j = 0; j < per_byte; ++j) byte = byte << task.nbits | unsigned(buckets[b * per_byte + j]);
    packed[b] = uint8_t(byte);
  }
  for (int64_t d = 0; d < task.dim; ++d) decoded[d] = task.weights[buckets[d]];
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
