"""Cost of rescoring with TRIAL, against MaxSim and against TRIAL's naive form, which computes the relation of every pair of tokens.

    python -m bench.papers.trial [--index INDEX] [--output bench/results/trial.json]

The input is 256 candidates of 300 tokens and a query of 32 tokens, with 128 dimensions, on one thread. The figure is the minimum of
many runs; the first runs are slow, because BLAS threads still spin on the other core. Document tokens lie near a few topics, and query
tokens near document tokens, like the tokens of encoders. The kernels compute only pairs that can win, so the time depends on the size
of relations against differences of cosines. `strength` is the standard deviation of lambda times a relation over a document's tokens.
`pairs` counts the pairs that a query token needs: the cosine is within the largest relation of the winner's.

Rows: an untrained relation encoder (scorers/trial.py) with lambda times a factor (the public configuration has lambda 0.2); a relation
encoder trained for some steps on made-up documents with a fixed word order; `winners alone`, the floor, where only the nearest token
can win; and `all pairs`, the upper limit for relations of any size. `best_10_ms` is the time of an engine's last stage for the best 10
candidates: MaxSim of all, then relations of the `related` documents that can be among the 10.

--index (any scorer, 128 dimensions) measures the same on real documents: a query is 32 neighbouring tokens of a document, with noise.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bench.kernels.cost import least
from bench.machine import machine
from ray_lir.base.config import TrialConfig
from ray_lir.embeddings.relation import Alignment
from ray_lir.engines.exact import RESCORE, ExactParams
from ray_lir.engines.plan import Query, QueryPlan, centroid_scores
from ray_lir.engines.scoring.trial import RelationTerms, TrialScorer
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import RelationEncoder
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels, select
from ray_lir.kernels.reference import REFERENCE
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.trial import Relation, Trial
from ray_lir.search.searcher import Searcher

ALIGNMENTS: tuple[Alignment, ...] = ("combined", "cosine")
CANDIDATES, TOKENS, QUERY_TOKENS, DIM = 256, 300, 32, 128
NUM_CENTROIDS = 4096
NAIVE_DOCUMENTS = 4
"""Documents for timing the naive form."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.trial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--index", help="an index whose documents are rescored too")
    parser.add_argument("--output", type=Path, default=Path("bench/results/trial.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    shard, codec, query = made_up()
    kernels = select("native")
    ones, table = np.ones(QUERY_TOKENS, np.float32), kernels.centroid_scores(query, codec)
    maxsim = least(lambda: kernels.residual_maxsim([query], [ones], [table], shard, codec), options.runs)
    torch.manual_seed(0)
    fresh = Trial(DIM, TrialConfig())
    naive = least(lambda: _naive_scores(query, shard, codec, fresh.relation), 2) / NAIVE_DOCUMENTS * CANDIDATES
    trained = _train(codec.centroids_f32)
    cases = [(f"fresh x {factor}", scaled(fresh, factor), 0.0) for factor in (0.1, 0.2, 1, 3)]
    cases = [("winners alone", fresh, -100.0), *cases, ("trained", trained, 0.0), ("all pairs", fresh, 100.0)]
    rows = [
        measure(name, alignment, aligned(scorer, alignment), kernels, shard, codec, query, options.runs, widened)
        for name, scorer, widened in cases
        for alignment in ALIGNMENTS
    ]
    result = {
        "machine": machine(),
        "kernels": kernels.name,
        "candidates": CANDIDATES,
        "tokens": TOKENS,
        "query_tokens": QUERY_TOKENS,
        "dim": DIM,
        "maxsim_ms": _ms(maxsim),
        "naive_ms": _ms(naive),
        "trial": [
            {**row, "times_maxsim": round(row["ms"] / _ms(maxsim), 2), "naive_over_it": round(_ms(naive) / row["ms"], 1)}
            | ({"best_10_times_maxsim": round(row["best_10_ms"] / _ms(maxsim), 2)} if "best_10_ms" in row else {})
            for row in rows
        ],
    }
    if options.index:
        result["index"] = _on_index(options.index, fresh, kernels, options.runs)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def made_up() -> tuple[IndexShard, ResidualCodec, np.ndarray]:
    """Make documents with a topic and words, and a query that repeats some words of each."""
    rng = np.random.default_rng(0)
    words = normalize(rng.normal(size=(NUM_CENTROIDS, DIM)))
    topics = rng.normal(size=(CANDIDATES, DIM)) / np.sqrt(DIM)
    numbers = rng.integers(0, NUM_CENTROIDS, CANDIDATES * TOKENS)
    vectors = words[numbers] + 0.6 * np.repeat(topics, TOKENS, axis=0) + 0.5 * rng.normal(size=(len(numbers), DIM)) / np.sqrt(DIM)
    vectors = normalize(vectors).astype(np.float32)
    buckets = np.linspace(-2.4, 2.4, 16).astype(np.float32)
    codec = ResidualCodec(words.astype(np.float16), (buckets[1:] + buckets[:-1]) / 2, buckets, token_scale=True)
    residuals, scales, _ = REFERENCE.compress(vectors, numbers, codec)
    offsets = np.arange(0, len(numbers) + 1, TOKENS)
    shard = IndexShard(0, offsets, numbers.astype(np.uint16), residuals, scales.astype(np.float16), pa.table({}), NUM_CENTROIDS)
    query_vectors = vectors[rng.choice(len(vectors), QUERY_TOKENS)]
    return shard, codec, normalize(query_vectors + 0.5 * rng.normal(size=query_vectors.shape) / np.sqrt(DIM)).astype(np.float32)


def _on_index(url: str, fresh: Trial, kernels: Kernels, runs: int, num_queries: int = 8) -> dict[str, Any]:
    """Measure mean milliseconds for the best k of all documents of an index's first shard, or of the best by MaxSim."""
    searcher = Searcher.open(url)
    shard, plain, rng = searcher.shards[0], searcher.planner.codec, np.random.default_rng(0)
    long = np.flatnonzero(shard.lengths(np.arange(shard.num_docs)) >= 2 * QUERY_TOKENS)
    rows: dict[tuple[float, int, int], list[list[float]]] = {}
    for number in rng.choice(long, num_queries):
        tokens, offsets = shard.tokens(np.array([number]))
        begin = int(rng.integers(offsets[1] - QUERY_TOKENS))
        vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], plain)
        vectors = vectors[begin : begin + QUERY_TOKENS]
        query_vectors = normalize(vectors + 0.5 * rng.normal(size=vectors.shape) / np.sqrt(DIM)).astype(np.float32)
        query = Query(query_vectors, np.ones(QUERY_TOKENS, np.float32))
        [(scores, _)] = RESCORE.run([QueryPlan(query, ExactParams(), (1,))], shard, plain, kernels, [np.arange(shard.num_docs)])
        best_first = np.argsort(-scores)
        for factor in (0.2, 1):
            codec = replace(plain, scorer_data=RelationEncoder.of(scaled(fresh, factor).to_arrays(), plain.rotation))
            related = QueryPlan(query, ExactParams(), (10,), scorer_terms=TrialScorer().terms(query, codec))
            RESCORE.run([related], shard, codec, kernels, [best_first[:1]])  # computes values that are cached for codec and query
            time.sleep(0.2)  # wait until BLAS threads stop spinning
            for count, k in ((CANDIDATES, 10), (CANDIDATES, 100), (shard.num_docs, 10), (shard.num_docs, 100)):
                candidates, best = np.sort(best_first[:count]), replace(related, stage_limits=(k,))
                [(answers, _)] = RESCORE.run([best], shard, codec, kernels, [candidates])
                spent = three_ways(best, shard, codec, kernels, candidates, runs // 4)
                rows.setdefault((factor, count, k), []).append([*spent, int(np.isfinite(answers).sum())])
    names = ("maxsim_ms", "all_ms", "best_ms", "related")
    return {
        "documents": shard.num_docs,
        "tokens": round(float(shard.lengths(np.arange(shard.num_docs)).mean()), 1),
        "rows": [
            {"relations": f"fresh x {factor}", "candidates": count, "k": k}
            | dict(zip(names, np.mean(values, axis=0).round(2).tolist(), strict=True))
            for (factor, count, k), values in rows.items()
        ],
    }


def three_ways(
    plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, candidates: np.ndarray, runs: int
) -> list[float]:
    """Time the last stage of an engine: by MaxSim, with relations of all candidates, and with relations of possible winners only.

    Args:
        plan: Plan of the query; its last stage limit is the number of winners.
        shard: Shard with the candidates.
        codec: Codec of the index.
        kernels: Kernels to time.
        candidates: Numbers of the candidates.
        runs: Runs of each; the fastest counts.

    Returns:
        Three times in milliseconds.
    """
    plans = (replace(plan, scorer_terms=None), replace(plan, stage_limits=(len(candidates),)), plan)
    return [_timed(each, shard, codec, kernels, candidates, runs) for each in plans]


def _timed(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, candidates: np.ndarray, runs: int) -> float:
    """Return the milliseconds of an engine's last stage."""
    return _ms(least(lambda: RESCORE.run([plan], shard, codec, kernels, [candidates]), runs))


def scaled(scorer: Trial, factor: float) -> Trial:
    """Return the scorer with its relation weight multiplied by `factor`."""
    result = Trial(DIM, TrialConfig(relation_weight=scorer.settings.relation_weight * factor))
    result.load_state_dict(scorer.state_dict())
    return result


def aligned(scorer: Trial, alignment: Alignment) -> Trial:
    """Return the scorer with this alignment."""
    result = Trial(DIM, scorer.settings.model_copy(update={"alignment": alignment}))
    result.load_state_dict(scorer.state_dict())
    return result


def _train(words: np.ndarray, steps: int = 40, batch: int = 16, learning_rate: float = 1e-3) -> Trial:
    """Return a scorer trained to separate documents with the same words in a different order.

    A query is six neighbouring words of its document, with noise. Its negatives are the same document with shuffled words, and the
    documents of the other queries.
    """
    torch.manual_seed(0)
    scorer, vectors = Trial(DIM, TrialConfig()), torch.from_numpy(words[:512])
    optimizer = torch.optim.AdamW(scorer.relation.parameters(), learning_rate)
    for _ in range(steps):
        numbers = torch.stack([torch.randperm(len(vectors))[:24] for _ in range(batch)])
        shuffled = torch.stack([row[torch.randperm(24)] for row in numbers])
        starts = torch.randint(18, (batch,))
        query_vectors = vectors[torch.stack([row[start : start + 6] for row, start in zip(numbers, starts.tolist(), strict=True)])]
        queries = _texts(query_vectors + 0.5 * torch.randn(query_vectors.shape) / DIM**0.5)
        noisy = vectors[torch.cat([numbers, shuffled])]
        scores = 10 * scorer(queries, _texts(noisy + 0.5 * torch.randn(noisy.shape) / DIM**0.5))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.arange(batch)).backward()
        optimizer.step()
    return scorer


