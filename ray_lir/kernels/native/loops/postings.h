// WARP's scores of postings; a part of loops.h.

// Raise a document's best score. With token weights, the best score is chosen first and then multiplied by its token's weight.
template <class V>
inline void raise_weighted(const PostingTask& task, DocumentState& state, int64_t token, int64_t document, float score) {
  const bool first = state.stamp != task.stamp;
  if (!first && !(score > state.best)) return;
  float weight;
  V::to_floats(task.shard.weights + token, 1, &weight);
  float worth = score * (weight + 1);
  if (task.floor && worth < task.imputed) worth = task.imputed;
  state.total += task.weight * (double(worth) - (first ? task.imputed : task.worths[document]));
  state.stamp = task.stamp;
  state.best = score;
  task.worths[document] = worth;
}

constexpr int64_t kPostingsAhead = 16;  // distance of the prefetch, because residuals of postings have random addresses

// WARP: score the tokens of some clusters for one query token. A document's best score is raised in place, so nothing is sorted.
template <class V>
void score_postings(const PostingTask& task, uint8_t* row) {
  const Shard& shard = task.shard;
  for (int64_t c = 0; c < task.count; ++c) {
    const int64_t end = task.posting_offsets[task.clusters[c] + 1];
    for (int64_t p = task.posting_offsets[task.clusters[c]]; p < end; ++p) {
      const int64_t token = task.postings[p];
      if (p + kPostingsAhead < end) __builtin_prefetch(shard.residuals + task.postings[p + kPostingsAhead] * task.decoder.packed_bytes);
      decode<V>(task.decoder, shard.residuals + token * task.decoder.packed_bytes, 1, row, nullptr, 0);
      const float residual = float(V::dot_row(row, task.query, task.decoder.quads * 4) + task.start) * task.slope;
      const float* pair = task.pairs ? task.pairs + 2 * task.numbers[p] : nullptr;
      float score = pair ? pair[0] * task.cluster_scores[c] + pair[1] * residual : task.cluster_scores[c] + residual * task.ratios[p];
      if (task.floor && !shard.weights && score < task.imputed) score = task.imputed;
      const int64_t document = task.documents[p];
      DocumentState& state = task.states[document];
      if (shard.weights) {
        raise_weighted<V>(task, state, token, document, score);
      } else if (state.stamp != task.stamp) {
        state.total += task.weight * (double(score) - task.imputed);
        state.stamp = task.stamp;
        state.best = score;
      } else if (score > state.best) {
        state.total += task.weight * (double(score) - state.best);
        state.best = score;
      }
    }
  }
}
