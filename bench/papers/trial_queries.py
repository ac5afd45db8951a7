"""The cost of rescoring with TRIAL against MaxSim, for a collection's queries and trained encoders, and the effect of relations.

    python -m bench.papers.trial_queries DATASET INDEX... [--queries 8] [--output bench/results/trial_queries.json]

For the first shard of each index (encoded with scorer trial): the 256 best documents of each query by MaxSim, one
thread, the minimum of several runs. Milliseconds are those of an engine's last stage; `times_maxsim` is a mean over queries. `spread` is
the standard deviation of a relation over the tokens of a document. `bound` is the largest relation minus their mean. `elsewhere`
is the fraction of query tokens that match another token than the nearest by cosine, and `far` one beyond the 8 nearest.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine
from bench.papers.trial import CANDIDATES, three_ways
from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.exact import RESCORE, ExactParams
from ray_lir.engines.plan import QueryPlan
from ray_lir.index.relation import compare
from ray_lir.index.residuals import decompress
from ray_lir.search.searcher import Searcher

BEST, NEAR = 10, 8
LOOKED_AT = 16
"""Documents of a query for which every pair is computed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.trial_queries", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("indexes", nargs="+")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("bench/results/trial_queries.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.dataset)
    texts = list(dataset.queries.values())[: options.queries]
    rows = [_on_index(url, texts, options.runs) for url in options.indexes]
    result = {"machine": machine(), "dataset": dataset.name, "queries": len(texts), "candidates": CANDIDATES, "indexes": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _on_index(url: str, texts: list[str], runs: int) -> dict[str, Any]:
    searcher = Searcher.open(url)
    contract, codec = searcher.manifest.contract, searcher.planner.codec
    encoder = Encoder.for_contract(contract, EncoderConfig(checkpoint=contract.checkpoint))
    plans = searcher.planner.plan(encoder.encode_queries(texts), BEST, ExactParams())
    measured = [_measure(plan, searcher, runs) for plan in plans]
    maxsim, everything, best = np.transpose([row[:3] for row in measured])
    spread, bound, elsewhere, far = np.mean([row[3:] for row in measured], axis=0).round(4).tolist()
    return {
        "kernels": searcher.kernels.name,
        "dim": codec.dim,
        "relation_weight": codec.scorer_data.weight,
        "query_tokens": round(float(np.mean([len(plan.scorer_terms.unmasked) for plan in plans])), 1),
        "maxsim_ms": round(float(maxsim.mean()), 2),
        "all_ms": round(float(everything.mean()), 2),
        "times_maxsim": round(float((everything / maxsim).mean()), 2),
        f"best_{BEST}_ms": round(float(best.mean()), 2),
        "spread": spread,
        "bound": bound,
        "elsewhere": elsewhere,
        "far": far,
    }


def _measure(plan: QueryPlan, searcher: Searcher, runs: int) -> list[float]:
    """Return the result of `three_ways`, and the mean of `_reaches`."""
    shard, codec, kernels = searcher.shards[0], searcher.planner.codec, searcher.kernels
    [(scores, _)] = RESCORE.run([replace(plan, scorer_terms=None)], shard, codec, kernels, [np.arange(shard.num_docs)])
    best_first = np.argsort(-scores, kind="stable")[:CANDIDATES]
    candidates = np.sort(best_first)
    RESCORE.run([plan], shard, codec, kernels, [candidates])  # computes values that are cached
    time.sleep(0.2)  # wait until BLAS threads stop spinning
    seen = np.concatenate([_reaches(plan, searcher, int(number)) for number in best_first[:LOOKED_AT]])
    return [*three_ways(plan, shard, codec, kernels, candidates, runs), *seen.mean(axis=0)]


def _reaches(plan: QueryPlan, searcher: Searcher, number: int) -> np.ndarray:
    """Return [n - 1, 4] for each query token except the first: spread, bound minus mean, `elsewhere` and `far`."""
    shard, codec, relation = searcher.shards[0], searcher.planner.codec, plan.scorer_terms
    tokens, _ = shard.tokens(np.array([number]))
    vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
    cosines, relations = compare(plan.query.vectors[relation.unmasked], relation.relation, vectors, codec.scorer_data)
    winners = (cosines + relations).argmax(axis=1, keepdims=True)
    nearer = (cosines > np.take_along_axis(cosines, winners, axis=1)).sum(axis=1)
    rows = (relations.std(axis=1), relation.relation.upper - relations.mean(axis=1), nearer > 0, nearer >= NEAR)
    return np.stack(rows, axis=1)[1:]


if __name__ == "__main__":
    main()
