"""Promotion gate: may a new version of an index replace the current one? Each check compares the two versions and gives its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError
from ray_lir.evaluation.significance import ALPHA, MINIMUM_QUERIES, compare

DEPTH = 10
"""Hits of which the overlap is computed."""
WORST = 10
"""Queries with the largest losses that a report lists."""


class GateLimits(Config):
    """What a version must satisfy to replace the current one."""

    margin: float = Field(0.005, gt=0, lt=1)
    """Largest accepted loss of the measure. The version is refused unless the judged queries show, at level 0.05, that it loses less."""
    min_overlap: float = Field(0.6, ge=0, le=1)
    """Smallest accepted mean fraction of the current top 10 that the version finds as well, over the queries of --queries."""
    max_removed: float = Field(0.1, ge=0, le=1)
    """Largest accepted fraction of documents that the version has fewer."""
    other_encoder: bool = False
    """Accept a version that was built with other weights or conventions of the encoder, such as another prompt. Otherwise it is refused,
    because vectors that clients have encoded would no longer fit."""


class Check(Config):
    """One check of a promotion."""

    name: str
    passed: bool
    message: str


class VersionFacts(Config):
    """A version of an index, as the gate sees it."""

    version: int
    num_docs: int
    fingerprint: str
    """Fingerprint of the encoder contract."""
    manifest: str
    """sha256 of the version's manifest."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check with its numbers, for the report."""

    check: Check
    numbers: dict[str, Any]


def check_encoder(current: VersionFacts, candidate: VersionFacts, limits: GateLimits) -> Check:
    """Check that the candidate's vectors come from the same encoder.

    Args:
        current: The version that is served.
        candidate: The version that may replace it.
        limits: What the candidate must satisfy.
    """
    if current.fingerprint == candidate.fingerprint:
        return Check(name="encoder", passed=True, message=f"both have the contract {current.fingerprint}")
    message = f"the contract changes from {current.fingerprint} to {candidate.fingerprint}"
    if limits.other_encoder:
        return Check(name="encoder", passed=True, message=f"{message}, which --other_encoder accepts")
    return Check(name="encoder", passed=False, message=f"{message}; set --other_encoder if that is meant")


def check_documents(current: VersionFacts, candidate: VersionFacts, limits: GateLimits) -> Check:
    """Check that the candidate has not lost too many documents.

    Args:
        current: The version that is served.
        candidate: The version that may replace it.
        limits: What the candidate must satisfy.
    """
    lost = 1 - candidate.num_docs / max(1, current.num_docs)
    message = f"{current.num_docs:,} documents become {candidate.num_docs:,}"
    if lost <= limits.max_removed:
        return Check(name="documents", passed=True, message=message)
    return Check(
        name="documents",
        passed=False,
        message=f"{message}, {lost:.0%} fewer; set --max_removed above {limits.max_removed:g} if that is meant",
    )


def check_measure(name: str, current: Mapping[str, float], candidate: Mapping[str, float], margin: float) -> Outcome:
    """Check with a paired non-inferiority test that the candidate's measure is lower by less than the margin.

    Args:
        name: Name of the measure.
        current: Query id -> value of the current version.
        candidate: Query id -> value of the candidate.
        margin: Largest accepted loss.

    Raises:
        ConfigError: The current version has the value 0 for every query, so the judgements belong to other documents.

    Source: docs/algorithms.md#83-significance
    """
    queries = list(current)
    first, second = (np.array([values[query_id] for query_id in queries]) for values in (current, candidate))
    if not first.any():
        raise ConfigError(f"{name} of the current version is 0 for every query; give the judgements of the documents in this index")
    found = compare(first, second, margin)
    message = (
        f"{name} {found.first:.4f} -> {found.second:.4f} ({found.difference:+.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f})"
    )
    if found.queries < MINIMUM_QUERIES:
        message += f"; {found.queries} judged queries show nothing, give at least {MINIMUM_QUERIES}"
    elif not found.is_non_inferior and found.difference > -margin:
        message += f"; {found.queries} queries cannot show a loss below {margin:g}, give more judged queries or a larger --margin"
    elif not found.is_non_inferior:
        message += f"; the loss is not below {margin:g}"
    losses = np.argsort(second - first, kind="stable")[:WORST]
    numbers = {
        "name": name,
        "queries": found.queries,
        "current": found.first,
        "candidate": found.second,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "margin": margin,
        "alpha": ALPHA,
        "p": found.p,
        "non_inferiority_p": found.non_inferiority_p,
        "minimum_detectable": found.minimum_detectable,
        "changed": found.changed,
        "worst": [
            {"query": queries[each], "current": float(first[each]), "candidate": float(second[each])}
            for each in losses
            if second[each] < first[each]
        ],
    }
    return Outcome(Check(name="measure", passed=found.is_non_inferior, message=message), _finite(numbers))


def check_overlap(current: Mapping[str, Sequence[str]], candidate: Mapping[str, Sequence[str]], min_overlap: float) -> Outcome:
    """Check that the candidate finds enough of the current version's hits.

    Args:
        current: Query id -> ids of the current version's best documents.
        candidate: Query id -> ids of the candidate's best documents.
        min_overlap: Smallest accepted mean fraction of the current top 10 that the candidate's top 10 contains.

    Raises:
        ConfigError: There is no query, or the current version finds nothing for any.
    """
    overlaps = {
        query_id: len({*hits[:DEPTH]} & {*candidate[query_id][:DEPTH]}) / len(hits[:DEPTH]) for query_id, hits in current.items() if hits
    }
    if not overlaps:
        raise ConfigError("the current version finds no documents for the logged queries; give queries that it answers")
    mean = sum(overlaps.values()) / len(overlaps)
    message = f"{mean:.3f} of the current top {DEPTH} are found again, over {len(overlaps)} logged queries"
    passed = mean >= min_overlap
    if not passed:
        message += f"; the least accepted is {min_overlap:g} (--min_overlap)"
    worst = sorted(overlaps, key=lambda query_id: overlaps[query_id])[:WORST]
    numbers = {
        "depth": DEPTH,
        "queries": len(overlaps),
        "mean": mean,
        "least_accepted": min_overlap,
        "worst": [{"query": query_id, "overlap": overlaps[query_id]} for query_id in worst],
    }
    return Outcome(Check(name="overlap", passed=passed, message=message), numbers)


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinite numbers; they become None."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in numbers.items()}
