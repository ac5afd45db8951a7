"""Transport: the interface through which the gateway calls its workers. `ray`, `unix` and `hedged` implement it."""

from typing import Any, Protocol

from ray_lir.base.errors import ShardUnavailable

ENCODER = "QueryEncoder"
"""Name of the deployment that encodes queries."""
WRITER = "Writer"
"""Name of the deployment that publishes writes."""


class Transport(Protocol):
    """Calls methods of deployments, which are addressed by name."""

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """Call a method of one replica and return its result.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds, by which the result must arrive.
            method: Name of the method.
            args: Its arguments.

        Raises:
            ShardUnavailable: The deployment has no running replica, or did not answer before the deadline.
        """
        ...

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """Call a method of every replica and return all results.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds, by which all results must arrive.
            method: Name of the method.
            args: Its arguments.

        Raises:
            ShardUnavailable: A replica is not running, or did not answer before the deadline.
        """
        ...


def timeout_error(name: str) -> ShardUnavailable:
    """The error of a deployment that missed its deadline."""
    return ShardUnavailable(f"{name} did not answer in time; try again, or raise the request's deadline_ms or the service's timeout_s")
