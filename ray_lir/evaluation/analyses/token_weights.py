"""Weights of query tokens by part of speech, and by kind of token."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.base.extras import is_installed, missing_message
from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, JudgedQuery, Numbers, lacks_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tags = Sequence[tuple[int, int, str]]
"""First character, end character and part of speech of each word."""


def classes(query: JudgedQuery, tags: Tags) -> list[str]:
    """Return the class of each token: the part of speech of its word, or the token itself for special tokens. A sub-word has its word's
    class.

    Args:
        query: The query.
        tags: Its words with their parts of speech.
    """
    starts, ends = np.array([first for first, _, _ in tags]), np.array([end for _, end, _ in tags])
    names = []
    for piece, (first, _) in zip(query.pieces, query.spans.tolist(), strict=True):
        at = np.flatnonzero((starts <= first) & (first < ends)) if first >= 0 and len(tags) else np.zeros(0, int)
        names.append(tags[at[0]][2] if len(at) else piece if first < 0 else "other")
    return names


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return count, mean and standard deviation of the weights in each class, the most frequent class first.

    Source: docs/algorithms.md#82-analyses
    """
    name = _model(settings.tagger)
    assert name is not None
    tag = _tagger(name)
    weights: dict[str, list[float]] = {}
    for query in model.queries:
        assert query.weights is not None
        for kind, weight in zip(classes(query, tag(query.text)), query.weights.tolist(), strict=True):
            weights.setdefault(kind, []).append(weight)
    ordered = sorted(weights.items(), key=lambda item: -len(item[1]))
    return {
        "tagger": name,
        "classes": {name: {"tokens": len(each), "mean": float(np.mean(each)), "std": float(np.std(each))} for name, each in ordered},
    }


def _model(name: str) -> str | None:
    """The name of an installed model of spaCy; None if there is none."""
    from spacy.util import get_installed_models  # loading spaCy takes seconds

    found = sorted(get_installed_models())
    return next((each for each in found if (each.startswith("en_") if name == "auto" else each == name)), None)


def _tagger(name: str) -> Callable[[str], Tags]:
    import spacy

    language = spacy.load(name)
    return lambda text: [(word.idx, word.idx + len(word), word.pos_) for word in language(text)]


def missing(model: AnalyzedModel, settings: AnalysisSettings) -> str | None:
    """Return what is missing: token weights, spaCy or its model."""
    if reason := lacks_weights(model, settings):
        return reason
    if not is_installed("spacy"):
        return missing_message("spacy", "tagging parts of speech")
    if _model(settings.tagger) is None:
        return f"spaCy has no model {settings.tagger}; install one (pip install 'ray_lir[tagging]'), or set --analysis.tagger"
    return None


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw the mean weight of each class, with its standard deviation."""
    axes = figure.subplots()
    names = list(dict.fromkeys(name for found in results.values() for name in found["classes"]))[:20]
    width = 0.8 / len(results)
    for number, (model, found) in enumerate(results.items()):
        there = [place for place, name in enumerate(names) if name in found["classes"]]
        values = [found["classes"][names[place]] for place in there]
        places = np.array(there) + number * width
        spread = {"elinewidth": 1, "capsize": 2, "alpha": 0.6}
        axes.bar(places, [each["mean"] for each in values], width, yerr=[each["std"] for each in values], error_kw=spread, label=model)
    axes.set_xticks(np.arange(len(names)) + (len(results) - 1) * width / 2, names, rotation=45, ha="right")
    axes.set_ylabel("weight of a query token")
    axes.legend()


ANALYSIS = Analysis("Weights of query tokens by part of speech", "TRIAL, figures 2 and 3", run, draw, missing)
