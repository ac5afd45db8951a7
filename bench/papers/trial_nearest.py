"""TRIAL with limited relations: cost against MaxSim, and agreement with exact relations.

    python -m bench.papers.trial_nearest DATA agreement|times|rounding [--work runs/trial_nearest]

The vectors are those of the default encoder (384 dimensions), or their PCA to 128 dimensions. Relation encoders are trained on these fixed
vectors with in-batch negatives. `strong` multiplies the relations by ten. There are no gates. Every intermediate result is kept in the
work folder and is not computed again.

The defaults are chosen (`choice`) with a relation encoder trained on scifact and with the queries of medline and cranfield. They are
reported (`report`) with another relation encoder, trained on nfcorpus with the same learning rate, that of `train_small_trial.yaml`, and
with the queries of cisi and nfcorpus. `stress` is the same with 2.5 times as many steps and 2.5 times the learning rate.

For each query: the 256 best documents by MaxSim, the 10 best of them by TRIAL, one thread. `tokens` is the number of document tokens that
each query token is compared with, and `documents` the number of documents with relations. The others have their score to first order.
Times are the least CPU times of several runs, divided by the CPU time of MaxSim in the same run. They include the first-order scores of all
256 documents, but not the preparation of the query, which is shown apart. `agreement` is the fraction of the 10 best by exact relations
that are found.

`rounding` compares the compiled kernels with the reference in float64, for all relations: the errors of document scores, and the fraction
of documents in which rounding changes the match of any query token. `relation_spread` is the standard deviation of what relations add to
the scores of a query's documents, and `upper_bound` the mean bound on it.
"""

import argparse
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.machine import machine
from ray_lir.base.config import EncoderConfig, IndexConfig, TrialConfig
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.engine import Stage
from ray_lir.engines.exact import RELATE, RESCORE, ExactParams
from ray_lir.engines.plan import QueryPlan, centroid_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import align, relation_of
from ray_lir.index.residuals import decompress
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.trial import Trial
from ray_lir.search.searcher import Searcher

MAX_DOCUMENTS, MAX_QUERIES, MAX_PAIRS = 1600, 100, 500
CANDIDATES, BEST = 256, 10
BATCH, TRAINING_TOKENS = 8, 48
NEAREST = (1, 2, 4, 8, None)
DOCUMENTS = (20, 30, 40, 64, CANDIDATES)
STRENGTHS = {"as trained": 1.0, "strong": 10.0}
RUNS = 4
ROUNDED = 100
"""Documents of a query whose scores are compared with the reference."""
MARK = 1000
DEFAULT_QUERIES = {"agreement": MAX_QUERIES, "times": 6, "rounding": 3}


@dataclass(frozen=True)
class Purpose:
    """The data of one half of the benchmark.

    Attributes:
        training: Collection that the relation encoder is trained on.
        collections: Collections that are searched.
        steps: Training steps.
        learning_rate: Learning rate.
    """

    training: str
    collections: tuple[str, ...]
    steps: int
    learning_rate: float


PURPOSES = {
    "choice": Purpose("scifact", ("medline", "cranfield"), 60, 2e-4),
    "report": Purpose("nfcorpus", ("cisi", "nfcorpus"), 60, 2e-4),
    "stress": Purpose("nfcorpus", ("cisi", "nfcorpus"), 150, 5e-4),
}


