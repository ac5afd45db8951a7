"""RayTransport: calls through the deployment handles of Ray Serve."""

import asyncio
import time
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_lir.base.errors import RayLirError, ShardUnavailable

from ..metrics import Metrics
from .protocol import timeout_error


class RayTransport:
    """Calls deployments through their handles. A call that misses its deadline is cancelled in its replica.

    Args:
        handles: Handle of each deployment, by name.
        metrics: Counts and times the calls.
    """

    def __init__(self, handles: dict[str, DeploymentHandle], metrics: Metrics):
        self.handles = handles
        self.metrics = metrics

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """See `Transport.call`.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        start = time.perf_counter()
        response = getattr(self.handles[name], method).remote(*args)
        failed = True
        try:
            async with asyncio.timeout_at(deadline):
                result = await response
            failed = False
            return result
        except Exception as error:
            raise _unwrapped(name, error) from None
        finally:
            if failed:
                response.cancel()  # does nothing if the call has ended
            self.metrics.call(name, method, time.perf_counter() - start, failed)

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """See `Transport.call_all`.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            return await self.handles[name].broadcast(method, *args).results_async(timeout_s=seconds)
        except Exception as error:
            raise _unwrapped(name, error) from None


def _unwrapped(name: str, error: Exception) -> Exception:
    """The error behind a failed call, without the remote traceback that Ray adds to its message."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RayLirError):
        return error.cause
    if isinstance(error, TimeoutError):
        return timeout_error(name)
    if isinstance(error, (RayActorError, RayServeException)):
        return ShardUnavailable(f"{name} is not running ({type(error).__name__}); try again in a few seconds")
    return error
