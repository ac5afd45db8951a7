"""The choice of an engine: by name with parameters, or by engine `auto`, which compares estimated times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from ray_lir import storage
from ray_lir.api.search import first_problem
from ray_lir.base.config import parse_json
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.engines.cost import COSTS
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import IndexStatistics
from ray_lir.engines.registry import ENGINES, SERVED
from ray_lir.engines.scoring.terms import DEFAULT_RELATION_CANDIDATES, default_relation_documents
from ray_lir.kernels import select

TUNING = "tuning.json"
FAST_FRACTION = 0.25
"""Candidates of quality fast, as a fraction of those of quality balanced."""
MAX_CHOICES = 256
"""Largest number of choices that are kept for an index."""
QUALITIES = ("fast", "balanced", "exact")


@dataclass(frozen=True)
class Tuning:
    """The result of jobs.tune for an index version (versions/<n>/tuning.json).

    Attributes:
        choices: By quality (fast, balanced), the parameters of the fastest engine that reached the quality's target.
        defaults: By engine, parameters for requests that set none of them.
    """

    choices: dict[str, EngineConfig]
    defaults: dict[str, EngineConfig] = field(default_factory=dict)

    def completed(self, params: EngineConfig) -> EngineConfig:
        """Return an engine's parameters with the tuned defaults, unless one of these is set already."""
        tuned = self.defaults.get(params.engine)
        names = tuned.model_fields_set - {"engine"} if tuned else set()
        if names & params.model_fields_set:
            return params
        return params.model_copy(update={name: getattr(tuned, name) for name in names})


def engine_params(engine: str, params: Mapping[str, Any], engines: Sequence[str] = SERVED) -> str | EngineConfig:
    """Return the validated parameters of an engine.

    Args:
        engine: auto, or the name of an engine.
        params: Parameters by name; parameters that are left out get their defaults.
        engines: Names that can be chosen: SERVED in a service, all of ENGINES in a Searcher.

    Returns:
        The parameters; "auto" if the engine is auto.

    Raises:
        ConfigError: The engine does not exist or cannot be chosen here, a parameter is unknown or invalid, or auto has parameters.
    """
    if engine == "auto":
        if params:
            raise ConfigError(f"params need a named engine, not auto; choose {', '.join(engines)}")
        return "auto"
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; choose auto, {', '.join(engines)}")
    if engine not in engines:
        raise ConfigError(
            f"engine {engine} needs all shards in one process, which a service does not have; choose {', '.join(engines)}, "
            "or use Searcher (ray-lir search)"
        )
    for name, value in params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"params of {engine}: {name}: {value} is not a finite number; leave it out for the default")
    model = ENGINES[engine].params
    try:
        return model.model_validate({"engine": engine, **params})
    except ValidationError as error:
        raise ConfigError(f"params of {engine}: {first_problem(error.errors(), model)}") from None


def resolve(
    engine: str | EngineConfig,
    statistics: IndexStatistics,
    kernels: str | None = None,
    quality: str = "balanced",
    k: int = 10,
    tuning: Tuning | None = None,
) -> EngineConfig:
    """Return the parameters of the engine that will answer a query.

    Args:
        engine: The name of an engine; an engine's parameters; or auto, which means the parameters in `tuning`, or the result of `choose` if
            there are none.
        statistics: Statistics of the index.
        kernels: Name of the kernels that will run; None for the default kernels of this machine.
        quality: For auto. balanced returns at least .99 of the exact top k, fast rescores a quarter as many candidates, and exact scores
            every document. fast and balanced limit TRIAL's relations (`RescoringConfig`).
        k: Documents to return.
        tuning: The result of jobs.tune for the index; None if it was not tuned.

    Returns:
        The parameters.

    Raises:
        ConfigError: The engine or the quality does not exist.
    """
    if isinstance(engine, EngineConfig):
        return tuning.completed(engine) if tuning else engine
    if quality not in QUALITIES:
        raise ConfigError(f"unknown quality {quality!r}; choose {', '.join(QUALITIES)}")
    if engine == "auto":
        tuned = tuning.choices.get(quality) if tuning else None
        return tuned or choose(statistics, kernels or select().name, quality, k)[0]
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; choose auto, {', '.join(ENGINES)}")
    params: EngineConfig = ENGINES[engine].params()
    return tuning.completed(params) if tuning else params


