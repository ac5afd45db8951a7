"""What an analysis is, and what it can ask of a model: one index with the judged queries of one data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from ray_lir.base.config import AttentionChanges, AttentionConfig, Config
from ray_lir.base.short_repr import ShortRepr
from ray_lir.evaluation import metrics
from ray_lir.evaluation.runs import Run

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Imputation = Literal["min", "mean", "p10", "power_law", "zero"]
"""How engine xtr scores a query token in a document without a retrieved token for it."""
Numbers = dict[str, Any]
"""The result of an analysis of one model, as JSON values."""


WITHOUT_CUTOFF = 100
"""Documents of a run for a measure without a cutoff, such as AP, as in jobs.evaluate."""


class AnalysisSettings(Config):
    """Settings of the analyses."""

    tokens_per_query_token: int = Field(default=1000, ge=1)
    """Document tokens retrieved for each query token."""
    sampled_tokens: int = Field(default=100_000, ge=2)
    """Document tokens whose vectors are compared with each other."""
    k_primes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(100, 1000, 4000, 10_000, 40_000), min_length=1)
    """Values of k' for quality against k'. Values above a twentieth of the index's tokens are left out."""
    candidates: int = Field(default=256, ge=1)
    """Candidates that PLAID rescores exactly, and the cutoff of the recall of candidates."""
    measure: str = "nDCG@10"
    """Measure of quality, in the notation of ir-measures."""
    examples: int = Field(default=5, ge=0)
    """Examples of rank changes."""
    delta_lengths: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(100, 150, 200, 300, 0), min_length=1)
    """Values of l for the weights of the scorer attention. 0: e^A always."""
    tagger: str = "auto"
    """Model of spaCy for parts of speech. auto: an installed English model."""
    seed: int = 0
    """Seed of samples."""


@dataclass(frozen=True, eq=False, repr=False)
class JudgedQuery(ShortRepr):
    """A judged query with n token vectors.

    Attributes:
        query_id: Id of the query.
        text: Its text.
        pieces: [n] tokens as the vocabulary spells them.
        spans: [n, 2] int64, first and end character of each token in the text; -1, -1 for special tokens and expansion tokens.
        token_ids: [n] int64 vocabulary ids; -1 if unknown.
        weights: [n] float32 token weights; None if the scorer does not weight query tokens.
        active: [n] bool, whether the token takes part in scores.
        relevant: Document numbers of the index that are judged above 0.
    """

    query_id: str
    text: str
    pieces: Sequence[str]
    spans: np.ndarray
    token_ids: np.ndarray
    weights: np.ndarray | None
    active: np.ndarray
    relevant: np.ndarray

    @property
    def is_word(self) -> np.ndarray:
        """[n] bool, whether the token is part of the text and takes part in scores."""
        return self.active & (self.spans[:, 0] >= 0)


@dataclass(frozen=True, eq=False, repr=False)
class RetrievedTokens(ShortRepr):
    """The document tokens that are most similar to the tokens of one query: grouped by query token, best first.

    Attributes:
        rows: [H] int64, position of the query token among all n tokens of the query.
        ranks: [H] int64, rank among the tokens retrieved for the query token, from 0.
        scores: [H] float32, similarities.
        documents: [H] int64, document numbers.
        token_ids: [H] int64, vocabulary ids of the document tokens; -1 if unknown.
    """

    rows: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    documents: np.ndarray
    token_ids: np.ndarray


