"""One index with the judged queries of a data set, as the analyses of the papers see it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from ray_lir.base.errors import ConfigError
from ray_lir.corpus.datasets import Dataset
from ray_lir.corpus.records import document_text
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import ENGINES
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.engines.stages import StageLoop, run_stages
from ray_lir.engines.token_index import token_index
from ray_lir.engines.xtr import XtrParams, XtrPlan
from ray_lir.evaluation import metrics
from ray_lir.evaluation.analyses.analysis import Funnel, JudgedQuery, MatchedToken, RetrievedTokens
from ray_lir.evaluation.coverage import judged_documents
from ray_lir.evaluation.runs import Run
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard
from ray_lir.search.explain import match_tokens, shard_of
from ray_lir.search.searcher import Searcher

from .dataset_search import search_dataset
from .query_search import QuerySearch

KNOWN_FRACTION = 0.9
"""Vocabulary ids of document tokens count as known if they are known for this fraction of the documents."""
UNKNOWN = -1


class AnalyzedIndex:
    """An index on a local disk with the judged queries of a data set. It implements `AnalyzedModel`.

    Args:
        search: The opened index.
        dataset: The data set.
        ignore_identical_ids: Whether runs leave out hits with the id of their query.

    Raises:
        ConfigError: The index is not on a local disk.
        IncompatibleError: The encoder is not the one that the index was built with.
    """

    def __init__(self, search: QuerySearch, dataset: Dataset, ignore_identical_ids: bool):
        if search.searcher is None:
            raise ConfigError(f"{search.root} is not on a local disk; copy the index to one and analyze the copy")
        self.search = search
        self.searcher: Searcher = search.searcher
        self.dataset = dataset
        self.ignores = ignore_identical_ids
        self.embeddings = search.encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
        self.numbers = self.searcher.find(judged_documents(dataset.qrels))

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        return self.search.manifest.contract.scorer

    @property
    def num_docs(self) -> int:
        """Number of live documents."""
        return self.search.manifest.num_docs

    @property
    def num_tokens(self) -> int:
        """Number of tokens of live documents."""
        return self.searcher.planner.statistics.num_tokens

    @property
    def dim(self) -> int:
        """Dimensions of a token vector."""
        return self.search.manifest.dim

    @cached_property
    def queries(self) -> list[JudgedQuery]:
        """The judged queries."""
        return [self._query(number, query_id, text) for number, (query_id, text) in enumerate(self.dataset.queries.items())]

    def _query(self, number: int, query_id: str, text: str) -> JudgedQuery:
        rows = slice(*self.embeddings.offsets[number : number + 2].tolist())
        size = rows.stop - rows.start
        found = self.search.encoder.tokenizer.query_spans(text)
        ids, weights = self.embeddings.token_ids, self.embeddings.weights
        active = np.asarray(self.embeddings.values[rows].any(axis=1))
        numbers = [self.numbers[doc_id] for doc_id in self.relevant_ids(number) if doc_id in self.numbers]
        return JudgedQuery(
            query_id,
            text,
            found.pieces[:size],
            found.spans[:size],
            np.full(size, UNKNOWN) if ids is None else ids[rows].astype(np.int64),
            None if weights is None else weights[rows],
            active if weights is None else active & (weights[rows] > 0),
            np.array(sorted(numbers), np.int64),
        )

    def relevant_ids(self, query: int) -> list[str]:
        """Return the ids of the documents that are judged above 0 for a query."""
        grades = self.dataset.qrels[self.embeddings.doc_ids[query]]
        return [doc_id for doc_id, grade in grades.items() if grade > 0]

    @property
    def knows_document_tokens(self) -> bool:
        """Whether the vocabulary ids of document tokens are known: the index holds texts, and its vectors are not pooled."""
        known = sum(int(np.count_nonzero(ids != UNKNOWN)) for ids in self._token_ids)
        return known >= KNOWN_FRACTION * sum(map(len, self._token_ids))

    @cached_property
    def _token_ids(self) -> list[np.ndarray]:
        """The vocabulary ids of the tokens of each shard, [T] int64, from the texts of its documents."""
        return [self._ids_of(shard) for shard in self.searcher.shards]

    def _ids_of(self, shard: IndexShard) -> np.ndarray:
        tokenizer, contract = self.search.encoder.tokenizer, self.search.manifest.contract
        rows = self.searcher.documents(shard.first_document + shard.found_documents)
        texts = [document_text(row["title"] or "", row["text"] or "") for row in rows]
        ids = np.full(int(shard.doc_offsets[-1]), UNKNOWN, np.int64)
        for number, found in zip(shard.found_documents.tolist(), tokenizer.documents(texts), strict=True):
            kept = found[~np.isin(found, contract.skip_tokens)]
            first, end = shard.doc_offsets[number], shard.doc_offsets[number + 1]
            if end - first == len(kept):
                ids[first:end] = kept
        return ids

    def retrieve(self, k: int) -> Iterator[RetrievedTokens]:
        """Yield the k best document tokens of each query token, for each query."""
        for plan in self._plans(XtrParams(k_prime=min(k, max(1, self.num_tokens))), 1):
            assert isinstance(plan, XtrPlan)
            yield self._retrieve(plan)

    def _retrieve(self, plan: XtrPlan) -> RetrievedTokens:
        parts = []
        for shard, ids in zip(self.searcher.shards, self._token_ids, strict=True):
            allowed = None if shard.live is None else shard.tokens(shard.live)[0]
            index = token_index(shard, self.searcher.planner.codec)
            rows, tokens, scores = index.search(shard, plan.query.vectors[plan.active], plan.k_prime, None, allowed)
            documents = shard.first_document + np.searchsorted(shard.doc_offsets, tokens, side="right") - 1
            parts.append((rows, scores, documents, ids[tokens]))
        rows, scores, documents, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((-scores, rows))
        ranks = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
        order, ranks = order[ranks < plan.k_prime], ranks[ranks < plan.k_prime]
        return RetrievedTokens(plan.active[rows[order]], ranks, scores[order], documents[order], ids[order])

    def sample_vectors(self, count: int, seed: int) -> np.ndarray:
        """Return unit vectors of document tokens, [<= count, D] float32, in the order of the index and in the codec's rotation."""
        tokens = [shard.tokens(shard.found_documents)[0] for shard in self.searcher.shards]
        ends = np.cumsum([0, *map(len, tokens)])
        chosen = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:count])
        parts = []
        for shard, numbers, first, end in zip(self.searcher.shards, tokens, ends, ends[1:], strict=False):
            own = numbers[chosen[(chosen >= first) & (chosen < end)] - first]
            parts.append(decompress(shard.codes[own], shard.residuals[own], shard.scales[own], self.searcher.planner.codec))
        return normalize(np.concatenate(parts))

    def run(self, engine: Mapping[str, Any], k: int) -> Run:
        """Return the run of an engine, given by its name and parameters."""
        return search_dataset(self.search, self.dataset, _params(engine), k, self.ignores)[0]

    def funnels(self, engine: Mapping[str, Any], k: int) -> list[Funnel]:
        """Return how each query went through the stages of an engine, one after another in this process."""
        params = _params(engine)
        self._funnel(0, params, k)  # reads the index into memory
        return [self._funnel(number, params, k) for number in range(len(self.embeddings))]

    def _funnel(self, number: int, params: EngineConfig, k: int) -> Funnel:
        start = time.perf_counter()
        [plan] = self.searcher.planner.plan(self.embeddings.slice(number, number + 1), k, params)
        planned = time.perf_counter() - start
        loop = self._stages([plan])
        clusters = getattr(plan, "clusters", None)
        candidates = self.num_docs if clusters is None else sum(self._num_candidates(shard, clusters) for shard in self.searcher.shards)
        names = tuple(stage.name for stage in ENGINES[params.engine].stages[: len(plan.stage_limits)])
        kept = tuple(len(best.documents) for [best] in loop.kept)
        return Funnel(candidates, kept, (planned, *loop.seconds), names)

    def _num_candidates(self, shard: IndexShard, clusters: np.ndarray) -> int:
        found = self.searcher.kernels.candidates(np.unique(clusters), shard)
        return len(found) if shard.live is None else len(np.intersect1d(found, shard.live))

    def candidates(self, engine: Mapping[str, Any], k: int, count: int, weighted: bool) -> list[np.ndarray]:
        """Return the best `count` documents of each query before they are rescored, with query token weights or without.

        Args:
            engine: Name and parameters of an engine.
            k: Documents that the search would return.
            count: Candidates of a query, at most.
            weighted: Whether query token weights count. Without weights, every token counts 1.
        """
        embeddings = self.embeddings
        if not weighted and embeddings.weights is not None:
            embeddings = replace(embeddings, weights=np.ones_like(embeddings.weights))
        found = []
        for plan in self._plans(_params(engine), k, embeddings):
            kept = self._stages([plan]).kept
            found.append(np.sort(kept[-2 if len(kept) > 1 else -1][0].documents[:count]))
        return found

    def rescore(self, documents: Sequence[np.ndarray], k: int) -> Run:
        """Return the exact ranking of given documents for each query."""
        answers = [
            self.searcher.search(self.embeddings.slice(number, number + 1), k + self.ignores, ExactParams(), only=each)[0]
            for number, each in enumerate(documents)
        ]
        return self._run(answers, k)

    def evaluate(self, run: Run, measure: str) -> np.ndarray:
        """Return the measure of each query, [Q] float64."""
        [values] = metrics.evaluate(run, self.dataset.qrels, [measure]).values()
        return np.array([values[query_id] for query_id in self.dataset.queries])

    def without_relations(self, k: int) -> Run:
        """Return the exact ranking by the scorer without its relation terms."""
        plans = (replace(plan, scorer_terms=None) for plan in self._plans(ExactParams(), k + self.ignores))
        return self._run([self._stages([plan]).kept[-1][0] for plan in plans], k)

    def matches(self, query: int, doc_id: str) -> list[MatchedToken]:
        """Return the matches of a query in a document, with and without relation terms."""
        [plan] = self.searcher.planner.plan(self.embeddings.slice(query, query + 1), 1, ExactParams())
        number = self.numbers[doc_id]
        shard, codec = shard_of(self.searcher.shards, number), self.searcher.planner.codec
        found, plain = (match_tokens(each, shard, codec, number) for each in (plan, replace(plan, scorer_terms=None)))
        [row] = self.searcher.documents([number])
        pieces = self.search.encoder.tokenizer.document_spans(document_text(row["title"] or "", row["text"] or "")).pieces
        names = [
            pieces[token] if token < len(pieces) else str(token)
            for token in range(int(shard.lengths(np.array([number - shard.first_document]))[0]))
        ]
        if not names:
            return []
        return [
            MatchedToken(
                piece, names[found.tokens[at]], names[plain.tokens[at]], float(found.contributions[at]), float(plain.contributions[at])
            )
            for at, piece in enumerate(self.queries[query].pieces)
            if self.queries[query].active[at]
        ]

    def _plans(self, params: EngineConfig, k: int, embeddings: TokenEmbeddings | None = None) -> Iterator[QueryPlan]:
        """The plan of each query, one at a time, so that memory holds the tables of one query."""
        embeddings = embeddings or self.embeddings
        for number in range(len(embeddings)):
            yield self.searcher.planner.plan(embeddings.slice(number, number + 1), k, params)[0]

    def _stages(self, plans: Sequence[QueryPlan]) -> StageLoop:
        return run_stages(plans, self.searcher.shards, self.searcher.planner.codec, self.searcher.kernels, [None] * len(plans))

    def _run(self, answers: Sequence[TopK], k: int) -> Run:
        run: Run = {
            query_id: list(zip(self.searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
            for query_id, answer in zip(self.dataset.queries, answers, strict=True)
        }
        run = metrics.without_identical_ids(run) if self.ignores else run
        return {query_id: ranking[:k] for query_id, ranking in run.items()}


def _params(engine: Mapping[str, Any]) -> EngineConfig:
    name = engine.get("engine")
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; the engines are {', '.join(ENGINES)}")
    try:
        return ENGINES[name].params(**engine)
    except ValidationError as error:
        raise ConfigError(f"engine {name}: {error.errors()[0]['msg']}") from None