def choose(statistics: IndexStatistics, kernels: str, quality: str = "balanced", k: int = 10) -> tuple[EngineConfig, str]:
    """Return the engine with the lowest estimated time at a quality.

    Args:
        statistics: Statistics of the index.
        kernels: Name of the kernels that will run, a key of COSTS.
        quality: fast, balanced or exact.
        k: Documents to return.

    Returns:
        The engine's parameters, and one line that gives the reason for the choice.
    """
    choices, key = _choices(statistics), (kernels, quality, k)
    if key not in choices:
        if len(choices) >= MAX_CHOICES:
            choices.clear()
        choices[key] = _choose(statistics, kernels, quality, k)
    return choices[key]


@derived
def _choices(statistics: IndexStatistics) -> dict[tuple[str, str, int], tuple[EngineConfig, str]]:
    """The results of `choose` for an index, which take longer than many of the stages of a search."""
    return {}


def _choose(statistics: IndexStatistics, kernels: str, quality: str, k: int) -> tuple[EngineConfig, str]:
    exact: EngineConfig = ENGINES["exact"].params()
    if quality == "exact":
        return exact, "exact, as quality is exact"
    if not statistics.unit_norms and quality == "balanced":
        return (
            exact,
            "exact, as vectors differ in length, so that candidates by centroids are less certain; jobs.tune measures them",
        )
    fraction = FAST_FRACTION if quality == "fast" else 1
    candidates = statistics.default_candidates(k, fraction=fraction)
    statistics = replace(statistics, scorer_cost=statistics.scorer_cost * min(1, default_relation_documents(k) / candidates))
    estimates = {name: estimate_ms(name, statistics, kernels, candidates, k) for name in automatic_engines()}
    best = min(estimates, key=estimates.__getitem__)
    alternatives = ", ".join(f"{name} {ms:.1f}" for name, ms in estimates.items() if name != best)
    automatic = ENGINES[best].automatic
    assert automatic is not None
    params = automatic.params(fraction)
    if statistics.scorer_cost:
        params = params.model_copy(update={"relation_candidates": DEFAULT_RELATION_CANDIDATES})
    return params, f"{best}: {estimates[best]:.1f} ms a query estimated with {kernels}, against {alternatives}"


def automatic_engines() -> tuple[str, ...]:
    """Return the names of the engines that `auto` chooses from."""
    return tuple(name for name, engine in ENGINES.items() if engine.automatic)


def estimate_ms(engine: str, statistics: IndexStatistics, kernels: str, candidates: int, k: int = 10) -> float:
    """Return the estimated milliseconds of one core for a query.

    Args:
        engine: Name of one of `automatic_engines`.
        statistics: Statistics of the index.
        kernels: Name of the kernels that will run, a key of COSTS.
        candidates: Documents that are rescored.
        k: Documents to return.

    Raises:
        ConfigError: The engine has no cost estimate.
    """
    automatic = ENGINES[engine].automatic
    if automatic is None:
        raise ConfigError(f"the time of engine {engine} cannot be estimated; choose {', '.join(automatic_engines())}")
    return automatic.cost(statistics, COSTS[kernels], candidates, k).total


def read_tuning(root: str, version: int) -> Tuning | None:
    """Return the result of jobs.tune for an index version; None if the version was not tuned.

    Raises:
        FormatError: The tuning file is damaged.
    """
    url = storage.join(root, "versions", str(version), TUNING)
    if not storage.exists(url):
        return None
    try:
        content = parse_json(storage.read_bytes(url))
        choices, defaults = content["choices"], content.get("defaults", {})
        return Tuning(*({name: _params(each) for name, each in kind.items()} for kind in (choices, defaults)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(url, "what jobs.tune wrote", f"{error!r:.120}", "run jobs.tune again, or remove the file") from None


def _params(fields: Mapping[str, Any]) -> EngineConfig:
    params: EngineConfig = ENGINES[fields["engine"]].params.model_validate(fields)
    return params