@dataclass(frozen=True)
class Funnel:
    """How one query went through the stages of an engine.

    Attributes:
        candidates: Documents with a token in a probed cluster.
        kept: Documents that each stage kept.
        seconds: Time of planning, then of each stage.
        stages: Names of the stages.
    """

    candidates: int
    kept: tuple[int, ...]
    seconds: tuple[float, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class MatchedToken:
    """The match of one query token in a document.

    Attributes:
        query_token: The query token.
        document_token: The matched token.
        plain_token: The token that is matched without relations.
        contribution: The term of the score.
        plain_contribution: The term without relations.
    """

    query_token: str
    document_token: str
    plain_token: str
    contribution: float
    plain_contribution: float


class AnalyzedModel(Protocol):
    """One index and the judged queries of a data set, as an analysis sees them."""

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        ...

    @property
    def num_docs(self) -> int:
        """Number of live documents."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of tokens of live documents."""
        ...

    @property
    def dim(self) -> int:
        """Dimensions of a token vector."""
        ...

    @property
    def queries(self) -> Sequence[JudgedQuery]:
        """The judged queries."""
        ...

    @property
    def knows_document_tokens(self) -> bool:
        """Whether the vocabulary ids of document tokens are known: the index holds texts, and its vectors are not pooled."""
        ...

    def retrieve(self, k: int) -> Iterator[RetrievedTokens]:
        """Yield the k best document tokens of each query token, for each query."""
        ...

    def sample_vectors(self, count: int, seed: int) -> np.ndarray:
        """Return unit vectors of document tokens, [<= count, D] float32."""
        ...

    def run(self, engine: Mapping[str, Any], k: int) -> Run:
        """Return the run of an engine, given by its name and parameters."""
        ...

    def token_runs(self, settings: Sequence[tuple[int, Imputation]], k: int) -> list[Run]:
        """Return the run of engine xtr for each pair of k' and imputation."""
        ...

    @property
    def attention(self) -> AttentionConfig:
        """Settings of the scorer attention; other scorers have none."""
        ...

    def with_attention(self, changes: AttentionChanges | None) -> "AnalyzedModel":
        """Return the model with other settings of the scorer attention; None: without any weights."""
        ...

    def funnels(self, engine: Mapping[str, Any], k: int) -> list[Funnel]:
        """Return how each query went through the stages of an engine, one after another in this process."""
        ...

    def candidates(self, engine: Mapping[str, Any], k: int, count: int, weighted: bool) -> list[np.ndarray]:
        """Return the best `count` documents of each query before they are rescored, with query token weights or without.

        Args:
            engine: Name and parameters of an engine.
            k: Documents that the search would return.
            count: Candidates of a query, at most.
            weighted: Whether query token weights count. Without weights, every token counts 1.
        """
        ...

    def rescore(self, documents: Sequence[np.ndarray], k: int) -> Run:
        """Return the exact ranking of given documents for each query."""
        ...

    def evaluate(self, run: Run, measure: str) -> np.ndarray:
        """Return the measure of each query, [Q] float64."""
        ...

    def relevant_ids(self, query: int) -> list[str]:
        """Return the ids of the documents that are judged above 0 for a query."""
        ...

    def without_relations(self, k: int) -> Run:
        """Return the exact ranking by the scorer without its relation terms."""
        ...

    def matches(self, query: int, doc_id: str) -> list[MatchedToken]:
        """Return the matches of a query in a document, with and without relation terms."""
        ...


@dataclass(frozen=True)
class Analysis:
    """One analysis of the papers.

    Attributes:
        title: What it shows.
        source: The figure or table that it reproduces.
        run: Computes the numbers of one model.
        draw: Draws the numbers of several models, by name, into a figure.
        missing: Returns what a model lacks for this analysis; None if it lacks nothing.
    """

    title: str
    source: str
    run: Callable[[AnalyzedModel, AnalysisSettings], Numbers]
    draw: Callable[["Figure", Mapping[str, Numbers]], None]
    missing: Callable[[AnalyzedModel, AnalysisSettings], str | None] = lambda model, settings: None


def lacks_weights(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what a model without query token weights lacks; None if it has them."""
    if all(query.weights is not None for query in model.queries):
        return None
    return f"the scorer {model.scorer} has no query token weights; analyze an index of the scorer trial or attention"


def depth(settings: AnalysisSettings, k: int) -> int:
    """Return how many documents a run needs: `k`, or more if the measure looks deeper."""
    return max(k, metrics.cutoff(settings.measure) or WITHOUT_CUTOFF)


def plain_numbers(axis: "Axis") -> None:
    """Write the powers of ten on a logarithmic axis as plain numbers."""
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")


def rounded(values: Sequence[float] | np.ndarray, digits: int = 6) -> list[float]:
    """Return values as a list of rounded floats."""
    return np.round(np.asarray(values, np.float64), digits).tolist()
