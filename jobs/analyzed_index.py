"""One index with the judged queries of a data set, as the analyses of the papers see it."""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from ray_lir import storage
from ray_lir.base.config import AttentionChanges, AttentionConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import threads
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset
from ray_lir.corpus.records import document_text, title_length
from ray_lir.embeddings.attention import document_weights
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.engines import ENGINES
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.engines.registry import stages_of
from ray_lir.engines.stages import StageLoop, run_stages, score
from ray_lir.engines.xtr import Imputation, TokenHits, XtrParams, XtrPlan, with_hits
from ray_lir.evaluation import metrics
from ray_lir.evaluation.analyses.analysis import Funnel, JudgedQuery, MatchedToken, RetrievedTokens
from ray_lir.evaluation.coverage import judged_documents
from ray_lir.evaluation.nearest_tokens import BLOCK_TOKENS, QUERY_TOKENS, nearest_tokens
from ray_lir.evaluation.oracle import read_embeddings
from ray_lir.evaluation.runs import Run
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard
from ray_lir.search.explain import match_tokens, shard_of
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, manifest_digest, read_manifest

from .query_search import QuerySearch

Item = TypeVar("Item")

KNOWN_FRACTION = 0.9
"""Vocabulary ids of document tokens count as known if they are known for this fraction of the documents."""
UNKNOWN = -1
QUERIES_AT_ONCE = 16
"""Queries that are searched between two reports of progress."""
KEPT_BYTES = 1 << 30
"""Retrieved tokens are kept in memory up to this size."""
DECODED_BYTES = 2 << 30
"""Decoded vectors of all document tokens are kept in memory up to this size; otherwise they are decoded again for some queries."""


