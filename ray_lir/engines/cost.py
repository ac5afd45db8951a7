"""Estimated time of a query, from index statistics and measured kernel times. Engine `auto` and capacity planning use the estimates.

Times are nanoseconds of one core for a query of 32 tokens of 128 dimensions. The time of dot products is proportional to both numbers.
bench/kernels/cost.py measured all times on one processor (bench/results/cost.json), except two sets: cuda is estimated from the data sheet,
and native:neon_dotprod is a guess. Each engine computes its own cost from these times.
"""

from dataclasses import dataclass

from ray_lir.engines.plan import IndexStatistics

QUERY_TOKENS = 32
DIM = 128


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of a kernel set for one operation.

    Attributes:
        token: Score a document token from its code and residual.
        centroid: Score a centroid.
        byte_table: Convert the scores of a centroid to the uint8 table that `scan` reads.
        code: Score a document token by its code alone.
        probe: Examine a centroid when clusters are probed.
        posting: Score one pair of a query token and a token of a probed cluster.
        nearest: Score a document token if each query token is compared with its nearest document tokens only.
        query: Fixed time of a query.
    """

    token: float
    centroid: float
    byte_table: float
    code: float
    probe: float
    posting: float
    nearest: float
    query: float = 250_000


COSTS = {
    "reference": Costs(token=1230, centroid=56, byte_table=0, code=96, probe=3250, posting=1120, nearest=1070),
    "native:portable": Costs(token=1600, centroid=1200, byte_table=97, code=2.4, probe=78, posting=120, nearest=48),
    "native:avx2": Costs(token=50, centroid=61, byte_table=6.5, code=0.37, probe=36, posting=18, nearest=10),
    "native:avx512_vnni": Costs(token=20, centroid=30, byte_table=4.6, code=0.37, probe=36, posting=16, nearest=9),
    "native:amx_int8": Costs(token=9.0, centroid=18, byte_table=4.0, code=0.40, probe=34, posting=17, nearest=8),
    "native:neon_dotprod": Costs(token=60, centroid=120, byte_table=9, code=0.6, probe=50, posting=20, nearest=12),
    "cuda": Costs(token=0.1, centroid=0.1, byte_table=0, code=0.05, probe=20, posting=1, nearest=0.1),
}


DENSITY = 1.7
"""Mean size of a probed cluster over the mean size of all clusters (SciFact)."""
FAR_TOKENS = 10_000_000
"""Tokens of an index of which half of the random accesses miss the caches and the page tables of the processor."""
FAR_TOKEN_NS, FAR_CODES_NS, FAR_DOCUMENT_NS = 80, 550, 3_000
"""Time of these misses if a search decodes one token, reads the codes of a document, or decodes tokens of a document
(bench/results/larger_than_memory.md)."""
READ_PAGE_NS = 12_000
"""Time to read a page from a local disk while others are read: 3,000 pages took 30 to 45 ms (bench/results/larger_than_memory.md)."""
READ_TOKEN_NS = 25
"""Time to read a token of 2 bits and 128 dimensions if a whole index is read in order from a local disk."""
PAGES_PER_DOCUMENT = 5
"""Pages with the codes, residuals and scales of a document of 128 tokens, 2 bits and 128 dimensions."""


@dataclass(frozen=True)
class QueryCost:
    """Milliseconds of one core for one query over the whole index.

    Attributes:
        plan: Time to plan the query.
        stages: Time of each stage.
    """

    plan: float
    stages: tuple[float, ...]

    @property
    def total(self) -> float:
        """Milliseconds of the plan and all stages."""
        return self.plan + sum(self.stages)

    @classmethod
    def of(cls, plan_ns: float, *stages_ns: float) -> "QueryCost":
        """Return the cost for times in nanoseconds."""
        return cls(plan_ns / 1e6, tuple(stage / 1e6 for stage in stages_ns))


def width(statistics: IndexStatistics) -> float:
    """Return the dimensions of the index divided by the 128 dimensions of the measurements."""
    return statistics.dim / DIM


def far(statistics: IndexStatistics) -> float:
    """Return the fraction of random accesses that miss the caches and the page tables."""
    return statistics.num_tokens / (statistics.num_tokens + FAR_TOKENS)


def visit_ns(statistics: IndexStatistics, num_docs: float) -> float:
    """Return the time to access the vectors of documents at random, in memory or on the disk, in nanoseconds.

    Args:
        statistics: Statistics of the index.
        num_docs: Documents to access.
    """
    page_ns = PAGES_PER_DOCUMENT * READ_PAGE_NS if statistics.on_disk else 0
    return min(num_docs, statistics.num_docs) * (far(statistics) * FAR_DOCUMENT_NS + page_ns)


def plan_ns(statistics: IndexStatistics, costs: Costs) -> float:
    """Return the fixed time of a query plus the time to score all centroids, in nanoseconds."""
    return costs.query + statistics.num_centroids * costs.centroid * width(statistics)


def maxsim_ns(statistics: IndexStatistics, costs: Costs, num_docs: int) -> float:
    """Return the time to score documents by MaxSim from codes and residuals, in nanoseconds.

    Args:
        statistics: Statistics of the index.
        costs: Costs of the kernels.
        num_docs: Documents to score.
    """
    return min(num_docs, statistics.num_docs) * statistics.tokens_per_document * costs.token * width(statistics)


def rescore_ns(statistics: IndexStatistics, costs: Costs, candidates: int) -> float:
    """Return the time to access candidates and to score them exactly, including scorer terms, in nanoseconds.

    Args:
        statistics: Statistics of the index.
        costs: Costs of the kernels.
        candidates: Documents to score.
    """
    return visit_ns(statistics, candidates) + maxsim_ns(statistics, costs, candidates) * (1 + statistics.scorer_cost)
