"""Fraction of retrieved tokens that come from a relevant document, and fraction of lexical matches, by rank."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Numbers, plain_numbers, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 25


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return both fractions at ranks in equal steps of their logarithm.

    Special tokens and expansion tokens are left out. The mean is taken over the tokens of a query, then over queries with a relevant
    document. `lexical` is None if the vocabulary ids of document tokens are unknown.

    Source: docs/algorithms.md#82-analyses
    """
    depth = min(settings.tokens_per_query_token, max(1, model.num_tokens))
    gold, lexical, queries = np.zeros(depth), np.zeros(depth), 0
    for query, found in zip(model.queries, model.retrieve(depth), strict=True):
        chosen = query.is_word[found.rows]
        words = int(query.is_word.sum())
        if not words or not len(query.relevant):
            continue
        queries += 1
        ranks = found.ranks[chosen]
        is_gold = np.isin(found.documents[chosen], query.relevant)
        is_lexical = found.token_ids[chosen] == query.token_ids[found.rows[chosen]]
        gold += np.bincount(ranks, is_gold, depth) / words
        lexical += np.bincount(ranks, is_lexical, depth) / words
    ranks = np.unique(np.round(np.geomspace(1, depth, POINTS)).astype(int))
    return {
        "ranks": ranks.tolist(),
        "gold": rounded(gold[ranks - 1] / max(queries, 1)),
        "lexical": rounded(lexical[ranks - 1] / max(queries, 1)) if model.knows_document_tokens else None,
        "queries": queries,
    }


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw one panel for each fraction."""
    panels = figure.subplots(1, 2)
    for axes, kind, label in zip(panels, ("gold", "lexical"), ("from a relevant document", "lexical match"), strict=True):
        for name, found in results.items():
            if found[kind] is not None:
                axes.plot(found["ranks"], found[kind], label=name)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set_ylim(0)
        axes.set_xlabel("rank of the token")
        axes.set_ylabel(f"fraction {label}")
    panels[0].legend()


ANALYSIS = Analysis("Retrieved tokens from relevant documents, and lexical matches, by rank", "XTR study, figure 4", run, draw)
