"""What building, encoding and a query cost: core-seconds from constants that bench/scale/planning.py measures."""

import math
from dataclasses import dataclass

from ray_lir.building.clustering import EXACT_CENTROIDS, sample_size
from ray_lir.engines import cost
from ray_lir.engines.warp import NPROBE
from ray_lir.planning.sizes import Collection

PROBED_CELLS = 8
POINTS_PER_CENTROID = 64
KEPT_FOR_TRAINING = 0.95


@dataclass(frozen=True)
class BuildCosts:
    """Nanoseconds of one core, for vectors of 128 dimensions.

    Attributes:
        compared: a vector compared with a centroid.
        sample: a token of the sample read, turned and shuffled.
        sum: a token of the sample in one iteration of k-means, apart from the comparisons.
        compress: a token compressed, apart from the comparisons.
        assemble: a token put into its shard.
    """

    compared: float
    sample: float
    sum: float
    compress: float
    assemble: float


BUILD = BuildCosts(compared=3.58, sample=2152, sum=1726, compress=783, assemble=225)
"""With the kernels native:amx_int8 (bench/results/planning.json); native:avx2 took half as much again."""


def comparisons(num_centroids: int) -> float:
    """Centroids that a vector is compared with when it is assigned (building/clustering.py)."""
    cells = math.isqrt(num_centroids)
    return num_centroids if num_centroids <= EXACT_CENTROIDS else cells + PROBED_CELLS * num_centroids / cells


def sampled_tokens(of: Collection) -> float:
    """Tokens that k-means is trained on."""
    tokens = sample_size(of.num_docs) * of.statistics.tokens_per_document * KEPT_FOR_TRAINING
    return min(tokens, POINTS_PER_CENTROID * of.num_centroids)


def build_seconds(of: Collection, num_iterations: int = 4, costs: BuildCosts = BUILD) -> dict[str, float]:
    """Core-seconds of each stage of build_index."""
    assign = comparisons(of.num_centroids) * costs.compared
    width = of.dim / cost.DIM
    sample = sampled_tokens(of)
    spent = {
        "sample": sample * costs.sample,
        "k-means": num_iterations * sample * (assign + costs.sum),
        "compress": of.num_tokens * (assign + costs.compress),
        "assemble": of.num_tokens * costs.assemble,
    }
    return {stage: nanoseconds * width / 1e9 for stage, nanoseconds in spent.items()}


def encode_seconds(of: Collection, parameters: float, teraflops: float) -> float:
    """Seconds of one accelerator: two floating-point operations a weight and token (Kaplan et al., 2020), at a sustained rate."""
    return 2 * parameters * of.num_tokens / (teraflops * 1e12)


@dataclass(frozen=True)
class QueryWork:
    """Milliseconds of one core for one query over the whole collection: planning, then each stage."""

    plan: float
    stages: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.plan + sum(self.stages)


def query_work(engine: str, of: Collection, kernels: str, k: int, nprobe: int = NPROBE) -> QueryWork:
    """The parts that cost.estimate_ms adds up, apart; candidates as the engines take them by themselves."""
    statistics = of.statistics
    candidates = statistics.default_candidates(k) * (2 if engine == "warp" else 1)
    empty = Collection(of.num_docs, 0, of.dim, of.nbits, of.num_centroids, 1, 0).statistics
    plan = cost.estimate_ms(engine, empty, kernels, 0, nprobe)
    first = cost.estimate_ms(engine, statistics, kernels, 0, nprobe) - plan
    rescoring = cost.estimate_ms(engine, statistics, kernels, candidates, nprobe) - plan - first
    return QueryWork(plan, (first,) if engine == "exact" else (first, rescoring))
