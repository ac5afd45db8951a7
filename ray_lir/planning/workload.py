"""Predicts the computing time of building, encoding and searching, from constants that bench/scale/planning.py measures."""

import math
from dataclasses import dataclass

from ray_lir.building.clustering import EXACT_CENTROIDS, sample_size
from ray_lir.engines.cost import COSTS, DIM, QueryCost
from ray_lir.engines.registry import ENGINES
from ray_lir.planning.sizes import Collection

PROBED_CELLS = 8
"""Cells of the coarse quantizer that are probed when a token is assigned to its centroid."""
POINTS_PER_CENTROID = 64
"""Training vectors a centroid, at most."""
TRAINING_FRACTION = 0.95
"""Fraction of the sample that k-means trains on; the rest is held out."""


@dataclass(frozen=True)
class BuildCosts:
    """Nanoseconds of one core, for vectors of 128 dimensions.

    Attributes:
        compared: Compare a vector with a centroid.
        sample: Read, rotate and shuffle a token of the sample.
        sum: Process a token of the sample in one iteration of k-means, without the comparisons.
        compress: Compress a token, without the comparisons.
        assemble: Copy a token into its shard.
    """

    compared: float
    sample: float
    sum: float
    compress: float
    assemble: float


BUILD = BuildCosts(compared=3.58, sample=2152, sum=1726, compress=783, assemble=225)
"""Measured with the kernels native:amx_int8 (bench/results/planning.json). native:avx2 took 1.5 times as long."""
TRELLIS = 12_500
"""Nanoseconds of one core to find the best path of a residual of 128 dimensions through a trellis (bench/results/codec.json)."""


def comparisons(num_centroids: int) -> float:
    """Return the number of centroids that a vector is compared with when it is assigned (building/clustering.py)."""
    cells = math.isqrt(num_centroids)
    return num_centroids if num_centroids <= EXACT_CENTROIDS else cells + PROBED_CELLS * num_centroids / cells


def sampled_tokens(of: Collection) -> float:
    """Return the number of tokens that k-means trains on."""
    tokens = sample_size(of.num_docs) * of.statistics.tokens_per_document * TRAINING_FRACTION
    return min(tokens, POINTS_PER_CENTROID * of.num_centroids)


def build_seconds(of: Collection, num_iterations: int = 4, costs: BuildCosts = BUILD) -> dict[str, float]:
    """Return the core-seconds of each phase of build_index.

    Args:
        of: The collection.
        num_iterations: Iterations of k-means.
        costs: Measured constants.
    """
    assign = comparisons(of.num_centroids) * costs.compared
    width = of.dim / DIM
    sample = sampled_tokens(of)
    spent = {
        "sample": sample * costs.sample,
        "k-means": num_iterations * sample * (assign + costs.sum),
        "compress": of.num_tokens * (assign + costs.compress + (TRELLIS if of.trellis or of.residual_bytes else 0)),
        "assemble": of.num_tokens * costs.assemble,
    }
    return {phase: nanoseconds * width / 1e9 for phase, nanoseconds in spent.items()}


def encode_seconds(of: Collection, parameters: float, teraflops: float) -> float:
    """Return the seconds of one accelerator that encode a collection.

    Encoding takes two floating-point operations a weight and token (Kaplan et al., 2020).

    Args:
        of: The collection.
        parameters: Weights of the encoder, without word embeddings.
        teraflops: Sustained rate of the accelerator, in 10^12 operations a second.
    """
    return 2 * parameters * of.num_tokens / (teraflops * 1e12)


def query_work(engine: str, of: Collection, kernels: str, k: int) -> QueryCost:
    """Return the estimated time of one query over the whole collection, with the engine's default number of candidates.

    Args:
        engine: one of `automatic_engines`.
        of: the collection.
        kernels: name of the kernels, a key of COSTS.
        k: documents to return.
    """
    automatic = ENGINES[engine].automatic
    assert automatic is not None, f"engine {engine} has no cost"
    return automatic.cost(of.statistics, COSTS[kernels], of.statistics.default_candidates(k), k)
