"""Sizes, models, indexes and engines of the experiment (`bench.papers.experiment`)."""

from dataclasses import dataclass, field, replace
from typing import Any

from ray_lir.engines.exact import ExactParams
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.engines.xtr import Imputation, XtrParams

UNTRAINED, PROJECTED = "untrained", "untrained, projected"
"""The base checkpoint, and the base checkpoint with the projection from which trainings start."""
TRAINING_SETS = ("squad", "nq_qed")
IN_DOMAIN = {"squad": "dev", "nq_qed": "dev", "squad_dev": "dev"}
"""Collections with training pairs, and the split that tests them."""
PARTS = {"squad_dev": "squad"}
"""Collections that are the judged documents of the test split of another one, with its test queries."""
OUT_OF_DOMAIN = ("scifact", "nfcorpus", "arguana_rebuilt", "cranfield", "cisi", "medline")
COLLECTIONS = ("nq_qed", "squad_dev", "squad", *OUT_OF_DOMAIN)
MS_MARCO_TOKENS_PER_CENTROID = 597_000_000 / 2**18
"""Tokens of a cluster of the ColBERTv2 index of MS MARCO passages, on which the papers set t' of WARP."""


@dataclass(frozen=True)
class Profile:
    """The size of an experiment.

    Attributes:
        steps: Optimizer steps of each training.
        pairs: Question-passage pairs to train on.
        batch_size: Pairs of a step.
        negatives: BM25 negatives of each pair.
        listed: BM25 negatives of each pair in the distilled trainings, which the teacher scores.
        learning_rate: Peak learning rate.
        head_learning_rate: Peak learning rate of a scorer's own weights.
        temperature: First temperature of the loss of a score that is a sum over query tokens.
        passage_length: Tokens of a passage in training.
        query_length: Tokens of a query, in training and in search.
        document_length: Tokens of a document in search.
        dim: Dimensions of a token vector; None for those of the checkpoint, without a projection.
        k_train: k of the XTR models; the first is the main one.
        seeds: Seeds of the trainings.
        collections: Collections that are searched.
        queries: Largest number of test queries of a collection; None for all.
        token_queries: Largest number of test queries for engines that search single tokens, which take long.
        k_prime: Tokens that the xtr engine retrieves for a query token; the last one is the main one.
        save_every: Steps between the saved states of a training.
        trained_layers: Last layers of the transformer that are trained; 0: only the projection and the scorer's heads; None: all layers.
            With 0, each collection is encoded once, and every model projects these embeddings.
        passages: Passages of the training sets that are used, a random sample; None: all.
        listed_passages: The same for the distilled trainings, where the teacher encodes them.
        training_candidates: Document tokens from which TRIAL's relations choose in training; None: all.
        every_seed: Models that are trained with every seed, others with the first one only; None: all models.
    """

    steps: int
    pairs: int
    batch_size: int
    negatives: int
    listed: int
    learning_rate: float
    head_learning_rate: float
    temperature: float
    passage_length: int
    query_length: int
    document_length: int
    dim: int | None
    k_train: tuple[int, ...]
    seeds: tuple[int, ...]
    collections: tuple[str, ...] = COLLECTIONS
    queries: int | None = None
    token_queries: int | None = None
    k_prime: tuple[int, ...] = (100, 400, 1000, 4000)
    save_every: int = 25
    trained_layers: int | None = None
    passages: int | None = None
    listed_passages: int | None = None
    training_candidates: int | None = None
    every_seed: tuple[str, ...] | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether the transformer is frozen, so that all models project the same embeddings."""
        return self.trained_layers == 0


PROFILES = {
    "full": Profile(1000, 32_000, 32, 1, 15, 2e-5, 2e-4, 0.2, 180, 32, 300, None, (256, 128, 64, 512), (0, 1, 2)),
    "short": Profile(
        64, 8_000, 32, 1, 7, 7e-5, 7e-4, 1.0, 80, 32, 160, 128, (128, 32), (0,), queries=4000, token_queries=500, save_every=10
    ),
    "tiny": Profile(4, 16, 4, 1, 2, 1e-3, 1e-2, 1.0, 24, 12, 24, 8, (8, 4), (0,), ("nq_qed", "squad"), save_every=1, k_prime=(5, 20)),
}
PROFILES["unprojected"] = replace(
    PROFILES["short"],
    steps=60,
    batch_size=16,
    learning_rate=3e-5,
    head_learning_rate=3e-4,
    temperature=0.2,
    passage_length=160,
    document_length=256,
    dim=None,
)
"""The settings that lost least on the development set (docs/papers.md)."""
PROFILES["projection"] = replace(
    PROFILES["full"],
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    passage_length=160,
    document_length=256,
    dim=128,
    k_train=(256, 64),
    listed=3,
    queries=4000,
    token_queries=500,
    trained_layers=0,
    passages=10_000,
    listed_passages=2_500,
    training_candidates=8,
    every_seed=("maxsim", "xtr, k 256", "trial, no relations", "trial", "attention"),
)
"""Trainings of `full` length for a few CPU cores: the transformer is frozen, and projection and heads are trained."""


@dataclass(frozen=True)
class Model:
    """A training.

    Attributes:
        changes: Fields of TrainingConfig that differ from the common ones.
        distilled: Whether a teacher's scores are the only targets.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    distilled: bool = False


