"""Claims of papers about scorers and engines, each as a pair of models and ways of searching that the experiment compares."""

from dataclasses import dataclass
from typing import Literal

from bench.papers.profiles import Profile

Cell = tuple[str, str]
"""Name of a model, and name of a way of searching."""
Kind = Literal["better", "same", "fewer"]
Verdict = Literal["holds", "contradicted", "equivalent within .01", "cannot be seen here", "not measured"]
XTR, COLBERT_V2, PLAID, WARP = "arXiv 2605.00646", "arXiv 2112.01488", "arXiv 2205.09707", "arXiv 2501.17788"
TRIAL, ATTENTION = "TRIAL", "arXiv 2603.25248"
RECALL, CANDIDATES = "R@256 of candidates", "candidates"


@dataclass(frozen=True)
class Claim:
    """A paper's claim about two models or two ways of searching.

    Attributes:
        source: The paper, and the table or figure.
        text: The claim.
        published: The paper's figures for `first` and `second`; empty if it gives none.
        first: Model and way of searching about which the claim is made.
        second: Model and way of searching that it is compared with.
        kind: `better`: `first` has the larger measure. `fewer`: `first` has the smaller one. `same`: both are as good.
        measure: What is compared.
    """

    source: str
    text: str
    published: str
    first: Cell
    second: Cell
    kind: Kind = "better"
    measure: str = "nDCG@10"


@dataclass(frozen=True)
class Finding:
    """What the measurements say about a claim.

    Attributes:
        difference: `first - second`.
        p: Two-sided p value of the difference, corrected for all measured claims.
        equivalence_p: p value of the test that the difference is within .01, corrected for all measured claims.
        by_seed: The difference for each seed.
    """

    difference: float
    p: float
    equivalence_p: float
    by_seed: tuple[float, ...]


def verdict(kind: Kind, finding: Finding | None, alpha: float = 0.05) -> Verdict:
    """Return whether a claim holds.

    A difference counts if it is significant and has one direction for all seeds. A claim that two ways are as good holds only if they are
    shown to be equivalent; a significant difference contradicts it. If neither test decides, these queries cannot tell.

    Args:
        kind: Kind of the claim.
        finding: The tests; None if nothing was measured.
        alpha: Level of both tests.
    """
    if finding is None:
        return "not measured"
    directions = {each > 0 for each in (finding.difference, *finding.by_seed)}
    different, equivalent = finding.p <= alpha and len(directions) == 1, finding.equivalence_p <= alpha
    if kind == "same":
        return "holds" if equivalent else "contradicted" if different else "cannot be seen here"
    if different:
        return "holds" if (finding.difference > 0) == (kind == "better") else "contradicted"
    return "equivalent within .01" if equivalent else "cannot be seen here"


def claims(profile: Profile, colbert: str = "maxsim", token_model: str | None = None) -> list[Claim]:
    """Return the claims for the models of a profile.

    Published figures are nDCG@10 in percent unless they name another measure. They are means over the collections of the paper; the figures
    of table 2 of the XTR study are means of its four collections.

    Args:
        profile: Size of the experiment.
        colbert: Model for claims about codecs and engines that hold for any ColBERT encoder.
        token_model: Model for claims about token retrieval and WARP; None for the main XTR model.
    """
    main, small, large = (f"xtr, k {k}" for k in (profile.k_train[0], min(profile.k_train), max(profile.k_train)))
    own, warp, plaid = "xtr, min", "papers: warp", "papers: plaid"
    tokens = token_model or main

    def imputed(text: str, published: str, name: str) -> Claim:
        return Claim(f"{XTR}, table 2", text, published, (tokens, f"xtr, {name}"), (tokens, own), "same")

    return [
        Claim(f"{COLBERT_V2}, residual compression", "2 bits a dimension keep the quality of uncompressed vectors", "",
              (colbert, "papers: exact"), (colbert, "original"), "same"),
        Claim(f"{PLAID}, abstract", "PLAID loses no quality against exhaustive search", "",
              (colbert, plaid), (colbert, "papers: exact"), "same"),
        Claim(f"{XTR}, table 1", "a ColBERT encoder is as good under XTR's scores as under MaxSim", "49.3 / 49.4",
              (colbert, own), (colbert, "exact"), "same"),
        Claim(f"{XTR}, table 2", "imputing the minimum is better than imputing 0", "48.9 / 48.3", (tokens, own), (tokens, "xtr, zero")),
        imputed("imputing the mean is as good as the minimum", "48.6 / 48.9", "mean"),
        imputed("imputing the 10th percentile is as good as the minimum", "48.7 / 48.9", "p10"),
        imputed("imputing a power law is as good as the minimum", "48.7 / 48.9", "power_law"),
        Claim(f"{XTR}, table 1", "ColBERT's training is better than XTR's, even under XTR's scores", "49.3 / 48.1",
              ("maxsim", own), (main, own)),
        Claim(f"{XTR}, table 3", "under WARP, XTR's training is better than ColBERT's", "47.1 / 45.1", (main, warp), ("maxsim", warp)),
        Claim(f"{XTR}, table 3", "under PLAID, XTR's training is as good as ColBERT's", "47.5 / 47.8",
              (main, plaid), ("maxsim", plaid), "same"),
        Claim(f"{XTR}, figure 2", "with XTR's training, PLAID considers a smaller part of the collection", "17.9 / 26.3 %",
              (main, "papers: plaid, stages"), ("maxsim", "papers: plaid, stages"), "fewer", CANDIDATES),
        Claim(f"{XTR}, settings of WARP", "WARP's defaults are too conservative: probing 32 clusters is better than 16", "",
              (tokens, warp), (tokens, "papers: warp, nprobe 16")),
        Claim(f"{WARP}, abstract", "WARP preserves the quality of XTR's own retrieval", "", (tokens, warp), (tokens, own), "same"),
        Claim(f"{TRIAL}, table 1", "token importance helps", "49.9 / 48.9", ("trial, no relations", plaid), ("maxsim", plaid)),
        Claim(f"{TRIAL}, table 1", "relations help", "51.1 / 49.9", ("trial", plaid), ("trial, no relations", plaid)),
        Claim(f"{TRIAL}, table 8", "token importance raises the recall of PLAID's 256 candidates", "72.3 / 38.2 R@256",
              ("trial", "candidates, weights"), ("trial", "candidates, no weights"), measure=RECALL),
        Claim(f"{ATTENTION}, table 4a", "attention weights help", "72.4 / 71.9 Success@5", ("attention", plaid), ("maxsim", plaid)),
        Claim(f"{XTR}, table 1", "XTR is better the larger k_train is", "48.1 / 46.4", (large, own), (small, own)),
        Claim(f"{XTR}, table 3", "distilled: under WARP, XTR's training is better than ColBERT's", "48.2 / 40.2",
              (f"{main}, distilled", warp), ("maxsim, distilled", warp)),
        Claim(f"{XTR}, table 3", "distilled: under PLAID, XTR's training is as good as ColBERT's", "48.6 / 48.6",
              (f"{main}, distilled", plaid), ("maxsim, distilled", plaid), "same"),
    ]  # fmt: skip
