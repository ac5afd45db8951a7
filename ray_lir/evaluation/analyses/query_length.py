"""Scores, quality and time by the number of query tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 10
BINS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 128, 1 << 30)
"""Lower bounds of the classes of lengths."""


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return, for each class of lengths, means over its queries: best score, score per token, quality, and milliseconds of exact search.

    Source: docs/algorithms.md#51-score
    """
    lengths = np.array([int(query.active.sum()) for query in model.queries])
    run = model.run({"engine": "exact"}, depth(settings, K))
    best = np.array([run[query.query_id][0][1] if run.get(query.query_id) else 0.0 for query in model.queries])
    quality = model.evaluate(run, settings.measure)
    seconds = np.array([sum(each.seconds) for each in model.funnels({"engine": "exact"}, K)])
    rows = []
    for low, high in zip(BINS, BINS[1:], strict=False):
        chosen = (lengths >= low) & (lengths < high)
        if chosen.any():
            rows.append(
                {
                    "tokens": [low, high - 1],
                    "queries": int(chosen.sum()),
                    "mean_tokens": float(lengths[chosen].mean()),
                    "score": float(best[chosen].mean()),
                    "score_per_token": float((best[chosen] / np.maximum(lengths[chosen], 1)).mean()),
                    settings.measure: float(quality[chosen].mean()),
                    "milliseconds": float(1e3 * seconds[chosen].mean()),
                }
            )
    return {"measure": settings.measure, "classes": rows}


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw score per token, quality and time against the mean length of each class."""
    panels = figure.subplots(1, 3)
    measure = next(iter(results.values()))["measure"]
    labels = {"score_per_token": "score per query token", measure: measure, "milliseconds": "milliseconds a query"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for model, found in results.items():
            axes.plot([row["mean_tokens"] for row in found["classes"]], [row[name] for row in found["classes"]], marker="o", label=model)
        axes.set_xlabel("query tokens")
        axes.set_ylabel(label)
        axes.set_ylim(0)
    panels[0].legend()


ANALYSIS = Analysis("Scores, quality and time by query length", "TRIAL, figure 1", run, draw)
