// MaxSim from codes and residuals; a part of loops.h.

// Compute MaxSim from codes and residuals. A token is decoded once for all queries.
template <class V, Keep KEEP>
void maxsim_of(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  for (int64_t q = 0; q < task.num_queries; ++q) fill(task.scores + q * task.count + begin, end - begin, -INFINITY);
  over_blocks<V, KEEP>(task.shard, task.decoder, task.queries, task.num_queries, task.block_rows, task.documents, begin, end, rows, [&](const Block& block) {
    for (int64_t q = 0; q < task.num_queries; ++q) {
      const PackedQuery& query = task.queries[q];
      if (KEEP == kWeighted)
        for (int64_t lane = 0; lane < query.lanes; ++lane) query.best[lane] *= query.factors[lane];
      task.scores[q * task.count + block.place] = weighted_sum<V>(query.best, query.weights, query.lanes);
    }
  });
}

template <class V>
void residual_maxsim(const ResidualTask& task, int64_t begin, int64_t end, uint8_t* rows) {
  task.shard.weights ? maxsim_of<V, kWeighted>(task, begin, end, rows) : maxsim_of<V, kBest>(task, begin, end, rows);
}
