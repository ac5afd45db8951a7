"""`POST /admin/index`: opens and verifies another version of the index on every replica, and only then serves it."""

import asyncio
import logging

from ray_lir.api.admin import IndexChange
from ray_lir.base.errors import Conflict, RayLirError
from ray_lir.index.versions import latest_version

from ..transport.protocol import Transport
from ..workers.versions import Served

logger = logging.getLogger("ray.serve")

OPEN_TIMEOUT_S = 1800.0
ADOPT_TIMEOUT_S = 10.0


async def open_everywhere(
    transport: Transport, names: list[str], served: Served, change: IndexChange, root: str
) -> tuple[Served, dict[str, int]]:
    """Open the version that a change asks for on every replica.

    Args:
        transport: Calls the deployments.
        names: Names of all deployments.
        served: The versions that are served before the change.
        change: The requested change.
        root: Folder or URL of the index.

    Returns:
        The versions to serve after the change, and the number of replicas of each deployment that have opened the new one.

    Raises:
        Conflict: The version cannot be served; nothing has changed.
    """
    after = await asyncio.to_thread(_after, change, served, root)
    version = after.version if after.canary is None else after.canary
    deadline = asyncio.get_running_loop().time() + OPEN_TIMEOUT_S
    results = await asyncio.gather(*(transport.call_all(name, deadline, "open_version", version) for name in names), return_exceptions=True)
    replicas = {}
    for name, result in zip(names, results, strict=True):
        if isinstance(result, BaseException):
            await adopt(transport, names, served)
            if isinstance(result, RayLirError):
                raise Conflict(f"version {version} cannot be served, so version {served.version} stays: {result}") from result
            raise result
        replicas[name] = len(result)
    return after, replicas


async def adopt(transport: Transport, names: list[str], served: Served) -> None:
    """Tell every replica which versions are served, so that it closes all others.

    A replica that does not receive the message learns it from its next call.

    Args:
        transport: Calls the deployments.
        names: Names of all deployments.
        served: The served versions.
    """
    deadline = asyncio.get_running_loop().time() + ADOPT_TIMEOUT_S
    results = await asyncio.gather(*(transport.call_all(name, deadline, "adopt", served) for name in names), return_exceptions=True)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, BaseException):
            logger.warning("%s did not confirm that version %d is served now: %s", name, served.version, result)


async def recall(transport: Transport, names: list[str], deadline: float) -> Served | None:
    """The served versions after the latest change, as the replicas remember them. A gateway calls this when it starts.

    Args:
        transport: Calls the deployments.
        names: Names of all deployments.
        deadline: Time of the event loop, in seconds.

    Returns:
        The versions after the latest change; None if no replica answers.
    """
    results = await asyncio.gather(*(transport.call_all(name, deadline, "last_served") for name in names), return_exceptions=True)
    remembered = [served for result in results if not isinstance(result, BaseException) for served in result]
    return max(remembered, key=lambda served: served.change, default=None)


def _after(change: IndexChange, served: Served, root: str) -> Served:
    """The versions to serve after a change. Raises Conflict if the change is impossible."""
    latest = latest_version(root)
    after = _versions_after(change, served, latest)
    return after._replace(pinned=after.version != latest or after.canary is not None)


def _versions_after(change: IndexChange, served: Served, latest: int) -> Served:
    number = served.change + 1
    if change.action == "promote":
        if served.canary is None:
            raise Conflict("there is no canary to promote; load a version with a traffic_fraction below 1 first")
        return Served(number, served.canary, served.version)
    if change.action == "roll_back":
        if served.canary is not None:
            return Served(number, served.version, served.previous)
        if served.previous is None:
            raise Conflict(f"no version was served before version {served.version}; load the version to serve")
        return Served(number, served.previous, served.version)
    version = latest if change.version is None else change.version
    if version == served.version:
        raise Conflict(f"version {version} is served already; load another version")
    if change.traffic_fraction is not None and change.traffic_fraction < 1:
        return Served(number, served.version, served.previous, version, change.traffic_fraction)
    return Served(number, version, served.version)
