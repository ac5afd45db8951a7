"""The engines by name. A new one is a file beside these, a line in ENGINES and EngineParams, and a test."""

from typing import Annotated

from pydantic import Field

from ray_lir.config import Config
from ray_lir.engines import exact, plaid, scan, warp
from ray_lir.engines.plan import Engine, IndexStatistics
from ray_lir.errors import ConfigError

ENGINES: dict[str, Engine] = {"exact": exact.ENGINE, "scan": scan.ENGINE, "plaid": plaid.ENGINE, "warp": warp.ENGINE}
EngineParams = Annotated[exact.ExactParams | scan.ScanParams | plaid.PlaidParams | warp.WarpParams, Field(discriminator="engine")]

EXACT_TOKENS = 100_000
SCAN_TOKENS = 20_000_000


def resolve(engine: str | Config, statistics: IndexStatistics) -> Config:
    """Parameters of the engine called `engine`; parameters are passed through.

    auto is exact while the index is small, then scan, whose work grows with the index, then warp, whose work grows with
    the square root of its size.

    Raises:
        ConfigError: if there is no such engine.
    """
    if isinstance(engine, Config):
        return engine
    if engine == "auto":
        engine = "exact" if statistics.num_tokens <= EXACT_TOKENS else "scan" if statistics.num_tokens <= SCAN_TOKENS else "warp"
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; choose auto, {', '.join(ENGINES)}")
    return ENGINES[engine].params()
