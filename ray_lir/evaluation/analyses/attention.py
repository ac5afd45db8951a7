"""Quality of scorer attention by the sides that have weights, and by the length l of document weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray_lir.base.config import AttentionChanges
from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 100
ENGINE = {"engine": "plaid"}


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return the quality for each choice of sides, and for each l. Neither documents are encoded again nor the model is trained again.

    Source: docs/algorithms.md#61-score
    """

    def quality(changes: AttentionChanges | None) -> float:
        return float(model.evaluate(model.with_attention(changes).run(ENGINE, k), settings.measure).mean())

    k = depth(settings, K)
    own = model.attention.delta_length
    sides: dict[str, AttentionChanges | None] = {"none": None}
    sides |= {each: AttentionChanges(sides=each) for each in ("queries", "documents", "both")}
    return {
        "measure": settings.measure,
        "delta_length": own,
        "by_sides": {name: quality(changes) for name, changes in sides.items()},
        "by_delta_length": {str(length or "always"): quality(AttentionChanges(delta_length=length)) for length in settings.delta_lengths},
    }


def missing(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what an index lacks: scorer attention with document weights, or texts."""
    if model.scorer != "attention":
        return f"the scorer {model.scorer} has no attention weights; analyze an index of the scorer attention"
    if model.attention.sides == "queries":
        return "the index has no document weights; build it with --attention.sides both --attention.delta_length 150"
    if not model.knows_document_tokens:
        return "the lengths of the documents are unknown; index them with their texts, without windows and pooling"
    return None


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw quality by sides on the left, and by l on the right."""
    left, right = figure.subplots(1, 2, sharey=True)
    for name, found in results.items():
        left.plot(list(found["by_sides"]), list(found["by_sides"].values()), "o:", label=name)
        right.plot(list(found["by_delta_length"]), list(found["by_delta_length"].values()), "o:", label=name)
    left.set_xlabel("token weights of")
    left.set_ylabel(next(iter(results.values()))["measure"])
    right.set_xlabel("l (always: delta is 1)")
    for axes in (left, right):
        axes.margins(x=0.1)
    left.legend()


ANALYSIS = Analysis("Attention weights by side, and by length l", "ColBERT-Att, tables 4a and 4b", run, draw, missing)
