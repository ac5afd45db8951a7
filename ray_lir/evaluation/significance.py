"""Statistics of paired comparisons: is one run better than another, as good as it, or cannot these queries tell?

A sample is one array, with a value per query, or a sequence of arrays, one per collection. Collections then count alike, whatever their
number of queries, and resampling stays within a collection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ray_lir.base.errors import ConfigError

Sample = np.ndarray | Sequence[np.ndarray]
"""Values per query: [queries], or one such array per collection."""
RESAMPLES = 10_000
"""Sign vectors of a randomisation test, and resamples of a bootstrap."""
MARGIN = 0.01
"""Default margin of equivalence and non-inferiority: one point of a measure between 0 and 1."""
ALPHA = 0.05
POWER = 0.8
"""Probability with which a test finds a difference as large as the minimum detectable difference."""
MINIMUM_QUERIES = 20
"""With fewer queries, equivalence and non-inferiority are never concluded: equal values on a few queries say little about others."""
TOLERANCE = 1e-12
"""Sums that differ by less are equal; summation order changes their last bits."""
BLOCK = 1 << 21
"""Resampled values that are in memory at once."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two samples of the same queries.

    Attributes:
        queries: Number of queries of all collections together.
        first: Mean of the first sample.
        second: Mean of the second sample.
        difference: `second - first`.
        low: Lower end of the bootstrap confidence interval of the difference, at confidence `1 - alpha`.
        high: Upper end of that interval.
        p: Two-sided p value of the paired randomisation test.
        equivalence_p: p value of the test that the difference lies within `-margin` and `margin`.
        non_inferiority_p: p value of the test that the difference is above `-margin`.
        margin: Margin of both tests.
        alpha: Level at which the properties decide.
        minimum_detectable: The smallest difference that a test at level `alpha` finds with probability `POWER`, given this variance.
        changed: Number of queries with different values.
    """

    queries: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    equivalence_p: float
    non_inferiority_p: float
    margin: float
    alpha: float
    minimum_detectable: float
    changed: int

    @property
    def is_different(self) -> bool:
        """Whether the means differ: p is at most alpha."""
        return self.p <= self.alpha

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is shown to lie within the margin. False does not mean that it lies outside."""
        return self.equivalence_p <= self.alpha

    @property
    def is_non_inferior(self) -> bool:
        """Whether the second sample is shown to be worse by less than the margin, or better. False does not mean that it is worse."""
        return self.non_inferiority_p <= self.alpha


