"""Comparison of two runs by their measures, with a verdict for each measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.evaluation.metrics import PerQuery
from ray_lir.evaluation.significance import ALPHA, MARGIN, MINIMUM_QUERIES, RESAMPLES, Comparison, compare, holm


@dataclass(frozen=True)
class MeasureComparison:
    """The comparison of one measure, corrected for all measures of the comparison.

    Attributes:
        comparison: Means, difference, interval and tests of this measure.
        p_holm: p value of the difference, corrected for the number of measures.
        equivalence_p_holm: p value of equivalence, corrected for the number of measures.
    """

    comparison: Comparison
    p_holm: float
    equivalence_p_holm: float

    @property
    def verdict(self) -> str:
        """What the corrected tests show: a difference, equivalence, both, or neither.

        A difference that is not significant is "undecided", never "equal".
        """
        found = self.comparison
        is_different, is_equivalent = self.p_holm <= found.alpha, self.equivalence_p_holm <= found.alpha
        if not found.changed:
            return f"identical on these {found.queries} queries"
        if is_different:
            better = "second" if found.difference > 0 else "first"
            return f"{better} is better" + (f", by less than {found.margin:g}" if is_equivalent else "")
        if is_equivalent:
            return f"equivalent within {found.margin:g}"
        if found.queries < MINIMUM_QUERIES:
            return f"undecided: {found.queries} queries are too few to show that two runs agree"
        return f"undecided: these queries reveal only differences above {found.minimum_detectable:.3f}"

    def fields(self) -> dict[str, object]:
        """Return all numbers and the verdict as JSON values. An infinite end of an interval is None."""
        found = self.comparison
        return {
            "first": found.first,
            "second": found.second,
            "difference": found.difference,
            "interval": [_finite(found.low), _finite(found.high)],
            "p": found.p,
            "p_holm": self.p_holm,
            "equivalence_p": found.equivalence_p,
            "equivalence_p_holm": self.equivalence_p_holm,
            "non_inferiority_p": found.non_inferiority_p,
            "minimum_detectable": _finite(found.minimum_detectable),
            "queries_changed": found.changed,
            "verdict": self.verdict,
        }


def compare_measures(
    first: Sequence[PerQuery],
    second: Sequence[PerQuery],
    margin: float = MARGIN,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, MeasureComparison]:
    """Return the comparison of every measure. Collections count alike, and p values are corrected by Holm's method.

    Args:
        first: Measures of the first run, one `PerQuery` per collection.
        second: Measures of the second run, of the same collections, measures and queries.
        margin: The largest difference that counts as none.
        alpha: Level of the tests.
        resamples: Number of sign vectors and of bootstrap resamples.
        seed: Seed of both.

    Returns:
        Measure -> comparison.

    Raises:
        ConfigError: The two sides differ in collections, measures or queries, or an argument is out of range.

    Source: docs/algorithms.md#83-significance
    """
    if [{name: set(by_query) for name, by_query in each.items()} for each in first] != [
        {name: set(by_query) for name, by_query in each.items()} for each in second
    ]:
        raise ConfigError("both sides of a comparison must have the same collections, measures and queries")
    names = list(first[0]) if first else []
    comparisons = [compare(_samples(first, first, name), _samples(second, first, name), margin, alpha, resamples, seed) for name in names]
    differences = holm([found.p for found in comparisons])
    equivalences = holm([found.equivalence_p for found in comparisons])
    return {
        name: MeasureComparison(found, p, equivalence_p)
        for name, found, p, equivalence_p in zip(names, comparisons, differences, equivalences, strict=True)
    }


def _samples(values: Sequence[PerQuery], order: Sequence[PerQuery], name: str) -> list[np.ndarray]:
    """The values of a measure, [queries] for each collection, in the order of another side's queries."""
    return [np.array([each[name][query_id] for query_id in queries[name]]) for each, queries in zip(values, order, strict=True)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