class AnalyzedIndex:
    """An index on a local disk with the judged queries of a data set. It implements `AnalyzedModel`.

    Args:
        search: The opened index.
        dataset: The data set.
        ignore_identical_ids: Whether runs leave out hits with the id of their query.
        original: Folder of the embeddings that the index was built from: token retrieval and geometry then use the original vectors. None:
            they use the decompressed vectors of the index.

    Raises:
        ConfigError: The index is not on a local disk, or was not built from these embeddings.
        IncompatibleError: The encoder is not the one that the index was built with.
    """

    def __init__(self, search: QuerySearch, dataset: Dataset, ignore_identical_ids: bool, original: str | None = None):
        if search.searcher is None:
            raise ConfigError(f"{search.root} is not on a local disk; copy the index to one and analyze the copy")
        self.search = search
        self.searcher: Searcher = search.searcher
        self.dataset = dataset
        self.ignores = ignore_identical_ids
        self.embeddings = search.encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
        self.numbers = self.searcher.find(judged_documents(dataset.qrels))
        self._original = None if original is None else self._read_original(original)
        self._retrieved: tuple[int, list[tuple[np.ndarray, np.ndarray]]] | None = None

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
        return [ids for ids, _ in self._tokenized]

    @cached_property
    def _tokenized(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each shard, the vocabulary id of each token, and the number of tokens that its text was encoded with, [T] int64 each."""
        return list(map(self._tokenize, self.searcher.shards))

    def _tokenize(self, shard: IndexShard) -> tuple[np.ndarray, np.ndarray]:
        tokenizer, contract = self.search.encoder.tokenizer, self.search.manifest.contract
        rows = self.searcher.documents(shard.first_document + shard.found_documents)
        pairs = [(row["title"] or "", row["text"] or "") for row in rows]
        texts, titles = [document_text(*pair) for pair in pairs], [title_length(*pair) for pair in pairs]
        ids, lengths = (np.full(int(shard.doc_offsets[-1]), UNKNOWN, np.int64) for _ in range(2))
        for number, found in zip(shard.found_documents.tolist(), tokenizer.documents(texts, titles), strict=True):
            kept = found[~np.isin(found, contract.skip_tokens)]
            first, end = shard.doc_offsets[number], shard.doc_offsets[number + 1]
            if end - first == len(kept):
                ids[first:end], lengths[first:end] = kept, len(found)
        return ids, lengths

    def retrieve(self, k: int) -> Iterator[RetrievedTokens]:
        """Yield the k best document tokens of each query token, for each query."""
        documents = self.searcher.parents(self._owners)
        ids = np.concatenate([ids[tokens] for ids, tokens in zip(self._token_ids, self._live_tokens, strict=True)])
        for number, (tokens, scores) in enumerate(self._nearest(k)):
            rows, ranks = np.indices(tokens.shape).reshape(2, -1)
            flat = tokens.ravel()
            yield RetrievedTokens(self._active(number)[rows], ranks, scores.ravel(), documents[flat], ids[flat])

    def token_runs(self, settings: Sequence[tuple[int, Imputation]], k: int) -> list[Run]:
        """Return the run of engine xtr for each pair of k' and imputation; the tokens are retrieved once.

        Args:
            settings: Values of k' and imputations.
            k: Documents per query.
        """
        most = max(k_prime for k_prime, _ in settings)
        weights = [shard.token_weights(tokens) for shard, tokens in zip(self.searcher.shards, self._live_tokens, strict=True)]
        weights_T = None if weights[0] is None else np.concatenate([each for each in weights if each is not None])
        answers: list[list[TopK]] = [[] for _ in settings]
        found = self._nearest(most)
        for plan, (tokens, scores) in zip(self._plans(XtrParams(k_prime=most), k + self.ignores), found, strict=True):
            assert isinstance(plan, XtrPlan)
            weighted = scores if weights_T is None else (weights_T[tokens] * scores).astype(np.float32)
            plans = []
            for k_prime, imputation in settings:
                part = tokens[:, :k_prime]
                rows = np.repeat(np.arange(len(part)), part.shape[1])
                hits = TokenHits(rows, scores[:, :k_prime].ravel(), self._owners[part.ravel()], weighted[:, :k_prime].ravel())
                plans.append(with_hits(plan, hits, k_prime, imputation))
            loop = StageLoop(plans, [None] * len(plans))
            for call in loop:
                loop.cut(score(call, self.searcher.shards, self.searcher.planner.codec, self.searcher.kernels), self.searcher.kernels)
            for number, answer in enumerate(loop.kept[-1]):
                answers[number].append(answer)
        return [self._run(each, k) for each in answers]

    def _nearest(self, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each query, numbers and similarities of the best document tokens of its active tokens, [n', k] each. Tokens are
        numbered over all live documents. The latest result is kept if it is small."""
        k = min(k, len(self._owners))
        if self._retrieved is None or self._retrieved[0] < k:
            vectors = [self._vectors(number) for number in range(len(self.embeddings))]
            kept = sum(map(len, vectors)) * k * 12 <= KEPT_BYTES
            found = self._each(self._nearest_of(vectors, k), "token retrieval")
            if not kept:
                yield from found
                return
            self._retrieved = k, list(found)
        yield from ((tokens[:, :k], scores[:, :k]) for tokens, scores in self._retrieved[1])

    def _nearest_of(self, vectors: Sequence[np.ndarray], k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def nearest(group: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            tokens, scores = nearest_tokens(np.concatenate(group), self._blocks(), k)
            ends = np.cumsum([len(each) for each in group])[:-1]
            return zip(np.split(tokens.astype(np.uint32), ends), np.split(scores, ends), strict=True)

        self._blocks()  # decodes the vectors once, before the threads
        number = np.cumsum([len(each) for each in vectors]) // QUERY_TOKENS
        groups = [vectors[first:last] for first, last in pairwise([0, *np.flatnonzero(np.diff(number)) + 1, len(vectors)])]
        return (found for group in threads(nearest, groups) for found in group)

    def _vectors(self, number: int) -> np.ndarray:
        """The vectors of the active tokens of a query, [n', D] float32, in the codec's rotation."""
        planner = self.searcher.planner
        [plan] = planner.plan(self.embeddings.slice(number, number + 1), 1, ExactParams())
        return plan.query.vectors[self._active(number)]

    def _active(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.queries[number].active)

    @cached_property
    def _live_tokens(self) -> list[np.ndarray]:
        """For each shard, the numbers of the tokens of live documents."""
        return [shard.tokens(shard.found_documents)[0] for shard in self.searcher.shards]

    @cached_property
    def _owners(self) -> np.ndarray:
        """The document number of each token of live documents, [T] int64."""
        owners = [np.repeat(shard.found_documents, shard.lengths(shard.found_documents)) for shard in self.searcher.shards]
        return np.concatenate([shard.first_document + each for shard, each in zip(self.searcher.shards, owners, strict=True)])

    def _blocks(self) -> Iterable[np.ndarray]:
        """The vectors of all tokens of live documents, [tokens, D] float32 a block, in the codec's rotation."""
        small = self.num_tokens * self.dim * 4 <= DECODED_BYTES
        return self._kept_blocks if small else self._read_blocks()

    @cached_property
    def _kept_blocks(self) -> list[np.ndarray]:
        return list(self._read_blocks())

    def _read_blocks(self) -> Iterator[np.ndarray]:
        planner = self.searcher.planner
        if self._original is not None:
            for start in range(0, len(self._original), BLOCK_TOKENS):
                yield planner.codec.rotate(self._original[start : start + BLOCK_TOKENS].astype(np.float32), planner.kernels)
            return
        for shard, tokens in zip(self.searcher.shards, self._live_tokens, strict=True):
            for start in range(0, len(tokens), BLOCK_TOKENS):
                own = tokens[start : start + BLOCK_TOKENS]
                yield decompress(shard.codes[own], shard.residuals[own], shard.scales[own], planner.codec)

    def _read_original(self, folder: str) -> np.ndarray:
        """The original vectors of all tokens, [T, D] float16."""
        root = storage.absolute(folder)
        manifest = read_manifest(storage.join(root, MANIFEST), EmbeddingsManifest, "jobs.encode")
        if self.search.manifest.config.get("embeddings") != manifest_digest(manifest):
            raise ConfigError(f"{self.search.root} was not built from the embeddings {folder}; give its own, or leave --embeddings out")
        vectors = np.concatenate([block.values for block in read_embeddings(root, manifest)])
        if len(vectors) != len(self._owners):
            raise ConfigError(f"{self.search.root} was updated since it was built from {folder}; build it anew, or leave --embeddings out")
        return vectors

    def sample_vectors(self, count: int, seed: int) -> np.ndarray:
        """Return unit vectors of document tokens, [<= count, D] float32, in the order of the index and in the codec's rotation."""
        num_tokens = len(self._owners)
        chosen = np.sort(np.random.default_rng(seed).permutation(num_tokens)[:count])
        parts, start = [], 0
        for block in self._blocks():
            parts.append(block[chosen[(chosen >= start) & (chosen < start + len(block))] - start])
            start += len(block)
        return normalize(np.concatenate(parts))

    def with_attention(self, changes: AttentionChanges | None) -> "AnalyzedIndex":
        """Return the same index under scorer attention with other settings, without encoding documents or building anew.

        Args:
            changes: Sides with weights, and l. None: no weights at all.
        """
        other, sides = copy.copy(self), "none" if changes is None else changes.sides or self.attention.sides
        other.__dict__.pop("queries", None)
        weights = self._query_attention if sides in ("both", "queries") else np.ones(self.embeddings.num_tokens, np.float32)
        other.embeddings = replace(self.embeddings, weights=weights)
        length = changes.delta_length if changes and changes.delta_length is not None else self.attention.delta_length or 0
        has_weights = sides in ("both", "documents")
        shards = tuple(
            replace(shard, weights=self._weights(shard, lengths, length) if has_weights else None)
            for shard, (_, lengths) in zip(self.searcher.shards, self._tokenized, strict=True)
        )
        other.searcher = Searcher(self.searcher.planner, shards, self.searcher.kernels)
        return other

    @property
    def attention(self) -> AttentionConfig:
        """Settings of the scorer attention that the index was built with."""
        settings = self.search.encoder.model.scorer.settings
        assert isinstance(settings, AttentionConfig)
        return settings

    @cached_property
    def _query_attention(self) -> np.ndarray:
        """The weights e^A of the query tokens."""
        if self.embeddings.weights is not None:
            return self.embeddings.weights
        scorer, settings = self.search.encoder.model.scorer, self.attention
        scorer.settings = settings.model_copy(update={"sides": "both"})
        try:
            weights = self.search.encoder.encode_queries(list(self.dataset.queries.values())).weights
        finally:
            scorer.settings = settings
        assert weights is not None
        return weights

    def _weights(self, shard: IndexShard, lengths_T: np.ndarray, delta_length: int) -> np.ndarray:
        """The document weights of a shard for another l, as it stores them."""
        assert shard.weights is not None
        logarithms, own = np.log1p(shard.weights.astype(np.float64)), self.attention.delta_length
        received = logarithms / np.minimum(1.0, lengths_T / own) if own else logarithms
        return (document_weights(np.stack([received, lengths_T], axis=1), delta_length).astype(np.float64) - 1).astype(np.float16)

    def run(self, engine: Mapping[str, Any], k: int) -> Run:
        """Return the run of an engine, given by its name and parameters."""
        params = _params(engine)
        count = len(self.embeddings)
        starts = range(0, count, QUERIES_AT_ONCE)
        blocks = (self.embeddings.slice(start, min(start + QUERIES_AT_ONCE, count)) for start in starts)
        answers = (self.searcher.search(each, k + self.ignores, params) for each in blocks)
        found = track(answers, params.engine, count, len, "queries")
        return self._run([answer for block in found for answer in block], k)

    def funnels(self, engine: Mapping[str, Any], k: int) -> list[Funnel]:
        """Return how each query went through the stages of an engine, one after another in this process."""
        params = _params(engine)
        self._funnel(0, params, k)  # reads the index into memory
        return [self._funnel(number, params, k) for number in self._each(range(len(self.embeddings)), params.engine)]

    def _funnel(self, number: int, params: EngineConfig, k: int) -> Funnel:
        start = time.perf_counter()
        [plan] = self.searcher.planner.plan(self.embeddings.slice(number, number + 1), k, params)
        planned = time.perf_counter() - start
        loop = self._stages([plan])
        clusters = getattr(plan, "clusters", None)
        candidates = self.num_docs if clusters is None else sum(self._num_candidates(shard, clusters) for shard in self.searcher.shards)
        names = tuple(stage.name for stage in stages_of([plan])[: len(plan.stage_limits)])
        kept = tuple(len(best.documents) for [best] in loop.kept)
        return Funnel(candidates, kept, (planned, *loop.seconds), names)

    def _num_candidates(self, shard: IndexShard, clusters: np.ndarray) -> int:
        found = self.searcher.kernels.candidates(np.unique(clusters), shard)
        return len(found) if shard.live is None else len(np.intersect1d(found, shard.live))

    def candidates(self, engine: Mapping[str, Any], k: int, count: int, weighted: bool) -> list[np.ndarray]:
        """Return the best `count` documents of each query before they are rescored, with query token weights or without.

        Args:
            engine: Name and parameters of engine plaid.
            k: Documents that the search would return.
            count: Candidates of a query, at most.
            weighted: Whether query token weights count. Without weights, every token counts 1.
        """
        params = _params({**engine, "weighted_candidates": weighted})
        found = []
        for plan in self._each(self._plans(params, k), f"{params.engine}, {'weighted' if weighted else 'unweighted'}"):
            kept = self._stages([plan]).kept
            found.append(np.sort(kept[-2 if len(kept) > 1 else -1][0].documents[:count]))
        return found

    def rescore(self, documents: Sequence[np.ndarray], k: int) -> Run:
        """Return the exact ranking of given documents for each query."""
        answers = [
            self.searcher.search(self.embeddings.slice(number, number + 1), k + self.ignores, ExactParams(), only=each)[0]
            for number, each in enumerate(self._each(documents, "exact scores of candidates"))
        ]
        return self._run(answers, k)

    def evaluate(self, run: Run, measure: str) -> np.ndarray:
        """Return the measure of each query, [Q] float64."""
        [values] = metrics.evaluate(run, self.dataset.qrels, [measure]).values()
        return np.array([values[query_id] for query_id in self.dataset.queries])

    def without_relations(self, k: int) -> Run:
        """Return the exact ranking by the scorer without its relation terms."""
        plans = (replace(plan, scorer_terms=None) for plan in self._each(self._plans(ExactParams(), k + self.ignores), "without relations"))
        return self._run([self._stages([plan]).kept[-1][0] for plan in plans], k)

    def matches(self, query: int, doc_id: str) -> list[MatchedToken]:
        """Return the matches of a query in a document, with and without relation terms."""
        [plan] = self.searcher.planner.plan(self.embeddings.slice(query, query + 1), 1, ExactParams())
        number = self.numbers[doc_id]
        shard, codec = shard_of(self.searcher.shards, number), self.searcher.planner.codec
        found, plain = (match_tokens(each, shard, codec, number) for each in (plan, replace(plan, scorer_terms=None)))
        [row] = self.searcher.documents([number])
        pair = row["title"] or "", row["text"] or ""
        pieces = self.search.encoder.tokenizer.document_spans(document_text(*pair), title_length(*pair)).pieces
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

    def _each(self, items: Iterable[Item], phase: str) -> Iterator[Item]:
        """Yield one item a query, and report progress."""
        return track(items, phase, len(self.embeddings), lambda _: 1, "queries")

    def _plans(self, params: EngineConfig, k: int) -> Iterator[QueryPlan]:
        """The plan of each query, one at a time, so that memory holds the tables of one query."""
        for number in range(len(self.embeddings)):
            yield self.searcher.planner.plan(self.embeddings.slice(number, number + 1), k, params)[0]

    def _stages(self, plans: Sequence[QueryPlan]) -> StageLoop:
        return run_stages(plans, self.searcher.shards, self.searcher.planner.codec, self.searcher.kernels, [None] * len(plans))

    def _run(self, answers: Sequence[TopK], k: int) -> Run:
        run: Run = {
            query_id: list(zip(self.searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
            for query_id, answer in zip(self.dataset.queries, answers, strict=True)
        }
        run = metrics.without_identical_ids(run) if self.ignores else run
        return {query_id: _best_of_each(ranking)[:k] for query_id, ranking in run.items()}


def _best_of_each(ranking: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the best entry of each document. An index of passages can return several passages of one document."""
    best: dict[str, float] = {}
    for doc_id, value in ranking:
        best.setdefault(doc_id, value)
    return list(best.items())


def _params(engine: Mapping[str, Any]) -> EngineConfig:
    name = engine.get("engine")
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; the engines are {', '.join(ENGINES)}")
    try:
        return ENGINES[name].params(**engine)
    except ValidationError as error:
        raise ConfigError(f"engine {name}: {error.errors()[0]['msg']}") from None