def compare(
    first: Sample, second: Sample, margin: float = MARGIN, alpha: float = ALPHA, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Return the difference of two samples with its interval and tests.

    Args:
        first: Values per query.
        second: Values of the same queries, in the same order.
        margin: The largest difference that counts as none, in units of the measure; above 0.
        alpha: Level of the tests; the interval has confidence `1 - alpha`.
        resamples: Number of sign vectors and of bootstrap resamples.
        seed: Seed of both; equal input and seed give equal output.

    Raises:
        ConfigError: The samples differ in shape, are empty or hold values that are not finite, or an argument is out of range.

    Source: docs/algorithms.md#83-significance
    """
    if not margin > 0 or not np.isfinite(margin):
        raise ConfigError(f"the margin must be a number above 0, and it is {margin}")
    if not 0 < alpha < 0.5:
        raise ConfigError(f"alpha must lie between 0 and 0.5, and it is {alpha}")
    differences = paired_differences(first, second)
    observed = _mean(differences)
    queries = sum(map(len, differences))
    means = bootstrap_means(differences, resamples, seed)
    low, high = _interval(means, differences, alpha)
    below, above = _tail(means <= -margin, differences), _tail(means >= margin, differences)
    enough = queries >= MINIMUM_QUERIES
    return Comparison(
        queries=queries,
        first=_mean(_groups(first)),
        second=_mean(_groups(second)),
        difference=observed,
        low=low,
        high=high,
        p=randomisation_test(differences, resamples, seed),
        equivalence_p=max(below, above) if enough else 1.0,
        non_inferiority_p=below if enough else 1.0,
        margin=margin,
        alpha=alpha,
        minimum_detectable=minimum_detectable_difference(differences, alpha),
        changed=int(sum(np.count_nonzero(each) for each in differences)),
    )


def paired_differences(first: Sample, second: Sample) -> list[np.ndarray]:
    """Return `second - first` per query, one float64 array per collection.

    Raises:
        ConfigError: The samples differ in shape, are empty, or hold values that are not finite.
    """
    a, b = _groups(first), _groups(second)
    shapes = [len(each) for each in a], [len(each) for each in b]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"samples must have the same queries, and they have {shapes[0]} and {shapes[1]}")
    if not a or not all(shapes[0]):
        raise ConfigError("samples must have at least one query per collection")
    differences = [y - x for x, y in zip(a, b, strict=True)]
    if not all(np.isfinite(each).all() for each in differences):
        raise ConfigError("samples must be finite, and a value is infinite or not a number")
    return differences


def randomisation_test(differences: Sample, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p value of Fisher's paired randomisation test.

    If neither system were better, each query's difference could as well have the other sign. p is the fraction of sign vectors that give a
    mean at least as far from 0. If there are no more than `resamples` sign vectors, each is used once and p is exact. Otherwise signs are
    random, and p is at least `1 / (resamples + 1)`.

    Args:
        differences: Difference per query.
        resamples: Number of random sign vectors.
        seed: Seed of the signs.

    Raises:
        ConfigError: `resamples` is below 1.

    Source: docs/algorithms.md#83-significance
    """
    _check_resamples(resamples)
    weighted = _weighted(_groups(differences))
    observed = abs(weighted.sum()) - TOLERANCE
    changed = weighted[weighted != 0]
    if len(changed) <= np.log2(resamples):
        numbers = np.arange(2 ** len(changed))[:, None]
        sums = _signed_sums((numbers >> np.arange(len(changed))) & 1, changed)
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(seed)
    as_far = sum(
        int(np.count_nonzero(np.abs(_signed_sums(rng.integers(0, 2, (rows, len(changed)), np.uint8), changed)) >= observed))
        for rows in _blocks(resamples, len(changed))
    )
    return (1 + as_far) / (1 + resamples)


def bootstrap_means(differences: Sample, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return the mean of each bootstrap resample, [resamples] float64. Queries are drawn with replacement within their collection.

    Args:
        differences: Difference per query.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Raises:
        ConfigError: `resamples` is below 1.

    Source: docs/algorithms.md#83-significance
    """
    _check_resamples(resamples)
    groups = _groups(differences)
    rng = np.random.default_rng(seed)
    totals = np.zeros(resamples)
    for group in groups:
        drawn = [group[rng.integers(0, len(group), (rows, len(group)))].mean(axis=1) for rows in _blocks(resamples, len(group))]
        totals += np.concatenate(drawn)
    return totals / len(groups)


def bootstrap_interval(differences: Sample, alpha: float = ALPHA, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the confidence interval of the mean difference: percentiles of the bootstrap, expanded for small samples.

    Args:
        differences: Difference per query.
        alpha: The interval has confidence `1 - alpha`.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        Lower and upper end; infinite if a collection gives no estimate of variance (one query per collection).

    Raises:
        ConfigError: `resamples` is below 1.

    Source: docs/algorithms.md#83-significance
    """
    groups = _groups(differences)
    return _interval(bootstrap_means(groups, resamples, seed), groups, alpha)


def is_equivalent(first: Sample, second: Sample, margin: float = MARGIN, alpha: float = ALPHA) -> bool:
    """Return whether the means are shown to differ by less than the margin (two one-sided tests).

    That is so if the interval of confidence `1 - 2 alpha` lies within the margin. False does not mean that they differ.

    Args:
        first: Values per query.
        second: Values of the same queries.
        margin: The largest difference that counts as none.
        alpha: Level of each one-sided test.

    Raises:
        ConfigError: The samples differ in shape, or an argument is out of range.

    Source: docs/algorithms.md#83-significance
    """
    return compare(first, second, margin, alpha).is_equivalent


def is_non_inferior(first: Sample, second: Sample, margin: float = MARGIN, alpha: float = ALPHA) -> bool:
    """Return whether the second mean is shown to be above the first mean less the margin. False does not mean that it is worse.

    Args:
        first: Values per query of the reference.
        second: Values of the same queries of the system that is judged.
        margin: The largest loss that is accepted.
        alpha: Level of the one-sided test.

    Raises:
        ConfigError: The samples differ in shape, or an argument is out of range.

    Source: docs/algorithms.md#83-significance
    """
    return compare(first, second, margin, alpha).is_non_inferior


def minimum_detectable_difference(differences: Sample, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest true difference that a two-sided test at level `alpha` would find with probability `power`.

    Args:
        differences: Difference per query; they estimate the variance.
        alpha: Level of the test.
        power: Probability of finding the difference.

    Returns:
        The difference; infinite with one query per collection.

    Source: docs/algorithms.md#83-significance
    """
    from scipy.special import ndtri  # scipy takes long to load

    return float((ndtri(1 - alpha / 2) + ndtri(power)) * _standard_error(_groups(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for several tests (Holm 1979): the probability of any false finding stays below the level.

    Source: docs/algorithms.md#83-significance
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def _groups(sample: Sample) -> list[np.ndarray]:
    """The arrays of a sample, one per collection, as float64."""
    nested = not (isinstance(sample, np.ndarray) and sample.ndim == 1) and len(sample) > 0 and np.ndim(sample[0]) > 0
    return [np.asarray(each, np.float64) for each in (sample if nested else [sample])]


def _mean(groups: list[np.ndarray]) -> float:
    return float(np.mean([each.mean() for each in groups]))


def _weighted(groups: list[np.ndarray]) -> np.ndarray:
    """Differences such that their sum is the mean of the collections' means."""
    return np.concatenate([each / len(each) / len(groups) for each in groups])


def _signed_sums(bits: np.ndarray, values: np.ndarray) -> np.ndarray:
    return 2.0 * (bits @ values) - values.sum()


def _blocks(rows: int, columns: int) -> Iterator[int]:
    """Row counts of blocks of at most BLOCK values."""
    each = max(BLOCK // max(columns, 1), 1)
    for start in range(0, rows, each):
        yield min(each, rows - start)


def _standard_error(groups: list[np.ndarray]) -> float:
    if any(len(each) < 2 for each in groups):
        return np.inf
    return float(np.sqrt(sum(each.var(ddof=1) / len(each) for each in groups)) / len(groups))


def _degrees_of_freedom(groups: list[np.ndarray]) -> tuple[int, float]:
    """Degrees of freedom, and the factor by which a bootstrap's spread is too small."""
    queries = sum(map(len, groups))
    freedom = queries - len(groups)
    return freedom, float(np.sqrt(queries / freedom)) if freedom else np.inf


def _interval(means: np.ndarray, groups: list[np.ndarray], alpha: float) -> tuple[float, float]:
    """The percentile interval at the level that corrects for small samples (Hesterberg 2015, section 3.2)."""
    from scipy.special import ndtr, stdtrit

    freedom, factor = _degrees_of_freedom(groups)
    if not freedom:
        return -np.inf, np.inf
    level = float(ndtr(factor * stdtrit(freedom, alpha / 2)))
    low, high = np.quantile(means, [level, 1 - level])
    return float(low), float(high)


def _tail(outside: np.ndarray, groups: list[np.ndarray]) -> float:
    """The one-sided p value that belongs to the interval above, from the resamples that lie beyond a margin."""
    from scipy.special import ndtri, stdtr

    freedom, factor = _degrees_of_freedom(groups)
    if not freedom:
        return 1.0
    fraction = (1 + np.count_nonzero(outside)) / (1 + len(outside))
    return float(stdtr(freedom, ndtri(fraction) / factor)) if fraction < 1 else 1.0


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, and it is {resamples}")
