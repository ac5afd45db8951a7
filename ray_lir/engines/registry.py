"""The engines by name. To add an engine, see docs/extending.md."""

from collections.abc import Sequence

from ray_lir.engines import exact, plaid, scan, warp, xtr
from ray_lir.engines.engine import Engine
from ray_lir.engines.plan import QueryPlan

ENGINES: dict[str, Engine] = {
    "exact": exact.ENGINE,
    "scan": scan.ENGINE,
    "plaid": plaid.ENGINE,
    "warp": warp.ENGINE,
    "xtr": xtr.ENGINE,
}


def engine_of(plans: Sequence[QueryPlan]) -> Engine:
    """Return the engine that made the plans."""
    return ENGINES[plans[0].params.engine]
