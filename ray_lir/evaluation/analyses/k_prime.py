"""Quality of XTR's retrieval: against the number of retrieved tokens k', and for each imputation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel, Imputation, Numbers, depth, plain_numbers
from ray_lir.evaluation.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMPUTATIONS: tuple[Imputation, ...] = ("mean", "p10", "min", "power_law", "zero")
K = 100
USUAL = 4000
"""k' for the comparison of imputations, if the index has enough tokens."""
TOKENS_PER_K_PRIME = 20
"""The index must have this many times k' tokens. With a larger k', retrieval reads most of the index."""


def run(model: AnalyzedModel, settings: AnalysisSettings) -> Numbers:
    """Return the quality at every k' with the imputation min, of every imputation at one k', and of the scorer's exact scores.

    Source: docs/algorithms.md#35-retrieval-and-imputation
    """
    most = max(1, model.num_tokens // TOKENS_PER_K_PRIME)
    k_primes = [k_prime for k_prime in settings.k_primes if k_prime <= most] or [min(*settings.k_primes, model.num_tokens)]
    usual, k = min(USUAL, max(k_primes)), depth(settings, K)

    def quality(run: Run) -> float:
        return float(model.evaluate(run, settings.measure).mean())

    pairs = list(dict.fromkeys([*((k_prime, "min") for k_prime in k_primes), *((usual, each) for each in IMPUTATIONS)]))
    runs = dict(zip(pairs, map(quality, model.token_runs(pairs, k)), strict=True))
    return {
        "measure": settings.measure,
        "k_primes": k_primes,
        "by_k_prime": [runs[k_prime, "min"] for k_prime in k_primes],
        "k_prime": usual,
        "by_imputation": {each: runs[usual, each] for each in IMPUTATIONS},
        "exact": quality(model.run({"engine": "exact"}, k)),
    }


def draw(figure: "Figure", results: Mapping[str, Numbers]) -> None:
    """Draw quality against k' on the left, and by imputation on the right."""
    left, right = figure.subplots(1, 2, sharey=True)
    for name, found in results.items():
        [line] = left.plot(found["k_primes"], found["by_k_prime"], marker="o", label=name)
        left.axhline(found["exact"], color=line.get_color(), linestyle=":")
        right.plot(
            [each.replace("_", " ") for each in IMPUTATIONS], [found["by_imputation"][each] for each in IMPUTATIONS], "o:", label=name
        )
    left.set_xscale("log")
    plain_numbers(left.xaxis)
    left.set_xlabel("k' (dotted: exact scores)")
    left.set_ylabel(next(iter(results.values()))["measure"])
    usual = {found["k_prime"] for found in results.values()}
    right.set_xlabel(f"imputation, k' = {', '.join(f'{each:,}' for each in sorted(usual))}")
    right.margins(x=0.08)
    left.legend()


ANALYSIS = Analysis("Quality against k', and by imputation", "XTR study, figure 1 and table 2", run, draw)
