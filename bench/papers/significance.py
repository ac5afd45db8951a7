"""Paired randomisation tests over the queries of several collections: is one way of searching better than another?"""

from collections.abc import Sequence

import numpy as np

SHUFFLES = 10_000
SEED = 0


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean difference and its two-sided p value.

    The test takes the difference of each query's two values; collections have equal weight. If neither
    way were better, each difference could have either sign. p is the fraction of random signs that give a mean
    at least as far from zero (Fisher's test with SHUFFLES draws; at least 1 / (SHUFFLES + 1)).

    Args:
        ours, theirs: Values of each collection, [queries], in the same order of queries.
    """
    differences = np.concatenate([(a - b) / len(a) / len(first) for a, b in zip(first, second, strict=True)])
    observed = differences.sum()
    signs = np.random.default_rng(SEED).choice(np.array([-1.0, 1.0]), (SHUFFLES, len(differences)))
    as_far = np.abs(signs @ differences) >= abs(observed) - 1e-12
    return float(observed), float((1 + as_far.sum()) / (1 + SHUFFLES))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple tests (Holm 1979), which bounds the probability of any false finding."""
    order = np.argsort(values, kind="stable")
    corrected = np.maximum.accumulate(np.asarray(values, float)[order] * np.arange(len(values), 0, -1))
    result = np.empty(len(values))
    result[order] = np.minimum(corrected, 1)
    return result.tolist()
