"""Geometry of document token vectors: mean pairwise cosine and effective dimensionality."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mean_pairwise_cosine(vectors: np.ndarray) -> float:
    """Return the mean cosine of two distinct vectors.

    Args:
        vectors: [M, D] unit vectors, M at least 2.

    Source: docs/algorithms.md#82-analyses
    """
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = np.einsum("md,md->", vectors, vectors, dtype=np.float64)
    count = len(vectors)
    return float((total @ total - squares) / (count * (count - 1)))


def effective_dimensionality(vectors: np.ndarray) -> float:
    """Return the participation ratio of the uncentred second moment, between 1 and D.

    Args:
        vectors: [M, D] vectors.

    Source: docs/algorithms.md#82-analyses
    """
    matrix = vectors.astype(np.float64)
    values = np.linalg.eigvalsh(matrix.T @ matrix / len(matrix))
    return float(values.sum() ** 2 / (values**2).sum())


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return both numbers over a sample of document tokens.

    Source: docs/algorithms.md#82-analyses
    """
    vectors = model.sample_vectors(settings.sampled_tokens, settings.seed)
    return {
        "mean_pairwise_cosine": mean_pairwise_cosine(vectors),
        "effective_dimensionality": effective_dimensionality(vectors),
        "dimensions": model.dim,
        "tokens": len(vectors),
    }


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw one bar a model for each number."""
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("mean_pairwise_cosine", "effective_dimensionality"), strict=True):
        bars = axes.barh(list(results), [found[name] for found in results.values()], height=0.5)
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.margins(x=0.15)


def missing(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what an index with fewer than two tokens lacks."""
    return None if model.num_tokens > 1 else "the index has fewer than two tokens"


ANALYSIS = Analysis("Mean pairwise cosine and effective dimensionality", "XTR study, section on anisotropy", run, draw, missing)
