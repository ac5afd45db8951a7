"""Calls: how the gateway reaches the other deployments, with a deadline, and what it is told when they do not answer."""

import asyncio
import time
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_lir.base.errors import RayLirError, ShardUnavailable

from ..metrics import Metrics

ENCODER = "QueryEncoder"


class Calls(Protocol):
    """Deployments by name. `deadline` is in the time of the running event loop."""

    async def ask(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """Calls one replica. Raises ShardUnavailable if it does not answer in time or is not there."""
        ...

    async def ask_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """Calls every replica. Raises what the first that failed raised."""
        ...


class RayCalls:
    """Calls through the handles of Ray Serve. A call that is given up is cancelled where it runs."""

    def __init__(self, handles: dict[str, DeploymentHandle], metrics: Metrics):
        self.handles = handles
        self.metrics = metrics

    async def ask(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        start = time.perf_counter()
        response = getattr(self.handles[name], method).remote(*args)
        failed = True
        try:
            async with asyncio.timeout_at(deadline):
                result = await response
            failed = False
            return result
        except Exception as error:
            raise _told(name, error) from None
        finally:
            if failed:
                response.cancel()  # does nothing where the call has ended
            self.metrics.call(name, method, time.perf_counter() - start, failed)

    async def ask_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            return await self.handles[name].broadcast(method, *args).results_async(timeout_s=seconds)
        except Exception as error:
            raise _told(name, error) from None


def _told(name: str, error: Exception) -> Exception:
    """What went wrong with a call, without the traceback that Ray puts into its messages."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RayLirError):
        return error.cause
    if isinstance(error, TimeoutError):
        return late(name)
    if isinstance(error, (RayActorError, RayServeException)):
        return ShardUnavailable(f"{name} is not running ({type(error).__name__}); try again in a few seconds")
    return error


def late(name: str) -> ShardUnavailable:
    return ShardUnavailable(f"{name} did not answer in time; try again, or start the service with a longer timeout_s")
