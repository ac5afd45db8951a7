"""The comparison of bench.papers.scorers: sizes, models and engines."""

from dataclasses import dataclass
from typing import Any

from ray_lir.base.config import Config
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.warp import WarpParams
from ray_lir.engines.xtr import XtrParams

LEARNING_RATE = 2e-5
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Profile:
    """The size of a comparison.

    Attributes:
        steps, batch_size, passage_length: Training settings; lengths are in tokens.
        k_train: k of the XTR models: 1 to 20% of the tokens of a batch.
        queries: Largest number of test queries of a collection.
        documents: Documents of a collection: all judged for the queries, and random ones up to this number.
        k_prime: Tokens that the xtr engine retrieves for a query token.
    """

    device: str
    steps: int
    batch_size: int
    passage_length: int
    k_train: tuple[int, ...]
    queries: int
    documents: int
    query_length: int
    document_length: int
    k_prime: int


PROFILES = {
    "cpu": Profile("cpu", 64, 32, 80, (32, 128, 512), 40, 800, 32, 96, 1000),
    "gpu": Profile("cuda", 1000, 64, 180, (64, 256, 1024), 400, 10**9, 64, 256, 4000),
    "tiny": Profile("cpu", 2, 4, 24, (4,), 3, 12, 12, 16, 50),
}


def models(profile: Profile) -> dict[str, dict[str, Any] | None]:
    """Return the settings of each model that differ from the common ones (None: not trained), the most important models first.

    Scores that are means over query tokens (XTR's) start at a temperature of 0.05 and sums at 1, as in the recipes. TRIAL without
    relations and gates is MaxSim, the model maxsim.
    """
    heads = {"scorer": "trial", "head_learning_rate": 10 * LEARNING_RATE}
    return {
        UNTRAINED: None,
        "maxsim": {},
        **{f"xtr, k {k}": {"scorer": "xtr", "xtr": {"k_train": [k]}, "temperature": 0.05} for k in profile.k_train},
        "trial": heads,
        "trial, no relations": heads | {"trial": {"relation_weight": 0}},
        **{
            name: {"scorer": "attention", "attention": {"sides": sides}}
            for name, sides in (
                ("attention", "both"),
                ("attention, documents only", "documents"),
                ("attention, queries only", "queries"),
            )
        },
    }


def engines(profile: Profile) -> tuple[dict[str, Config], dict[str, Config]]:
    """Return the engines that are measured first, and the XTR imputations that are measured last."""
    first, *later = (
        {f"xtr, {imputation}": XtrParams(k_prime=profile.k_prime, imputation=imputation)}
        for imputation in ("min", "mean", "p10", "power_law", "zero")
    )
    plain = {"exact": ExactParams(), "plaid": PlaidParams(), "warp": WarpParams(), "warp, no rescoring": WarpParams(rescore=0)}
    return plain | first, {name: params for each in later for name, params in each.items()}