@dataclass(frozen=True)
class Bench:
    """Where the collections and the pieces of work are.

    Attributes:
        data: Folder of the collections.
        work: Folder of the pieces of work.
        made: Pieces of work in memory.
    """

    data: Path
    work: Path
    made: dict[str, Any] = field(default_factory=dict)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a piece of work, made on first use."""
        path = self.work / f"{name}.pkl"
        if name not in self.made:
            self.made[name] = pickle.loads(path.read_bytes()) if path.exists() else make()
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pickle.dumps(self.made[name]))
        return self.made[name]

    def documents(self, name: str) -> TokenEmbeddings:
        """Return the vectors of a collection's first documents; those of all judged documents for the training collection."""

        def encode() -> TokenEmbeddings:
            rows = [(each.doc_id, document_text(each.title, each.text)) for each in read_documents(str(self.data / name))]
            if name == PURPOSES["choice"].training:
                judged = {each for grades in load_dataset(str(self.data / name), "train").qrels.values() for each in grades}
                rows = [row for row in rows if row[0] in judged]
            ids, texts = zip(*rows[:MAX_DOCUMENTS], strict=True)
            return Encoder.load(EncoderConfig(device="cpu")).encode_documents(list(texts), list(ids))

        return self.kept(f"documents-{name}", encode)

    def queries(self, name: str, split: str, count: int) -> TokenEmbeddings:
        """Return the vectors of a split's first judged queries.

        Args:
            name: Name of the collection.
            split: Name of the split.
            count: Number of queries.
        """

        def encode() -> TokenEmbeddings:
            judged = load_dataset(str(self.data / name), split)
            ids = [each for each in judged.queries if each in judged.qrels][:count]
            return Encoder.load(EncoderConfig(device="cpu")).encode_queries([judged.queries[each] for each in ids], ids)

        return self.kept(f"queries-{name}-{split}", encode)

    def projection(self, dim: int) -> np.ndarray | None:
        """Return the PCA [384, dim] of the training documents; None if the vectors have `dim` dimensions."""

        def fit() -> np.ndarray | None:
            vectors = self.documents(PURPOSES["choice"].training).values
            if vectors.shape[1] == dim:
                return None
            sample = vectors[np.random.default_rng(0).permutation(len(vectors))[:20_000]].astype(np.float64)
            _, axes = np.linalg.eigh(sample.T @ sample)
            return axes[:, ::-1][:, :dim].astype(np.float32)

        return self.kept(f"projection-{dim}", fit)

    def relation(self, purpose: str, dim: int) -> Relation:
        """Return the trained relation encoder of a purpose (a key of PURPOSES)."""
        return self.kept(f"relation-{purpose}-{dim}", lambda: self._train(PURPOSES[purpose], dim))

    def _train(self, purpose: Purpose, dim: int) -> Relation:
        torch.manual_seed(0)
        rng, projection = np.random.default_rng(0), self.projection(dim)
        queries, documents = self.queries(purpose.training, "train", MAX_PAIRS), self.documents(purpose.training)
        place = {doc_id: number for number, doc_id in enumerate(documents.doc_ids)}
        qrels = load_dataset(str(self.data / purpose.training), "train").qrels
        pairs = [
            (number, place[document])
            for number, query in enumerate(queries.doc_ids)
            for document, grade in qrels[query].items()
            if grade > 0 and document in place
        ]
        scorer = Trial(dim, TrialConfig())
        optimizer = torch.optim.AdamW(scorer.relation.parameters(), purpose.learning_rate)
        for _ in range(purpose.steps):
            chosen = [pairs[each] for each in rng.choice(len(pairs), BATCH, replace=False)]
            query_texts = _padded([projected(_text(queries, query), projection) for query, _ in chosen])
            document_texts = _padded([projected(_text(documents, document)[:TRAINING_TOKENS], projection) for _, document in chosen])
            [scores] = scorer.training_scores(query_texts, document_texts)
            optimizer.zero_grad()
            functional.cross_entropy(scores, torch.arange(BATCH)).backward()
            optimizer.step()
        return scorer.to_arrays()

    def searcher(self, purpose: str, name: str, dim: int, strength: str) -> Searcher:
        """Return the opened index of a collection.

        Args:
            purpose: A key of PURPOSES, for the relation encoder.
            name: Name of the collection.
            dim: Dimensions of the vectors.
            strength: A key of STRENGTHS.
        """
        path, projection = self.work / f"index-{purpose}-{name}-{dim}-{strength.replace(' ', '_')}", self.projection(dim)
        if not (path / "LATEST").exists():
            documents, relation = self.documents(name), self.relation(purpose, dim)
            relation = replace(relation, weight=relation.weight * STRENGTHS[strength])
            rows = [projected(_text(documents, number), projection).astype(np.float16) for number in range(len(documents))]
            build_index(TokenEmbeddings.of(rows, list(documents.doc_ids)), str(path), IndexConfig(num_shards=1), relation=relation)
        return Searcher.open(str(path))

    def projected_queries(self, name: str, dim: int) -> TokenEmbeddings:
        """Return the queries of a collection, projected."""
        queries, projection = self.queries(name, "test", MAX_QUERIES), self.projection(dim)
        rows = [projected(_text(queries, number), projection).astype(np.float16) for number in range(len(queries))]
        return TokenEmbeddings.of(rows, list(queries.doc_ids))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.trial_nearest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("part", choices=("agreement", "times", "rounding"))
    parser.add_argument("--work", type=Path, default=Path("runs/trial_nearest"))
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--purposes", nargs="+", default=list(PURPOSES), choices=list(PURPOSES))
    parser.add_argument("--collections", nargs="+", help="of these collections only")
    parser.add_argument("--relations", nargs="+", default=list(STRENGTHS), choices=list(STRENGTHS))
    parser.add_argument("--queries", type=int, help="the first queries only")
    parser.add_argument("--output", type=Path, default=Path("bench/results/trial_nearest.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.data, options.work)
    part = {"agreement": agreements, "times": times, "rounding": rounding}[options.part]
    collections = [(purpose, name) for purpose in options.purposes for name in PURPOSES[purpose].collections]
    for dim, (purpose, name), strength in product(options.dims, collections, options.relations):
        if options.collections and name not in options.collections:
            continue
        searcher, queries = bench.searcher(purpose, name, dim, strength), bench.projected_queries(name, dim)
        count = min(options.queries or DEFAULT_QUERIES[options.part], len(queries))
        plans = searcher.planner.plan(queries.slice(0, count), BEST, ExactParams(relation_candidates=1))
        found = part(searcher, plans)
        print(dim, purpose, name, strength, json.dumps(found), flush=True)
        rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
        key = {"dim": dim, "purpose": purpose, "collection": name, "relations": strength}
        row = next((row for row in rows if key.items() <= row.items()), None)
        if row is None:
            rows.append(row := dict(key))
        row |= {"document_tokens": round(len(searcher.shards[0].codes) / searcher.shards[0].num_docs, 1), options.part: found}
        rows.sort(key=lambda row: (row["purpose"], row["dim"], row["collection"], row["relations"]))
        result = {"machine": machine(), "candidates": CANDIDATES, "best": BEST, "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(report(result))


@dataclass(frozen=True)
class Candidates:
    """The best documents of a query by MaxSim.

    Attributes:
        numbers: [N] their numbers, ascending.
        maxsim: [N] their MaxSim scores.
        maxsim_ranks: [N] their ranks by MaxSim, from 0.
        ranks: [N] their ranks with relations to first order, from 0.
    """

    numbers: np.ndarray
    maxsim: np.ndarray
    maxsim_ranks: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, searcher: Searcher, plan: QueryPlan) -> "Candidates":
        """Return the candidates of a query."""
        [shard], codec, kernels = searcher.shards, searcher.planner.codec, searcher.kernels
        plain = replace(plan, scorer_terms=None, approximation=None)
        [(scores, _)] = RESCORE.run([plain], shard, codec, kernels, [np.arange(shard.num_docs)])
        numbers = np.sort(np.argsort(-scores, kind="stable")[:CANDIDATES])
        [(first_order, _)] = RESCORE.run([plan], shard, codec, kernels, [numbers])
        return cls(numbers, scores[numbers], _ranks(scores[numbers]), _ranks(first_order))


def agreements(searcher: Searcher, plans: list[QueryPlan]) -> dict[str, Any]:
    """Return the fraction of the exact best documents that every setting finds, and the ranks that hold all of them."""
    [shard], codec, kernels = searcher.shards, searcher.planner.codec, searcher.kernels
    found: dict[tuple[int | None, int], list[float]] = {}
    deepest: dict[str, list[int]] = {"maxsim": [], "first_order": []}
    for plan in plans:
        candidates = Candidates.of(searcher, plan)
        exact = _limited(plan, None).scorer_terms.scores(plan.query, shard, codec, kernels, candidates.numbers)
        best = np.argsort(-exact, kind="stable")[:BEST]
        for name, ranks in (("maxsim", candidates.maxsim_ranks), ("first_order", candidates.ranks)):
            deepest[name].append(int(ranks[best].max()) + 1)
        for nearest in NEAREST:
            scores = _limited(plan, nearest).scorer_terms.scores(plan.query, shard, codec, kernels, candidates.numbers)
            for documents in DOCUMENTS:
                kept = np.argsort(-np.where(candidates.ranks < documents, scores, -np.inf), kind="stable")[:BEST]
                found.setdefault((nearest, documents), []).append(float(np.isin(best, kept).mean()))
    settings = [
        {"nearest": nearest, "documents": documents, "agreement": round(float(np.mean(values)), 4)}
        for (nearest, documents), values in sorted(found.items(), key=lambda each: (each[0][1], each[0][0] or np.inf))
    ]
    depths = {name: {"mean": round(float(np.mean(ranks)), 1), "max": max(ranks)} for name, ranks in deepest.items()}
    return {"queries": len(plans), "deepest_rank": depths, "settings": settings}


def times(searcher: Searcher, plans: list[QueryPlan]) -> dict[str, Any]:
    """Return the CPU time of MaxSim, and of every setting divided by it."""
    ratios: dict[tuple[int | None, int], list[float]] = {}
    maxsim, preparation = [], []
    for plan in plans:
        candidates = Candidates.of(searcher, plan)
        best: dict[Any, float] = {}
        preparation.append(min(_preparation_ms(searcher, plan) for _ in range(RUNS)))
        for run in range(RUNS):
            plain = replace(plan, scorer_terms=None, approximation=None)
            spent = {"maxsim": _stage_ms(RESCORE, plain, searcher, candidates.numbers)}
            for nearest, documents in product(NEAREST, DOCUMENTS):
                if run == 0 or documents < CANDIDATES:
                    related = candidates.numbers[candidates.ranks < documents]
                    spent[nearest, documents] = _stage_ms(RELATE, _limited(plan, nearest), searcher, related)
            spent["first_order"] = _stage_ms(RESCORE, plan, searcher, candidates.numbers)
            best |= {each: min(best.get(each, np.inf), ms) for each, ms in spent.items()}
        maxsim.append(best["maxsim"])
        for nearest, documents in product(NEAREST, DOCUMENTS):
            before = best["first_order"] if documents < CANDIDATES else 0
            ratios.setdefault((nearest, documents), []).append((before + best[nearest, documents]) / best["maxsim"])
    settings = [
        {"nearest": nearest, "documents": documents, "times_maxsim": round(float(np.mean(ratios[nearest, documents])), 2)}
        for documents, nearest in product(DOCUMENTS, NEAREST)
    ]
    query_tokens = round(float(np.mean([len(plan.scorer_terms.unmasked) for plan in plans])), 1)
    return {
        "kernels": searcher.kernels.name,
        "queries": len(plans),
        "query_tokens": query_tokens,
        "maxsim_ms": round(float(np.mean(maxsim)), 2),
        "preparation_ms": round(float(np.mean(preparation)), 2),
        "centroids": searcher.planner.codec.num_centroids,
        "settings": settings,
    }


def rounding(searcher: Searcher, plans: list[QueryPlan]) -> dict[str, Any]:
    """Return the errors of document scores and matches by the kernels against the reference in float64, with all relations."""
    [shard], codec, kernels = searcher.shards, searcher.planner.codec, searcher.kernels
    errors, changed, spreads, bounds = [], [], [], []
    for plan in plans:
        candidates, terms = Candidates.of(searcher, plan), _limited(plan, None).scorer_terms
        numbers = candidates.numbers[candidates.ranks < ROUNDED]
        query, weights = plan.query.vectors[terms.unmasked], plan.query.weights[terms.unmasked].astype(np.float64)
        reference, matches = [], []
        for number in numbers:
            tokens = np.arange(*shard.doc_offsets[number : number + 2])
            vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
            winners, relations = align(query, terms.relation, vectors, relation_of(codec))
            reference.append(weights @ (np.einsum("nd,nd->n", query.astype(np.float64), vectors[winners]) + relations))
            matches.append(tokens[winners])
        errors.append(terms.scores(plan.query, shard, codec, kernels, numbers) - np.array(reference))
        changed.append(_changed_matches(plan, terms, shard, codec, kernels, numbers, np.array(matches)))
        bounds.append(terms.upper_bound(plan.query))
        spreads.append(float((reference - candidates.maxsim[candidates.ranks < ROUNDED]).std()))
    centred = np.abs(np.concatenate([each - each.mean() for each in errors]))
    whole, flips = np.abs(np.concatenate(errors)), np.concatenate([each.any(axis=1) for each in changed])
    return {
        "documents": len(whole),
        "relation_spread": round(float(np.mean(spreads)), 4),
        "upper_bound": round(float(np.mean(bounds)), 2),
        "error_median": round(float(np.median(whole)), 4),
        "error_p99": round(float(np.quantile(whole, 0.99)), 4),
        "error_max": round(float(whole.max()), 4),
        "error_less_its_mean_in_a_query_median": round(float(np.median(centred)), 4),
        "changed_matches": round(float(np.mean([each.mean() for each in changed])), 5),
        "documents_with_a_changed_match": round(float(flips.mean()), 4),
        "error_median_of_these": round(float(np.median(whole[flips])), 4) if flips.any() else None,
        "error_max_of_these": round(float(whole[flips].max()), 4) if flips.any() else None,
    }


def _changed_matches(
    plan: QueryPlan, terms: Any, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, numbers: np.ndarray, matches: np.ndarray
) -> np.ndarray:
    """Return whether the kernels match another document token than `matches` [N, n], for each document and query token.

    The token weights do not change a match. A weight of MARK on the expected matches of one query token shows in the scores of that token
    alone whether the kernels match them.
    """
    changed = np.zeros(matches.shape, bool)
    for i, token in enumerate(terms.unmasked):
        marks = np.zeros(len(shard.codes), np.float16)
        marks[matches[:, i]] = MARK
        weights = np.zeros_like(plan.query.weights)
        weights[token] = 1
        scores = terms.scores(replace(plan.query, weights=weights), replace(shard, weights=marks), codec, kernels, numbers)
        changed[:, i] = np.abs(scores) < MARK / 100
    return changed


def _limited(plan: QueryPlan, nearest: int | None) -> QueryPlan:
    """Return the plan with another number of tokens that each query token is compared with."""
    selectors = None if nearest is None else plan.scorer_terms.selectors
    return replace(plan, scorer_terms=replace(plan.scorer_terms, nearest_tokens=nearest, selectors=selectors))


def _ranks(scores: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(-scores, kind="stable"))


def _stage_ms(stage: Stage[QueryPlan], plan: QueryPlan, searcher: Searcher, documents: np.ndarray) -> float:
    """Return the CPU milliseconds of a stage."""
    start = time.thread_time()
    stage.run([plan], searcher.shards[0], searcher.planner.codec, searcher.kernels, [documents])
    return 1e3 * (time.thread_time() - start)


def _preparation_ms(searcher: Searcher, plan: QueryPlan) -> float:
    """Return the CPU milliseconds that limited relations add to the preparation of a query, once for all documents."""
    codec, kernels, query = searcher.planner.codec, searcher.kernels, replace(plan.query)  # nothing is cached for a new object
    start = time.thread_time()
    terms = searcher.planner.scorer.terms(query, codec, 1, approximates=True)
    for each in (terms.linear, terms.selectors):
        centroid_scores(each, codec, kernels)
    return 1e3 * (time.thread_time() - start)


def projected(vectors: np.ndarray, projection: np.ndarray | None) -> np.ndarray:
    """Return unit vectors, [T, dim] float32; rows of zeros stay zeros."""
    vectors = vectors.astype(np.float32) if projection is None else vectors.astype(np.float32) @ projection
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _text(embeddings: TokenEmbeddings, number: int) -> np.ndarray:
    return embeddings.values[embeddings.offsets[number] : embeddings.offsets[number + 1]]


def _padded(rows: list[np.ndarray]) -> EmbeddedTexts:
    vectors = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    return EmbeddedTexts(vectors, vectors.any(dim=-1))


def report(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# TRIAL with limited relations",
        "",
        f"Written by `python -m bench.papers.trial_nearest`, which describes the columns. Processor: {result['machine']['cpu']}.",
    ]
    for row in result["rows"]:
        lines += ["", f"## {row['purpose']}: {row['dim']} dimensions, {row['collection']}, relations {row['relations']}", ""]
        cells: dict[tuple[int | None, int], dict[str, float]] = {}
        for part, column in (("times", "times_maxsim"), ("agreement", "agreement")):
            for each in row.get(part, {}).get("settings", []):
                cells.setdefault((each["nearest"], each["documents"]), {})[column] = each[column]
        if "times" in row:
            part = row["times"]
            lines += [
                f"MaxSim of {result['candidates']} documents of {row['document_tokens']} tokens for a query of {part['query_tokens']}: "
                f"{part['maxsim_ms']} ms (`{part['kernels']}`, {part['queries']} queries). "
                f"Limited relations add {part['preparation_ms']} ms to the preparation of a query, for {part['centroids']} centroids."
            ]
        if "agreement" in row:
            part = row["agreement"]
            depths = part["deepest_rank"]
            lines += [
                f"Rank that holds the exact best {result['best']}, of {part['queries']} queries: by MaxSim "
                f"{depths['maxsim']['mean']} on average, "
                f"{depths['maxsim']['max']} at most; with relations to first order {depths['first_order']['mean']} and "
                f"{depths['first_order']['max']}."
            ]
        lines += ["", "| tokens | documents | times MaxSim | agreement |", "|---|---|---|---|"]
        lines += [
            f"| {nearest or 'all'} | {documents} | {cell.get('times_maxsim', '')} | {cell.get('agreement', '')} |"
            for (nearest, documents), cell in cells.items()
        ]
        if "rounding" in row:
            lines += ["", "Rounding: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["rounding"].items()) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
