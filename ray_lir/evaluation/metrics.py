"""Retrieval measures, computed by ir-measures (docs/algorithms.md#81-measures). Gains are linear, and every judged query counts."""

import re
from collections.abc import Mapping, Sequence
from subprocess import SubprocessError

from ray_lir.base.arguments import text_list
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.corpus.datasets import LARGEST_GRADE
from ray_lir.evaluation.runs import Ranking

MEASURES = ("nDCG@10", "RR@10", "Success@5", "R@10", "R@100")
PerQuery = dict[str, dict[str, float]]
"""measure -> query id -> value."""
FAILURES = (NameError, ValueError, TypeError, AssertionError, SyntaxError, ArithmeticError, RuntimeError, SubprocessError)
"""Errors of ir-measures and its providers for measures that they do not know or cannot compute."""


def evaluate(run: Mapping[str, Ranking], qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str] = MEASURES) -> PerQuery:
    """Return the value of every measure for every judged query.

    A ranking's order counts; its scores are ignored. A judged query without results, or without a relevant document, has the value 0.
    Queries without judgements are left out.

    Args:
        run: Query id -> ranking, best first.
        qrels: Query id -> document id -> grade.
        measures: Names as ir-measures parses them.

    Returns:
        Measure -> query id -> value.

    Raises:
        ConfigError: A grade is larger than `LARGEST_GRADE`, a measure name is not a string, or ir-measures is not installed or fails.

    Source: docs/algorithms.md#81-measures
    """
    measures = text_list("measures", measures)
    largest = max((abs(grade) for grades in qrels.values() for grade in grades.values()), default=0)
    if largest > LARGEST_GRADE:
        raise ConfigError(f"grades must lie between -{LARGEST_GRADE} and {LARGEST_GRADE}, and one is {largest}; use smaller grades")
    if not measures:
        return {}
    require("ir_measures", "measuring a run")
    import ir_measures

    parsed = {ir_measures.parse_measure(name): name for name in measures}
    query_ids = dict(zip(map(str, range(len(qrels))), qrels, strict=True))  # gdeval, for ERR, only takes numbers
    judgements = {number: dict(qrels[query_id]) for number, query_id in query_ids.items()}
    # evaluators sort by score and break ties by document id; negative ranks used as scores have no ties
    ranks = {
        number: {doc_id: float(-rank) for rank, (doc_id, _) in enumerate(run[query_id])}
        for number, query_id in query_ids.items()
        if query_id in run
    }
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    try:
        for metric in ir_measures.iter_calc(list(parsed), judgements, ranks):
            values[parsed[metric.measure]][query_ids[metric.query_id]] = float(metric.value)
    except FAILURES as error:
        raise ConfigError(f"ir-measures cannot compute {', '.join(measures)} here ({error}); leave that measure out") from error
    return values


def means(values: PerQuery) -> dict[str, float]:
    """Return the mean of each measure over the judged queries."""
    return {name: sum(by_query.values()) / len(by_query) for name, by_query in values.items()}


def parse_measures(expressions: str) -> tuple[str, ...]:
    """Return the names of measures, in ir-measures' notation, each once.

    Args:
        expressions: Names separated by spaces or commas, such as "nDCG@10 R@1000 P(rel=2)@5 AP".

    Raises:
        ConfigError: A name is not a measure of ir-measures, or the installed packages cannot compute it.
    """
    require("ir_measures", "measuring a run")
    import ir_measures

    names = []
    for text in re.findall(r"(?:[^\s,()]|\([^()]*\))+|[()]", expressions):
        try:
            measure = ir_measures.parse_measure(text)
            if measure.params.get("cutoff") == 0:  # pytrec_eval would end the process
                raise ValueError
            list(ir_measures.iter_calc([measure], {"1": {"1": 1}}, {"1": {"1": 2.0, "2": 1.0}}))
        except FAILURES:
            raise ConfigError(
                f"unknown measure {text!r}; give names of ir-measures that are installed, such as nDCG@10 R@1000 RR@10 AP"
            ) from None
        names.append(str(measure))
    return tuple(dict.fromkeys(names))


def cutoff(name: str) -> int:
    """Return the rank after which a measure ignores hits; 0 if it has none."""
    import ir_measures

    return int(ir_measures.parse_measure(name).params.get("cutoff") or 0)


def measures_up_to(depth: int) -> tuple[str, ...]:
    """Return the default measures that need at most `depth` documents a query: R@100 of a top 10 would really be R@10."""
    return tuple(name for name in MEASURES if int(name.partition("@")[2]) <= depth)


def without_identical_ids(run: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Return the run without hits that have the id of their query: BEIR's convention for ArguAna and Quora."""
    return {query_id: [hit for hit in ranking if hit[0] != query_id] for query_id, ranking in run.items()}


def num_identical_ids(run: Mapping[str, Ranking]) -> int:
    """Return how many hits of the run have the id of their query."""
    return sum(doc_id == query_id for query_id, ranking in run.items() for doc_id, _ in ranking)
