"""Explanations of one document for one query: the document token that each query token matches, and the stage that dropped the document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ray_lir.base.arguments import whole_number
from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.corpus.records import document_text
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, check_embeddings
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines.engine import Fusion, Stage
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.engines.registry import engine_of, stages_of
from ray_lir.engines.scoring.maxsim import match
from ray_lir.engines.stages import StageCall, run_stage, run_stages
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.filters import Filters
from ray_lir.index.residuals import decompress
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels
from ray_lir.search.grouping import best_of_documents, first_depth, next_depth
from ray_lir.search.searcher import Searcher

MAX_NUMBER = 2**63 - 1
StageScores = tuple[float | None, ...]
"""A document's scores in one stage, one for each column; None for a column that does not score it."""
BLOCK_TOKENS = 1 << 16
"""Tokens of a document that are decompressed at a time to find matches."""
KEPT_OUT = {"filters": "left out by the filter", "deleted": "the document is deleted"}
"""Reasons why a document is not searched, with their texts."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenMatches(ShortRepr):
    """The matches of a query's n tokens in one document, by the scorer of the index; empty arrays for a document without tokens.

    Attributes:
        tokens: [n] int64, matched tokens, counted from the first vector of the document.
        similarities: [n] float32, dot products of the query vectors with the decompressed document vectors.
        contributions: [n] float32, the scorer's term for each query token. For MaxSim it is the similarity times the weights of both
            tokens. The sum is the document's exact score, up to the rounding of the kernels.
        windows: [n, 3] int64, the window of each matched token: its first token, counted like `tokens`, and its first and end character in
            the document. None if the document is not stored in windows.
        is_passage: Whether the document is a passage; its title and text are then those of the passage.
    """

    tokens: np.ndarray
    similarities: np.ndarray
    contributions: np.ndarray
    windows: np.ndarray | None = None
    is_passage: bool = False


@dataclass(frozen=True)
class StageTrace:
    """The result of one stage for the explained document.

    Attributes:
        name: Name of the stage.
        what: What the stage scores, in one sentence.
        score: The document's score, even if an earlier stage dropped it; None if this stage does not score it.
        cut: The lowest score that the stage kept; None if it scored fewer documents than it may keep.
        num_kept: Number of documents that the stage kept.
        survived: Whether the stage kept the document.
    """

    name: str
    what: str
    score: float | None
    cut: float | None
    num_kept: int
    survived: bool


class CountsTokens(Protocol):
    """The part of an encoder's tokenizer that `explain` uses."""

    def document_truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Return how many tokens each text has, and how many of them are encoded."""
        ...


@dataclass(frozen=True)
class Trace:
    """The results of all stages of an engine for one document.

    Attributes:
        stages: The result of each stage.
        rank: Rank of the document in the answer, from 1; None if the document is not in it.
        dropped_at: Name of the stage that dropped the document, or "filters", or "deleted"; None if the document is in the answer.
        reason: The outcome in one sentence.
        truncation: How many of the document's tokens are in the index; None if no tokenizer was passed to count them.
    """

    stages: list[StageTrace]
    rank: int | None
    dropped_at: str | None
    reason: str
    truncation: Truncation | None = None

    @property
    def score(self) -> float | None:
        """Score of the document in the last stage; None if that stage does not score it."""
        return self.stages[-1].score


def explain(
    searcher: Searcher,
    query: TokenEmbeddings,
    number: int,
    k: int = 10,
    engine: str | EngineConfig = "auto",
    filters: Filters | Mapping[str, Any] | str | None = None,
    tokenizer: CountsTokens | None = None,
) -> tuple[Trace, TokenMatches]:
    """Run a search, and report the result of each stage for one document.

    Args:
        searcher: The opened index.
        query: Token embeddings of one query.
        number: Number of the document.
        k: Documents to return, as in the search.
        engine: Engine of the search: auto, a name, or an engine's parameters.
        filters: Filters of the search; None if it had none.
        tokenizer: Tokenizer of the index's encoder (`encoder.tokenizer`), which shows whether the document was truncated at
            `document_length`; None to leave this out.

    Returns:
        The trace of the document, and the matches of the query's tokens in it.

    Raises:
        ConfigError: The document does not exist, there is more than one query, or the engine or the filters are not valid.
    """
    query = check_embeddings("query", query)
    filters = None if filters is None else Filters.of(filters)
    number = whole_number("number", number, 0, MAX_NUMBER)
    if len(query) != 1:
        raise ConfigError(f"one query is explained at a time, not {len(query)}; use query.slice(i, i + 1)")
    allowed = None if filters is None else searcher.matching(filters)
    codec, kernels = searcher.planner.codec, searcher.kernels
    plan, answers, number = _searched(searcher, query, number, k, engine, allowed)
    shard = shard_of(searcher.shards, number)
    scores = stage_scores(plan, shard, codec, kernels, number)
    truncation = None
    if tokenizer is not None and not searcher.manifest.contract.windows:
        [fields] = searcher.documents([number])
        [truncation] = tokenizer.document_truncations([document_text(fields["title"], fields["text"])])
    followed = trace(plan, answers, scores, number, kept_out(shard, number, filters), truncation)
    return followed, match_tokens(plan, shard, codec, number)


def _searched(
    searcher: Searcher, query: TokenEmbeddings, number: int, k: int, engine: str | EngineConfig, allowed: np.ndarray | None
) -> tuple[QueryPlan, list[TopK], int]:
    """Run a search. Return its plan, the documents that each stage kept, and the number of the document.

    In an index of passages, the last stage's passages are grouped by document, and the number is that of the document's best passage.
    """
    shard_of(searcher.shards, number)  # it exists
    depth = first_depth(k) if searcher.manifest.contract.has_passages else k
    while True:
        plans = searcher.planner.plan(query, depth, engine)
        loop = run_stages(plans, searcher.shards, searcher.planner.codec, searcher.kernels, [allowed])
        answers = [best for [best] in loop.kept]
        if not searcher.manifest.contract.has_passages:
            return loop.plans[0], answers, number
        owners = searcher.parents(answers[-1].documents)
        grouped = best_of_documents(answers[-1], owners.tolist(), k)
        deeper = next_depth(answers[-1:], [grouped], k, depth)
        if deeper is None:
            passages = searcher.passages_of(number)
            shown = grouped.documents[np.isin(grouped.documents, passages)]
            best = shown if len(shown) else searcher.search(query, 1, "exact", only=passages)[0].documents
            return loop.plans[0], [*answers[:-1], grouped], int(best[0]) if len(best) else number
        depth = deeper


def shard_of(shards: Sequence[IndexShard], number: int) -> IndexShard:
    """Return the shard that holds a document.

    Raises:
        ConfigError: None of the shards holds it.
    """
    for shard in shards:
        if shard.first_document <= number < shard.first_document + shard.num_docs:
            return shard
    raise ConfigError(f"there is no document number {number} here")


def match_tokens(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, number: int) -> TokenMatches:
    """Return the document token that matches each query token; ties go to the first document token.

    Args:
        plan: The plan of a query of n tokens.
        shard: The shard that holds the document.
        codec: The codec of the index.
        number: Number of the document in the index.
    """
    tokens, _ = shard.tokens(np.array([number - shard.first_document]))
    if not len(tokens):
        return TokenMatches(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
    best, similarities, terms = _match(plan, shard, codec, tokens)
    windows = shard.windows_of(tokens[best])
    if windows is not None:
        windows[:, 0] -= tokens[0]
    if plan.query.norms is not None:
        similarities = similarities * plan.query.norms
    return TokenMatches(best, similarities.astype(np.float32), (plan.query.weights * terms).astype(np.float32), windows, shard.of_passages)


def _match(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `match` of a document's tokens. A document of more than BLOCK_TOKENS tokens first loses, block by block, all tokens that no
    query token matches within their block, so that memory stays bounded."""

    def matched(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        vectors_TD = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
        return match(plan, vectors_TD, shard.token_weights(tokens), codec)

    if len(tokens) <= BLOCK_TOKENS:
        return matched(tokens)
    starts = range(0, len(tokens), BLOCK_TOKENS)
    kept = np.concatenate([start + np.unique(matched(tokens[start : start + BLOCK_TOKENS])[0]) for start in starts])
    best, similarities, terms = matched(tokens[kept])
    return kept[best], similarities, terms


def stage_scores(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, number: int) -> list[StageScores]:
    """Return the document's scores in each stage, as if no earlier stage had dropped it.

    Args:
        plan: The plan of the query.
        shard: The shard that holds the document.
        codec: The codec of the index.
        kernels: The kernels that score documents.
        number: Number of the document in the index.

    Returns:
        For each stage one score for each of its columns; None for a column that does not score the document.
    """
    uncut = replace(plan, stage_limits=(shard.num_docs,) * len(plan.stage_limits))
    scores: list[StageScores] = []
    for stage in range(len(plan.stage_limits)):
        call = StageCall([uncut], stage, [None if stage == 0 else np.array([number])], [shard.num_docs])
        [answer] = run_stage(call, [shard], codec, kernels)
        found = np.flatnonzero(answer.documents == number)
        columns = len(call.stage.columns) or 1
        row = np.atleast_1d(answer.scores[found[0]]).tolist() if len(found) else [-np.inf] * columns
        scores.append(tuple(score if score > -np.inf else None for score in row))
    return scores


def kept_out(shard: IndexShard, number: int, filters: Filters | None) -> str | None:
    """Return why a document is not searched.

    Args:
        shard: The shard that holds the document.
        number: Number of the document in the index.
        filters: Filters of the search; None if it had none.

    Returns:
        "deleted" or "filters"; None if the document is searched.
    """
    row = number - shard.first_document
    if shard.deleted is not None and row in shard.deleted:
        return "deleted"
    return "filters" if filters is not None and row not in shard.matching(filters) else None


def trace(
    plan: QueryPlan,
    answers: Sequence[TopK],
    scores: Sequence[StageScores],
    number: int,
    kept_out: str | None = None,
    truncation: Truncation | None = None,
) -> Trace:
    """Return the trace of a document from the results of the stages.

    Args:
        plan: The plan of the query.
        answers: The documents that each stage kept, over all shards, and the result of the engine's fusion, if it has one.
        scores: The document's scores in each stage (`stage_scores`).
        number: Number of the document in the index.
        kept_out: Why the document is not searched (`kept_out`); None if it is.
        truncation: How many of the document's tokens are in the index; None if unknown.
    """
    found = _trace(plan, answers, scores, number, kept_out)
    if truncation is None or not truncation.is_cut:
        return replace(found, truncation=truncation)
    note = f"the document was cut: only {truncation} are indexed, and the rest matches no query"
    return replace(found, truncation=truncation, reason=f"{found.reason}; {note}")


def _trace(plan: QueryPlan, answers: Sequence[TopK], scores: Sequence[StageScores], number: int, kept_out: str | None) -> Trace:
    engine = engine_of([plan])
    by_stage = [
        _stage_traces(stage, answer, columns, limit, number)
        for stage, answer, columns, limit in zip(stages_of([plan]), answers, scores, plan.stage_limits, strict=False)
    ]
    if engine.fusion:
        by_stage.append([_fusion_trace(engine.fusion, plan, answers, number)])
    stages = [trace for traces in by_stage for trace in traces]
    if kept_out:
        return Trace(stages, None, kept_out, KEPT_OUT[kept_out])
    dropped_at = next((traces for traces in by_stage if not any(trace.survived for trace in traces)), None)
    if dropped_at:
        return Trace(stages, None, dropped_at[0].name, "; ".join(map(_reason, dropped_at)))
    rank = int(np.flatnonzero(answers[-1].documents == number)[0]) + 1
    return Trace(stages, rank, None, f"found at rank {rank} of {stages[-1].num_kept}")


def _stage_traces(stage: Stage[Any], answer: TopK, scores: StageScores, limit: int, number: int) -> list[StageTrace]:
    """Return the trace of each column of a stage; one for a stage with one score."""
    columns = stage.columns or ((stage.name, stage.description),)
    kept = answer.scores[:, None] if answer.scores.ndim == 1 else answer.scores
    traces = []
    for column, ((name, what), score) in enumerate(zip(columns, scores, strict=True)):
        rows = np.flatnonzero(kept[:, column] > -np.inf) if stage.columns else np.arange(len(kept))
        cut = float(kept[rows, column].min()) if len(rows) == limit else None
        traces.append(StageTrace(name, what, score, cut, len(rows), bool(np.isin(number, answer.documents[rows]))))
    return traces


def _fusion_trace(fusion: Fusion[Any], plan: Any, answers: Sequence[TopK], number: int) -> StageTrace:
    *stages, kept = answers
    everything = fusion.run(replace(plan, k=len(stages[-1].documents)), stages)
    found = np.flatnonzero(everything.documents == number)
    return StageTrace(
        name=fusion.name,
        what=fusion.description,
        score=float(everything.scores[found[0]]) if len(found) else None,
        cut=float(kept.scores[-1]) if len(kept.scores) == plan.k else None,
        num_kept=len(kept.documents),
        survived=bool(np.isin(number, kept.documents)),
    )


def _reason(stage: StageTrace) -> str:
    if stage.score is None or stage.cut is None:
        return f"{stage.name} did not score it; it scores: {stage.what}"
    below = "below" if stage.score < stage.cut else "no better than"
    return f"{stage.name} gave it {stage.score:.4f}, {below} {stage.cut:.4f}, the lowest of the {stage.num_kept} that were kept"


def in_fields(spans: np.ndarray, title: str, text: str) -> list[tuple[str, int, int] | None]:
    """Return the positions of tokens in the title or the text of a document.

    Args:
        spans: [T, 2] int64, first and end character of each token in `document_text(title, text)`; -1 for a token outside it.
        title: Title of the document.
        text: Text of the document.

    Returns:
        For each token (field, first, end), the field being "title" or "text"; None for a token outside both.
    """
    joined = f"{title} {text}"
    shift = len(joined) - len(joined.lstrip())
    begin = len(title) + 1 - shift
    return [_in_field(int(first), int(end), begin, shift, len(title)) for first, end in spans]


def _in_field(first: int, end: int, begin: int, shift: int, len_title: int) -> tuple[str, int, int] | None:
    if first < 0:
        return None
    if end > begin:
        return "text", max(first - begin, 0), end - begin
    return "title", first + shift, min(end + shift, len_title)
