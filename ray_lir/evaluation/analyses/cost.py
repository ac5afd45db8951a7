"""Cost of a search: floating-point operations of the last stage, and the time of each stage."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, plain_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENGINES = ("plaid", "warp", "scan", "exact")
K = 10


def maxsim_flops(query_tokens: int, document_tokens: int, dim: int) -> float:
    """Return the multiplications and additions of MaxSim for one document.

    Args:
        query_tokens: n.
        document_tokens: m.
        dim: d.
    """
    return 2.0 * query_tokens * document_tokens * dim


def relation_flops(query_tokens: int, document_tokens: int, dim: int) -> dict[str, float]:
    """Return the operations of TRIAL's relation terms for one document: pair by pair, and factored.

    Both count the pairs of one query token with all tokens of the document, for the predecessor that is matched.

    Args:
        query_tokens: n.
        document_tokens: m.
        dim: d.

    Returns:
        `pairs`: both layers for each pair. `factored`: only elementwise work and one product for each pair (docs/algorithms.md#54).

    Source: docs/algorithms.md#54-exact-evaluation-in-fewer-steps
    """
    pairs = max(query_tokens - 1, 0) * document_tokens
    return {"pairs": 2.0 * pairs * (3 * dim * dim + dim), "factored": 2.0 * pairs * 5 * dim + 2.0 * document_tokens * 2 * dim * dim}


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return operations for each rescored document of mean length, and milliseconds of each stage, as means over queries.

    Source: docs/algorithms.md#54-exact-evaluation-in-fewer-steps
    """
    tokens = round(float(np.mean([query.active.sum() for query in model.queries])))
    length = round(model.num_tokens / max(model.num_docs, 1))
    flops: Numbers = {"maxsim": maxsim_flops(tokens, length, model.dim)}
    if model.scorer == "trial":
        flops |= {f"relation_{name}": value for name, value in relation_flops(tokens, length, model.dim).items()}
    stages = {}
    for engine in ENGINES:
        found = model.funnels({"engine": engine}, K)
        names = ("plan", *found[0].stages)
        stages[engine] = dict(zip(names, (1e3 * np.mean([each.seconds for each in found], axis=0)).tolist(), strict=True))
    return {"query_tokens": tokens, "document_tokens": length, "flops_per_document": flops, "milliseconds": stages}


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw the operations of a score on the left, and the time of the stages, stacked, for each model and engine, on the right."""
    operations, axes = figure.subplots(1, 2, width_ratios=(1, 2))
    counts = {model: found["flops_per_document"] for model, found in results.items()}
    flops = {f"{model}\n{kind.replace('_', ' ')}": value for model, kinds in counts.items() for kind, value in kinds.items()}
    bars = operations.barh(list(flops), [value / 1e6 for value in flops.values()], height=0.6)
    operations.bar_label(bars, fmt="%.3g", padding=3)
    operations.set_xscale("log")
    plain_numbers(operations.xaxis)
    operations.margins(x=0.25)
    operations.invert_yaxis()
    operations.set_xlabel("million operations a document")
    separator = ", " if len(results) > 1 else ""
    labels = [f"{model if separator else ''}{separator}{engine}" for model, found in results.items() for engine in found["milliseconds"]]
    columns = [stages for found in results.values() for stages in found["milliseconds"].values()]
    bottom = np.zeros(len(columns))
    for name in sorted(dict.fromkeys(name for stages in columns for name in stages), key=lambda name: name == "rescore"):
        widths = np.array([stages.get(name, 0.0) for stages in columns])
        axes.barh(labels, widths, left=bottom, height=0.6, label=name.replace("_", " "))
        bottom += widths
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a query")
    figure.legend(loc="outside right upper", title="stage")


ANALYSIS = Analysis("Operations of a score, and time of each stage", "TRIAL, tables 4 and 5", run, draw)