def models(profile: Profile) -> dict[str, Model]:
    """Return the trainings, in the order in which they decide claims.

    Scores of XTR are means over query tokens, so their temperature starts at a twentieth of that of the sums. TRIAL without relations has
    gates only.
    """
    heads = {"scorer": "trial", "head_learning_rate": profile.head_learning_rate}
    related = {"trial": {"training_candidates": profile.training_candidates}} if profile.training_candidates else {}
    mean = profile.temperature / 20
    xtr = {f"xtr, k {k}": Model({"scorer": "xtr", "xtr": {"k_train": [k]}, "temperature": mean}) for k in profile.k_train}
    main, *further = xtr
    plain = {
        "maxsim": Model(),
        main: xtr[main],
        "trial, no relations": Model(heads | {"trial": {"relation_weight": 0}}),
        "trial": Model(heads | related),
        "attention": Model({"scorer": "attention"}),
        **{name: xtr[name] for name in further},
    }
    distilled = {f"{name}, distilled": Model(plain[name].changes, True) for name in ("maxsim", main, "trial", "attention")}
    return plain | distilled


def untrained(profile: Profile) -> tuple[str, ...]:
    """Return the models without a training; the projected one is searched if only projections and heads are trained."""
    return (UNTRAINED, PROJECTED) if profile.dim and profile.is_frozen else (UNTRAINED,)


def trainings(profile: Profile) -> list[tuple[str, int]]:
    """Return all trainings as name of the model and seed: seed by seed, and distilled models last."""
    every = models(profile)
    return [
        (name, seed)
        for distilled in (False, True)
        for seed in profile.seeds
        for name, model in every.items()
        if model.distilled is distilled and (seed == profile.seeds[0] or profile.every_seed is None or name in profile.every_seed)
    ]


@dataclass(frozen=True)
class Way:
    """A way of searching a collection with a model.

    Attributes:
        codec: Codec of the index: `default`, `papers` (2 bits, quantile buckets), or `original` for the vectors before compression.
        engine: The engine's parameters; None for `original`, which is searched without an index.
        tokens: Whether only `Profile.token_queries` queries are searched, because the search takes long.
        t_prime: t' of the papers, which is scaled to the size of the clusters; None to leave the engine's own.
        candidates: Measure how many documents have a probed cluster, and how many each stage keeps, instead of quality.
        weighted: Whether the query token weights count in the recall of 256 candidates, which is then measured instead of quality; None to
            measure quality.
    """

    codec: str
    engine: EngineConfig | None
    tokens: bool = False
    t_prime: int | None = None
    candidates: bool = False
    weighted: bool | None = None


IMPUTATIONS: tuple[Imputation, ...] = ("min", "zero", "mean", "p10", "power_law")
PAPERS_PLAID = PlaidParams(nprobe=4, centroid_score_threshold=0.45, ncandidates=1024)
"""PLAID at k = 100: a quarter of the 1,024 documents, 256, is rescored."""
PAPERS_WARP = WarpParams(nprobe=32, rescore=0)
WARP_T_PRIME = 100_000


def ways(profile: Profile) -> dict[str, Way]:
    """Return the ways of searching, in the order in which they are measured."""
    *k_primes, k_prime = profile.k_prime
    return {
        "scan": Way("default", ScanParams()),
        "plaid": Way("default", PlaidParams()),
        "warp": Way("default", WarpParams()),
        "exact": Way("default", ExactParams()),
        "papers: plaid": Way("papers", PAPERS_PLAID),
        "papers: warp": Way("papers", PAPERS_WARP, t_prime=WARP_T_PRIME),
        "papers: warp, nprobe 16": Way("papers", PAPERS_WARP.model_copy(update={"nprobe": 16}), t_prime=WARP_T_PRIME),
        "papers: exact": Way("papers", ExactParams()),
        "papers: plaid, stages": Way("papers", PAPERS_PLAID, tokens=True, candidates=True),
        "papers: warp, stages": Way("papers", PAPERS_WARP, tokens=True, t_prime=WARP_T_PRIME, candidates=True),
        "candidates, weights": Way("papers", PAPERS_PLAID, tokens=True, weighted=True),
        "candidates, no weights": Way("papers", PAPERS_PLAID, tokens=True, weighted=False),
        **{f"xtr, {each}": Way("default", XtrParams(k_prime=k_prime, imputation=each), tokens=True) for each in IMPUTATIONS},
        "plaid, stages": Way("default", PlaidParams(), tokens=True, candidates=True),
        "warp, stages": Way("default", WarpParams(), tokens=True, candidates=True),
        "original": Way("original", None, tokens=True),
        **{f"xtr, k' {each}": Way("default", XtrParams(k_prime=each), tokens=True) for each in k_primes},
    }


def ways_of(model: str, profile: Profile) -> dict[str, Way]:
    """Return the ways of searching with a model; recall with and without weights needs query token weights."""
    weighs = model.startswith(("trial", "attention"))
    return {name: way for name, way in ways(profile).items() if way.weighted is None or weighs}
