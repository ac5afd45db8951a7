"""bm25: score documents by the terms of the query, from the lexical postings of the index (docs/algorithms.md#102-bm25)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.engines.engine import Allowed, Engine, Scored, Stage
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class Bm25Config(EngineConfig):
    """Parameters of BM25."""

    method: Literal["lucene", "robertson"] = "lucene"
    """Weight of a term that df of N documents hold. lucene: ln(1 + (N - df + .5) / (df + .5)), which is above 0. robertson: ln((N - df +
    .5) / (df + .5)), or 0 for a term in more than half of the documents."""
    k1: float = Field(1.2, ge=0, allow_inf_nan=False)
    """Saturation of repeated terms: with 0, only the presence of a term counts."""
    b: float = Field(0.75, ge=0, le=1)
    """How much long documents are penalized: 0 not at all, 1 in proportion to their length."""


class Bm25Params(Bm25Config):
    """Parameters of engine bm25."""

    engine: Literal["bm25"] = "bm25"


@dataclass(frozen=True, eq=False, repr=False)
class LexicalQuery(ShortRepr):
    """The terms of a query that live documents hold.

    Attributes:
        terms: Distinct terms, in ascending order. Scores are added in this order, so that they do not depend on the order in the query.
        weights: [terms] float64, weight of the term times its number of occurrences in the query.
        mean_length: Mean number of terms of a live document.
        k1: See `Bm25Config`.
        b: See `Bm25Config`.
    """

    terms: tuple[str, ...]
    weights: np.ndarray
    mean_length: float
    k1: float
    b: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bm25Plan(QueryPlan):
    """The plan of one query.

    Attributes:
        terms: The terms of the query.
    """

    terms: LexicalQuery


def lexical_query(query: Query, statistics: IndexStatistics, params: Bm25Config) -> LexicalQuery:
    """Return the terms of a query with their weights.

    Args:
        query: The query.
        statistics: Statistics of the index.
        params: The parameters of BM25.
    Raises:
        ConfigError: The index has no lexical postings, or the query has no text.
    """
    lexical = statistics.lexical
    if lexical is None:
        raise ConfigError(
            f"engine {params.engine} needs lexical postings, and this index has none; build it with --lexical (IndexConfig(lexical=True)), "
            "or add them with ray-lir compact --lexical"
        )
    if query.text is None:
        raise ConfigError(
            f"engine {params.engine} needs the text of each query, and these token embeddings have none; encode them with "
            "Encoder.encode_queries, or give TokenEmbeddings texts=[...]"
        )
    from ray_lir.corpus.analysis import analyzer  # regular expressions and stemmers take tens of milliseconds to load

    counts = Counter(analyzer(lexical.stemmer).terms(query.text))
    found = [(term, count, frequency) for term, count in sorted(counts.items()) if (frequency := lexical.frequency(term))]
    frequencies = np.array([frequency for _, _, frequency in found], np.float64)
    odds = (lexical.num_docs - frequencies + 0.5) / (frequencies + 0.5)
    weights = np.log1p(odds) if params.method == "lucene" else np.log(np.maximum(odds, 1))
    return LexicalQuery(
        tuple(term for term, _, _ in found), weights * [count for _, count, _ in found], lexical.mean_length, params.k1, params.b
    )


def bm25_scores(query: LexicalQuery, shard: IndexShard) -> np.ndarray:
    """Return the BM25 scores of all documents of a shard: [N] float32, -inf for a document without a term of the query.

    Source: docs/algorithms.md#102-bm25
    """
    assert shard.lexical is not None  # lexical_query has checked that the index has postings
    scores, holds = np.zeros(shard.num_docs), np.zeros(shard.num_docs, bool)
    for term, weight in zip(query.terms, query.weights.tolist(), strict=True):
        found = shard.lexical.of_term(term)
        if found is not None:
            documents, counts = found
            lengths = shard.lexical.lengths[documents]
            scores[documents] += weight * counts / (query.k1 * (1 - query.b + query.b * lengths / query.mean_length) + counts)
            holds[documents] = True
    return np.where(holds, scores, -np.inf).astype(np.float32)


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: Bm25Params, k: int, kernels: Kernels) -> Bm25Plan:
    return Bm25Plan(query=query, params=params, stage_limits=(k,), terms=lexical_query(query, statistics, params))


def _score_terms(
    plans: Sequence[Bm25Plan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    return [
        best_by_terms(plan.terms, shard, kernels, allowed, plan.stage_limits[0]) for plan, allowed in zip(plans, documents, strict=True)
    ]


def best_by_terms(query: LexicalQuery, shard: IndexShard, kernels: Kernels, allowed: Allowed, limit: int) -> Scored:
    """Return the best documents of a shard by BM25 that hold a term of the query.

    Args:
        query: The terms of the query.
        shard: The shard.
        kernels: The kernels that select the top documents.
        allowed: Numbers inside the shard of the documents that may be found, ascending; None for all documents.
        limit: Documents to return, at most.
    Returns:
        Scores [<= limit] float32, descending, and numbers inside the shard [<= limit] int64.
    """
    scores = bm25_scores(query, shard)
    holders = np.flatnonzero(scores > -np.inf)
    return kernels.top_k(*among(scores[holders], holders, allowed), limit)


SCORE_TERMS = Stage("score_terms", "The BM25 score of every document that holds a term of the query.", _score_terms)
ENGINE = Engine(
    description="scores every document that holds a term of the query by BM25, without vectors",
    params=Bm25Params,
    plan=_plan,
    stages=(SCORE_TERMS,),
    lexical=True,
)
