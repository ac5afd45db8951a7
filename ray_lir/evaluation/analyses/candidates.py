"""Candidates of PLAID and WARP: their number, their fraction of the collection, and queries a second."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, plain_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENGINES = ("plaid", "warp")
K = 10


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return, for each engine, means over queries. Queries run one after another, and encoding is not timed.

    Source: docs/algorithms.md#82-analyses
    """
    result: Numbers = {"documents": model.num_docs}
    for engine in ENGINES:
        found = model.funnels({"engine": engine}, K)
        candidates = float(np.mean([each.candidates for each in found]))
        result[engine] = {
            "candidates": candidates,
            "fraction": candidates / max(model.num_docs, 1),
            "kept": dict(zip(found[0].stages, np.mean([each.kept for each in found], axis=0).tolist(), strict=True)),
            "queries_per_second": len(found) / sum(sum(each.seconds) for each in found),
        }
    return result


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw queries a second against candidates, one point for each model and engine."""
    axes = figure.subplots()
    for name, found in results.items():
        for engine, marker in zip(ENGINES, "os", strict=True):
            axes.plot(100 * found[engine]["fraction"], found[engine]["queries_per_second"], marker, markersize=9, label=f"{name}, {engine}")
    speeds = [found[engine]["queries_per_second"] for found in results.values() for engine in ENGINES]
    if max(speeds) > 10 * min(speeds):
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    else:
        axes.set_ylim(0, 1.15 * max(speeds))
    axes.set_xlim(0, 104)
    axes.set_xlabel("candidates, % of the collection")
    axes.set_ylabel("queries a second")
    axes.legend(loc="lower left")


ANALYSIS = Analysis("Candidates and speed of PLAID and WARP", "XTR study, figure 2", run, draw)
