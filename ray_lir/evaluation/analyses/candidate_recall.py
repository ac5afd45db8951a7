"""Recall of PLAID's candidates with and without query token weights, and quality with oracle candidates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 10


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return, with and without weights, the recall of the candidates and the quality after exact rescoring.

    `oracle` adds the judged documents to the candidates. `capped_recall` divides by the smaller of the number of relevant documents and
    the number of candidates, as TRIAL's code does. Queries without a relevant document are left out.

    Source: docs/algorithms.md#53-retrieval
    """
    kinds = {"weighted": True, "unweighted": False} if model.queries[0].weights is not None else {"unweighted": False}
    judged = [number for number, query in enumerate(model.queries) if len(query.relevant)]
    count, k = min(settings.candidates, model.num_docs), depth(settings, K)
    engine = {"engine": "plaid", "ncandidates": 4 * settings.candidates}
    result: Numbers = {"measure": settings.measure, "candidates": count, "queries": len(judged)}
    for name, weighted in kinds.items():
        found = model.candidates(engine, K, count, weighted)
        hits = [len(np.intersect1d(found[number], model.queries[number].relevant)) for number in judged]
        sizes = [len(model.queries[number].relevant) for number in judged]
        oracle = [np.union1d(documents, query.relevant) for documents, query in zip(found, model.queries, strict=True)]
        result[name] = {
            "recall": float(np.mean([hit / size for hit, size in zip(hits, sizes, strict=True)])),
            "capped_recall": float(np.mean([hit / min(size, count) for hit, size in zip(hits, sizes, strict=True)])),
            "quality": float(model.evaluate(model.rescore(found, k), settings.measure)[judged].mean()),
            "quality_oracle": float(model.evaluate(model.rescore(oracle, k), settings.measure)[judged].mean()),
        }
    return result


def missing(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what a collection without relevant documents lacks."""
    return None if any(len(query.relevant) for query in model.queries) else "no query has a relevant document in the index"


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw recall and quality as points."""
    axes = figure.subplots()
    measure = next(iter(results.values()))["measure"]
    for name, found in results.items():
        for kind in ("weighted", "unweighted"):
            if kind in found:
                values = [found[kind][each] for each in ("recall", "quality", "quality_oracle")]
                axes.plot(("recall of candidates", measure, f"{measure}, oracle"), values, "o:", label=f"{name}, {kind}")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("mean over queries")
    axes.margins(x=0.1)
    axes.legend()


ANALYSIS = Analysis("Recall of candidates with and without weights, and oracle candidates", "TRIAL, table 8", run, draw, missing)
