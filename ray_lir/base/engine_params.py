"""The engines' parameters, as searches and requests carry them. They are apart from the engines, so that a client loads no NumPy."""

from typing import Annotated, Literal

from pydantic import Field

from ray_lir.base.config import Config

Imputation = Literal["min", "mean", "p10", "power_law", "zero"]


class ExactParams(Config):
    """Exact scoring has no parameters."""

    engine: Literal["exact"] = "exact"


class ScanParams(Config):
    """How far a scan looks before it scores exactly."""

    engine: Literal["scan"] = "scan"
    ncandidates: int | None = Field(None, ge=1)
    """Documents rescored exactly. None: 4 k, or as many as the size of the index and the length of the query ask for if that is more; four
    times that if vector lengths differ."""
    share: float = Field(1, gt=0)
    """Of that default so much, where ncandidates is None: what qualities and jobs.tune say, for queries of any length and any k."""


class PlaidParams(Config):
    """The three knobs of PLAID; defaults follow k."""

    engine: Literal["plaid"] = "plaid"
    nprobe: int | None = Field(None, ge=1)
    """Centroids probed for each query token. None: 2 for k up to 10, 4 up to 100, else 8; four times that if vector lengths differ."""
    centroid_score_threshold: float | None = None
    """Centroids that score below this for every query token are pruned in the second stage; it is multiplied with the mean length of the
    vectors if lengths differ. Documents without any other centroid rank after all others. None: 0.5, 0.45 or 0.4 for the same k."""
    ncandidates: int | None = Field(None, ge=1)
    """Documents kept by the second stage; a quarter of them is rescored. None: max(1024, 4 k) for k up to 100, else max(4096, 4 k)."""


class WarpParams(Config):
    """WARP's knobs, and how many of its candidates are rescored exactly."""

    engine: Literal["warp"] = "warp"
    nprobe: int | None = Field(None, ge=1)
    """Cells scored for each query token. None: 16, or more for a query of less than 21 tokens, so that as many are scored in all; four
    times as many if vectors differ in length."""
    t_prime: int | None = Field(None, ge=1)
    """A document not seen for a query token is given the score of the centroid at which this many tokens have been passed.
    None: tokens a centroid x nprobe x half the query tokens, within 5,000 and 200,000 (docs/algorithms.md#42-parameters)."""
    bound: int | None = Field(None, ge=1)
    """Centroids passed on the way to t_prime, at most. None: 8 nprobe, or 5% of all if that is more."""
    rescore: int | None = Field(None, ge=0)
    """Candidates rescored exactly; 0 gives WARP's own scores. None: 8 k, or twice what scan rescores if that is more."""
    share: float = Field(1, gt=0)
    """Of that default so much, where rescore is None (ScanParams.share)."""
    floor_at_imputed: bool = False
    """Let no seen score fall below the imputed one (docs/algorithms.md#43-choices)."""


class XtrParams(Config):
    """Parameters of the engine xtr: token retrieval with FAISS, and imputation."""

    engine: Literal["xtr"] = "xtr"
    k_prime: int | None = Field(None, ge=1)
    """Tokens retrieved for each query token, of the whole index. None: 4,000, or 4 k if that is more."""
    imputation: Imputation = "min"
    """What a query token scores in a document none of whose tokens it retrieved: the least of the retrieved scores, their mean, their
    10th percentile, what a power law through them says of much lower ranks, or nothing."""
    nprobe: int | None = Field(None, ge=1)
    """Cells of the codec that are looked into for each query token. None: all, so that the best tokens are found for certain."""
    rescore: int = Field(0, ge=0)
    """Candidates rescored exactly; 0 gives XTR's own scores."""


PARAMS: dict[str, type[Config]] = {
    "exact": ExactParams,
    "scan": ScanParams,
    "plaid": PlaidParams,
    "warp": WarpParams,
    "xtr": XtrParams,
}
IN_PROCESS = ("xtr",)
"""Engines that must have all shards in one process."""
SERVED = tuple(name for name in PARAMS if name not in IN_PROCESS)
"""Engines that a service has."""
EngineParams = Annotated[ExactParams | ScanParams | PlaidParams | WarpParams | XtrParams, Field(discriminator="engine")]