def _texts(vectors: Tensor) -> EmbeddedTexts:
    return EmbeddedTexts(torch.nn.functional.normalize(vectors, dim=-1), torch.ones(vectors.shape[:2], dtype=torch.bool))


def measure(
    name: str,
    alignment: Alignment,
    scorer: Trial,
    kernels: Kernels,
    shard: IndexShard,
    codec: ResidualCodec,
    query: np.ndarray,
    runs: int,
    widened: float,
) -> dict[str, Any]:
    """Measure milliseconds of rescoring, and the size of the relations.

    Args:
        name: Name of the row.
        alignment: Alignment of the scorer, `combined` or `cosine`.
        scorer: The scorer with its relation encoder.
        kernels: Kernels to time.
        shard: Shard with the candidates.
        codec: Codec of the shard.
        query: [n, D] float32, the query's vectors.
        runs: Runs of each; the fastest counts.
        widened: Added to the bound that kernels use.
    """
    codec = replace(codec, scorer_data=RelationEncoder.of(scorer.to_arrays(), None))
    terms, ones, table = codec.scorer_data.of_query(query), np.ones(len(query), np.float32), kernels.centroid_scores(query, codec)
    widened_terms = replace(terms, upper=terms.upper + np.float32(widened))
    seconds = least(lambda: kernels.relation_maxsim(query, ones, widened_terms, table, shard, codec), runs)
    tokens = slice(0, TOKENS)
    vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
    hidden = codec.scorer_data.hidden(vectors[0] @ codec.scorer_data.before.T, vectors @ codec.scorer_data.after.T + codec.scorer_data.bias)
    relations = hidden @ terms.products[1:].T + terms.constants[1:]
    values = query[1:] @ vectors.T + relations.T
    needed = (query[1:] @ vectors.T + relations.max(axis=0)[:, None] >= values.max(axis=1, keepdims=True)).sum(axis=1).mean()
    best = {}
    if not widened:
        query_of = Query(query, ones)
        plan = QueryPlan(query_of, ExactParams(), (10,), scorer_terms=RelationTerms(np.arange(len(query)), terms))
        centroid_scores(query_of, codec, kernels)
        everything = np.arange(CANDIDATES)
        [(scores, _)] = RESCORE.run([plan], shard, codec, kernels, [everything])
        best = {
            "related": int(np.isfinite(scores).sum()),
            "best_10_ms": _timed(plan, shard, codec, kernels, everything, runs),
        }
    return {
        "relations": name,
        "alignment": alignment,
        "strength": round(float(relations.std(axis=0).mean()), 4),
        "bound": round(float(terms.upper[1:].mean()), 4),
        "pairs": round(float(needed), 1),
        "ms": _ms(seconds),
        **best,
    }


@torch.no_grad()
def _naive_scores(query: np.ndarray, shard: IndexShard, codec: ResidualCodec, relation: Relation) -> Tensor:
    """Compute TRIAL's scores of a few documents as in the paper: one relation for every pair, without factoring."""
    queries = torch.from_numpy(query)
    query_relations = relation(queries[:-1], queries[1:])
    totals = []
    for number in range(NAIVE_DOCUMENTS):
        tokens, _ = shard.tokens(np.array([number]))
        document = torch.from_numpy(decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec))
        cosines, total, aligned = queries @ document.T, torch.zeros(()), 0
        for i in range(QUERY_TOKENS):
            value = cosines[i]
            if i:
                pairs = torch.cat([document[aligned].expand_as(document), document], dim=1)
                hidden = torch.nn.functional.mish(relation.norm(relation.inner(pairs)))
                value = value + 0.5 * relation.outer(hidden) @ query_relations[i - 1]
            total, aligned = total + value.max(), int(value.argmax())
        totals.append(total)
    return torch.stack(totals)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


if __name__ == "__main__":
    main()
