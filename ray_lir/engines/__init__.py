"""The engines by name. A new one is a file beside these, its parameters in engine_params.py, a line in ENGINES, and a test."""

from dataclasses import dataclass

from pydantic import TypeAdapter

from ray_lir import storage
from ray_lir.base.config import Config, parse_json
from ray_lir.base.engine_params import SERVED as SERVED
from ray_lir.base.engine_params import EngineParams
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.engines import cost, exact, scan, warp
from ray_lir.engines.plan import IndexStatistics
from ray_lir.engines.registry import ENGINES as ENGINES
from ray_lir.kernels import select

TUNING = "tuning.json"
FAST_SHARE = 0.25
"""Of the candidates of quality balanced."""
QUALITIES = ("fast", "balanced", "exact")


@dataclass(frozen=True)
class Tuning:
    """What jobs.tune found for an index (versions/<n>/tuning.json).

    Attributes:
        choices: for fast and balanced the engine parameters that reached their target soonest.
    """

    choices: dict[str, Config]


def resolve(
    engine: str | Config,
    statistics: IndexStatistics,
    kernels: str | None = None,
    quality: str = "balanced",
    k: int = 10,
    tuning: Tuning | None = None,
) -> Config:
    """Parameters of the engine called `engine`; parameters are passed through.

    Args:
        engine: a name, or an engine's parameters. auto is what the index was tuned to, or else what `choose` picks.
        kernels: name of the kernels that will run; None for those that `select` finds.
        quality: for auto: balanced keeps .99 of the exact top k or more, fast looks at a quarter as many candidates, exact
            loses nothing but what compression lost.
        k: documents wanted.
        tuning: what jobs.tune found for the index.

    Raises:
        ConfigError: if there is no such engine or quality.
    """
    if isinstance(engine, Config):
        return engine
    if quality not in QUALITIES:
        raise ConfigError(f"unknown quality {quality!r}; choose {', '.join(QUALITIES)}")
    if engine == "auto":
        tuned = tuning.choices.get(quality) if tuning else None
        return tuned or choose(statistics, kernels or select().name, quality, k)[0]
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; choose auto, {', '.join(ENGINES)}")
    return ENGINES[engine].params()


def choose(statistics: IndexStatistics, kernels: str, quality: str = "balanced", k: int = 10) -> tuple[Config, str]:
    """The engine that is estimated to answer first at a quality, and one line that says why."""
    if quality == "exact":
        return exact.ExactParams(), "exact, as quality is exact"
    if not statistics.unit_norms and quality == "balanced":
        return (
            exact.ExactParams(),
            "exact, as vectors differ in length, so that candidates by centroids are less certain; jobs.tune measures them",
        )
    share = FAST_SHARE if quality == "fast" else 1
    candidates = statistics.default_candidates(k, share=share)
    estimates = {
        "exact": cost.estimate_ms("exact", statistics, kernels, candidates),
        "scan": cost.estimate_ms("scan", statistics, kernels, candidates),
        "warp": cost.estimate_ms("warp", statistics, kernels, 2 * candidates),
    }
    best = min(estimates, key=estimates.__getitem__)
    others = ", ".join(f"{name} {ms:.1f}" for name, ms in estimates.items() if name != best)
    reason = f"{best}: {estimates[best]:.1f} ms a query estimated with {kernels}, against {others}"
    params = {"exact": exact.ExactParams(), "scan": scan.ScanParams(share=share), "warp": warp.WarpParams(share=share)}
    return params[best], reason


def read_tuning(root: str, version: int) -> Tuning | None:
    """What jobs.tune left beside a version of the index, if anything.

    Raises:
        FormatError: if the file is damaged.
    """
    url = storage.join(root, "versions", str(version), TUNING)
    if not storage.exists(url):
        return None
    try:
        found = parse_json(storage.read_bytes(url))
        choices = {quality: TypeAdapter(EngineParams).validate_python(params) for quality, params in found["choices"].items()}
        return Tuning(choices)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(url, "what jobs.tune wrote", f"{error!r:.120}", "run jobs.tune again, or remove the file") from None
