"""The registry of engines, imported by the names in base/engine_names.py. docs/extending.md shows how to add an engine."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from ray_lir.base.engine_names import ENGINE_NAMES
from ray_lir.engines.engine import Engine, Stage
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan

ENGINES: dict[str, Engine[Any, Any]] = {name: import_module(f"ray_lir.engines.{name}").ENGINE for name in ENGINE_NAMES}
SERVED: tuple[str, ...] = tuple(name for name, engine in ENGINES.items() if engine.served)
"""Names of the engines that a service offers."""
VECTOR_ENGINES: tuple[str, ...] = tuple(name for name, engine in ENGINES.items() if not engine.lexical)
"""Names of the engines that any index offers. The others need lexical postings and the text of the query."""
if TYPE_CHECKING:
    EngineParams = EngineConfig
else:
    EngineParams = Annotated[Union[tuple(engine.params for engine in ENGINES.values())], Field(discriminator="engine")]  # noqa: UP007
    """The parameters of any engine, as a field of a model."""


def engine_of(plans: Sequence[QueryPlan]) -> Engine[Any, Any]:
    """Return the engine that made the plans."""
    return ENGINES[plans[0].params.engine]


def stages_of(plans: Sequence[QueryPlan]) -> tuple[Stage[Any], ...]:
    """Return the stages of plans of one engine; as many of them run as the plans have limits."""
    return engine_of(plans).stages_of(plans[0].params)
