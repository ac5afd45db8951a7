"""Paired randomisation tests over the queries of several collections: is one way of searching better than another?"""

from collections.abc import Sequence

import numpy as np

SHUFFLES = 10_000
SEED = 0


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean difference and its two-sided p value.

    Of each query the difference of its two values is taken; collections count alike, whatever their number of queries. If neither
    way were better, every query's difference could as well have the other sign: p is the share of such random signs that give a mean
    as far from zero (Fisher's test, by SHUFFLES of them; at least 1 / (SHUFFLES + 1)).

    Args:
        ours, theirs: for each collection [queries] the values, in the same order of queries.
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
