"""Examples in which TRIAL's relations change the rank of a relevant document, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

K = 100
SHOWN, ROWS = 40, 16
"""Characters of a query, and tokens of the first example, that the figure shows."""


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return the largest rank changes of relevant documents, by the ratio of the ranks with and without relations.

    Source: docs/algorithms.md#51-score
    """
    with_relations, without = model.run({"engine": "exact"}, K), model.without_relations(K)
    changes = []
    for number, query in enumerate(model.queries):
        places = [{doc_id: rank for rank, (doc_id, _) in enumerate(run.get(query.query_id, ()), 1)} for run in (with_relations, without)]
        for doc_id in model.relevant_ids(number):
            ranks = [place.get(doc_id, K + 1) for place in places]
            if ranks[0] != ranks[1]:
                changes.append((abs(np.log(ranks[0] / ranks[1])), number, doc_id, ranks))
    changes.sort(key=lambda change: (-change[0], change[1], change[2]))
    return {
        "changed": len(changes),
        "improved": sum(ranks[0] < ranks[1] for _, _, _, ranks in changes),
        "examples": [
            {
                "query_id": model.queries[number].query_id,
                "query": model.queries[number].text,
                "doc_id": doc_id,
                "rank": ranks[0] if ranks[0] <= K else None,
                "rank_without_relations": ranks[1] if ranks[1] <= K else None,
                "tokens": [asdict(match) for match in model.matches(number, doc_id)],
            }
            for _, number, doc_id, ranks in changes[: settings.examples]
        ],
    }


def missing(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what another scorer than TRIAL lacks."""
    return None if model.scorer == "trial" else f"the scorer {model.scorer} has no relations; analyze an index of the scorer trial"


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw the examples as a table of ranks on the left, and the tokens of the first example on the right."""
    left, right = figure.subplots(1, 2)
    examples = [(model, each) for model, found in results.items() for each in found["examples"]]
    for axes in (left, right):
        axes.axis("off")
    if not examples:
        left.text(0.5, 0.5, "no rank of a relevant document changes", ha="center")
        return
    ranks = [
        (_shortened(each["query"]), each["doc_id"], str(each["rank"] or f"> {K}"), str(each["rank_without_relations"] or f"> {K}"))
        for _, each in examples
    ]
    _table(left, ("query", "document", "rank", "without relations"), ranks, (0.5, 0.18, 0.1, 0.22))
    _, first = examples[0]
    tokens = [
        (
            match["query_token"],
            match["document_token"],
            match["plain_token"],
            f"{match['contribution']:.3f}",
            f"{match['plain_contribution']:.3f}",
        )
        for match in first["tokens"][:ROWS]
    ]
    right.set_title(f"{_shortened(first['query'])} and {first['doc_id']}", fontsize=9)
    _table(right, ("query token", "match", "match without", "term", "term without"), tokens, (0.22, 0.22, 0.22, 0.17, 0.17))


def _table(axes: "Axes", columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[float]) -> None:
    table = axes.table(rows, colLabels=columns, colWidths=widths, loc="upper center", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.2)
    for cell in table.get_celld().values():
        cell.PAD = 0.02


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


ANALYSIS = Analysis("Rank changes by relations, token by token", "TRIAL, table 7", run, draw, missing)
