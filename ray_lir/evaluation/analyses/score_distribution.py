"""Distribution of the scores of retrieved tokens: a narrow one makes imputed scores harmless."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 200


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return a histogram of the scores, with 200 bins from -1 to 1, and their quantiles.

    Source: docs/algorithms.md#82-analyses
    """
    edges = np.linspace(-1, 1, BINS + 1)
    counts, lowest, highest, all_scores = np.zeros(BINS, np.int64), [], [], []
    for found in model.retrieve(settings.tokens_per_query_token):
        counts += np.histogram(np.clip(found.scores, -1, 1), edges)[0]
        all_scores.append(found.scores)
        ends = np.flatnonzero(np.diff(found.rows, append=-1) != 0)
        highest.append(found.scores[found.ranks == 0])
        lowest.append(found.scores[ends])
    scores = np.concatenate(all_scores)
    if not len(scores):
        return {"edges": rounded(edges), "counts": counts.tolist(), "tokens": 0}
    return {
        "edges": rounded(edges),
        "counts": counts.tolist(),
        "tokens": len(scores),
        "mean": float(scores.mean(dtype=np.float64)),
        "std": float(scores.std(dtype=np.float64)),
        "quantiles": dict(zip(("0.1", "0.5", "0.9"), rounded(np.quantile(scores, (0.1, 0.5, 0.9))), strict=True)),
        "gap_first_last": float((np.concatenate(highest) - np.concatenate(lowest)).mean(dtype=np.float64)),
    }


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw one curve a model."""
    axes = figure.subplots()
    for name, found in results.items():
        counts = np.asarray(found["counts"], float)
        centers = (np.asarray(found["edges"])[1:] + np.asarray(found["edges"])[:-1]) / 2
        [line] = axes.plot(centers, counts / max(counts.sum(), 1), label=name)
        axes.fill_between(centers, counts / max(counts.sum(), 1), alpha=0.15, color=line.get_color())
    found_bins = np.flatnonzero(np.sum([found["counts"] for found in results.values()], axis=0))
    if len(found_bins):
        axes.set_xlim(2 * found_bins[0] / BINS - 1.05, 2 * (found_bins[-1] + 1) / BINS - 0.95)
    axes.set_ylim(0)
    axes.set_xlabel("similarity of retrieved tokens")
    axes.set_ylabel("fraction of tokens")
    axes.legend()


ANALYSIS = Analysis("Distribution of the scores of retrieved tokens", "XTR study, figure 3", run, draw)
