"""Examples in which TRIAL's relations change the rank of a relevant document, token by token."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 100
SHOWN = 60
"""Characters of a query that the figure shows."""


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
    """Draw the examples as a table: ranks with and without relations."""
    axes = figure.subplots()
    axes.axis("off")
    rows = [
        (model, _shortened(each["query"]), each["doc_id"], str(each["rank"] or f"> {K}"), str(each["rank_without_relations"] or f"> {K}"))
        for model, found in results.items()
        for each in found["examples"]
    ]
    if not rows:
        axes.text(0.5, 0.5, "no rank of a relevant document changes", ha="center")
        return
    columns = ("model", "query", "document", "rank", "without relations")
    table = axes.table(rows, colLabels=columns, colWidths=(0.12, 0.5, 0.14, 0.08, 0.16), loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.5)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


ANALYSIS = Analysis("Rank changes by relations, token by token", "TRIAL, table 7", run, draw, missing)
