"""Names and labels in PromQL expressions, read by the parser of the package promql-parser."""

from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser

GRAFANA_VARIABLES = {"$__rate_interval": "5m"}


@dataclass(frozen=True)
class Selection:
    """A series of an expression, and the labels that the expression uses."""

    metric: str
    labels: frozenset[str]


def selections(expression: str) -> list[Selection]:
    """Return every series of an expression.

    Raises:
        ValueError: The expression is not PromQL, or a function gets an argument of the wrong type.
    """
    for variable, value in GRAFANA_VARIABLES.items():
        expression = expression.replace(variable, value)
    return list(_selections(promql_parser.parse(expression), frozenset()))


def _selections(node: promql_parser.Expr, grouping: frozenset[str]) -> Iterator[Selection]:
    if isinstance(node, promql_parser.VectorSelector):
        yield Selection(node.name, grouping | {matcher.name for matcher in node.matchers.matchers})
    elif isinstance(node, promql_parser.AggregateExpr):
        by = node.modifier.labels if node.modifier and node.modifier.type == promql_parser.AggModifierType.By else []
        yield from _selections(node.expr, grouping | set(by))
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _selections(argument, grouping)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _selections(node.vector_selector, grouping)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from _selections(node.lhs, grouping)
        yield from _selections(node.rhs, grouping)
    elif isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr | promql_parser.SubqueryExpr):
        yield from _selections(node.expr, grouping)


def series_of(kind: str, name: str) -> set[str]:
    """Return the names under which Prometheus gets a metric of Ray, by its kind: Counter, Gauge or Histogram."""
    suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
    return {f"ray_{name}{suffix}" for suffix in suffixes}
