"""Claims of papers about scorers and engines, each as a pair of models and engines that bench.papers.scorers compares."""

from collections.abc import Sequence
from dataclasses import dataclass

Way = tuple[str, str]
"""Name of a model, and name of an engine."""


@dataclass(frozen=True)
class Claim:
    """A paper's claim about two ways of searching.

    Attributes:
        published: The paper's figures for `first` and `second`.
        equal: Whether the paper finds no difference; otherwise it finds `first` better.
    """

    source: str
    text: str
    published: str
    first: Way
    second: Way
    equal: bool = False


def claims(k_train: Sequence[int]) -> list[Claim]:
    """Of models trained with these k_train, ascending. XTR's are those of its replication (arXiv 2605.00646), ColBERT-Att's of arXiv
    2603.25248. Published figures are nDCG@10 in percent, means over each paper's sets; those of ColBERT-Att Success@5."""
    xtr = [f"xtr, k {k}" for k in k_train]
    middle = xtr[len(xtr) // 2]
    own, warp = "xtr, min", "warp, no rescoring"
    replication = "arXiv 2605.00646"
    return [
        Claim(f"{replication}, table 1", "XTR is better the larger k_train is", "48.1 / 46.4", (xtr[-1], own), (xtr[0], own)),
        Claim(
            f"{replication}, table 1",
            "MaxSim training is better than XTR's, also under XTR's scores",
            "49.3 / 48.1",
            ("maxsim", own),
            (xtr[-1], own),
        ),
        Claim(
            f"{replication}, table 1",
            "a MaxSim encoder is as good under XTR's scores",
            "49.3 / 49.4",
            ("maxsim", own),
            ("maxsim", "exact"),
            True,
        ),
        Claim(
            f"{replication}, table 2",
            "imputing the mean is as good as the minimum",
            "48.6 / 48.9",
            (middle, "xtr, mean"),
            (middle, own),
            True,
        ),
        Claim(
            f"{replication}, table 2", "imputing the minimum is better than nothing", "48.9 / 48.3", (middle, own), (middle, "xtr, zero")
        ),
        Claim(f"{replication}, table 3", "under WARP's own scores XTR training is better", "47.1 / 45.1", (middle, warp), ("maxsim", warp)),
        Claim(f"{replication}, table 3", "under PLAID it is as good", "47.5 / 47.8", (middle, "plaid"), ("maxsim", "plaid"), True),
        Claim("TRIAL, table 1", "relations help", "51.1 / 49.9", ("trial", "plaid"), ("trial, no relations", "plaid")),
        Claim("TRIAL, table 1", "gates help", "49.9 / 48.9", ("trial, no relations", "plaid"), ("maxsim", "plaid")),
        Claim("ColBERT-Att, table 4", "attention weights help", "72.4 / 71.9", ("attention", "plaid"), ("maxsim", "plaid")),
    ]
