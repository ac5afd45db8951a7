"""What a query costs with each engine, from the index's statistics and measured times: how `auto` chooses.

Times are nanoseconds of one core for a query of 32 tokens of 128 dimensions; products grow with both. All but cuda were timed with
bench/kernels/cost.py (bench/results/cost.json, one processor); cuda is an estimate of what the processors can do.
"""

from dataclasses import dataclass

from ray_lir.engines.plan import IndexStatistics
from ray_lir.engines.warp import NPROBE

QUERY_TOKENS = 32
DIM = 128
RELATIONS = 12
"""How many times as long as by MaxSim it takes to score a token by TRIAL, of a fresh relation encoder: 9 with AVX2, 15 with AMX
(bench/papers/trial.py)."""

DENSITY = 1.7
"""Tokens in the cells that a query's tokens look into, over those of an average cell (scifact)."""


@dataclass(frozen=True)
class Costs:
    """Nanoseconds for one of each.

    Attributes:
        token: document token scored from its code and residual.
        centroid: centroid scored.
        byte_table: centroid's scores written as bytes, for a scan.
        code: document token scored by its code alone.
        probe: centroid looked at when cells are probed.
        posting: query token scored with a token of a probed cell.
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


def estimate_ms(engine: str, statistics: IndexStatistics, kernels: str, candidates: int, nprobe: int = NPROBE) -> float:
    """Milliseconds of one core that a query takes.

    Args:
        engine: exact, scan or warp.
        kernels: name of a set in COSTS.
        candidates: documents that are rescored; of exact, which relations are computed of.
        nprobe: cells that warp scores for each query token.
    """
    costs = COSTS[kernels]
    width = statistics.dim / DIM
    token = costs.token * width
    tables = statistics.num_centroids * costs.centroid * width
    maxsim = min(candidates, statistics.num_docs) * statistics.tokens_per_document * token
    relations = maxsim * RELATIONS if statistics.has_relations else 0
    rescoring = maxsim + relations
    num_centroids = statistics.num_centroids
    spent = {
        "exact": tables + statistics.num_tokens * token + relations,
        "scan": tables + num_centroids * costs.byte_table + statistics.num_tokens * costs.code + rescoring,
        "warp": tables
        + num_centroids * costs.probe
        + QUERY_TOKENS * nprobe * DENSITY * statistics.tokens_per_centroid * costs.posting * width
        + rescoring,
    }
    return (spent[engine] + costs.query) / 1e6
