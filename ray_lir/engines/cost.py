"""What a query costs, from the index's statistics and measured times: how `auto` chooses, and how capacity is planned.

Times are nanoseconds of one core for a query of 32 tokens of 128 dimensions; products grow with both. All but cuda were timed with
bench/kernels/cost.py (bench/results/cost.json, one processor); cuda is an estimate from the data sheet. Each engine adds up its own cost.
"""

from dataclasses import dataclass

from ray_lir.engines.plan import IndexStatistics

QUERY_TOKENS = 32
DIM = 128


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of a kernel set for one operation.

    Attributes:
        token: score a document token from its code and residual.
        centroid: score a centroid.
        byte_table: write the scores of a centroid as bytes, for a scan.
        code: score a document token by its code alone.
        probe: examine a centroid when clusters are probed.
        posting: score a query token with a token of a probed cluster.
        query: fixed part of a query.
    """

    token: float
    centroid: float
    byte_table: float
    code: float
    probe: float
    posting: float
    query: float = 250_000


COSTS = {
    "reference": Costs(token=1230, centroid=56, byte_table=0, code=96, probe=3250, posting=1120),
    "native:portable": Costs(token=1600, centroid=1200, byte_table=97, code=2.4, probe=78, posting=120),
    "native:avx2": Costs(token=50, centroid=61, byte_table=6.5, code=0.37, probe=36, posting=18),
    "native:avx512_vnni": Costs(token=20, centroid=30, byte_table=4.6, code=0.37, probe=36, posting=16),
    "native:amx_int8": Costs(token=9.0, centroid=18, byte_table=4.0, code=0.40, probe=34, posting=17),
    "cuda": Costs(token=0.1, centroid=0.1, byte_table=0, code=0.05, probe=20, posting=1),
}


@dataclass(frozen=True)
class QueryCost:
    """Milliseconds of one core for one query over the whole index: planning, then each stage."""

    plan: float
    stages: tuple[float, ...]

    @property
    def total(self) -> float:
        """Return the sum of all parts."""
        return self.plan + sum(self.stages)

    @classmethod
    def of(cls, plan_ns: float, *stages_ns: float) -> "QueryCost":
        """Return a cost given in nanoseconds."""
        return cls(plan_ns / 1e6, tuple(stage / 1e6 for stage in stages_ns))


def width(statistics: IndexStatistics) -> float:
    """Return the dimensions of the index in units of the dimensions that were timed."""
    return statistics.dim / DIM


def plan_ns(statistics: IndexStatistics, costs: Costs) -> float:
    """Return the fixed part of a query and the time to score all centroids."""
    return costs.query + statistics.num_centroids * costs.centroid * width(statistics)


def maxsim_ns(statistics: IndexStatistics, costs: Costs, num_docs: int) -> float:
    """Return the time to score documents by MaxSim from codes and residuals.

    Args:
        statistics: of the index.
        costs: of the kernels.
        num_docs: documents to score.
    """
    return min(num_docs, statistics.num_docs) * statistics.tokens_per_document * costs.token * width(statistics)


def rescore_ns(statistics: IndexStatistics, costs: Costs, candidates: int) -> float:
    """Return the time to score candidates exactly, scorer terms included.

    Args:
        statistics: of the index.
        costs: of the kernels.
        candidates: documents to score.
    """
    return maxsim_ns(statistics, costs, candidates) * (1 + statistics.scorer_cost)
