"""Changes: another version of the index is opened and verified on every replica, and only then served."""

import asyncio
import logging

from ray_lir.api.admin import IndexChange
from ray_lir.base.errors import Conflict, RayLirError
from ray_lir.index.versions import latest_version

from ..transport.ray import Calls
from ..workers.versions import Served

logger = logging.getLogger("ray.serve")

STAGE_TIMEOUT_S = 1800.0
ADOPT_TIMEOUT_S = 10.0


async def stage(calls: Calls, names: list[str], served: Served, change: IndexChange, root: str) -> tuple[Served, dict[str, int]]:
    """Opens the version that is asked for everywhere.

    Returns:
        what is to be served from now on, and how many replicas of each deployment are ready for it.

    Raises:
        Conflict: if the version cannot be served; nothing has changed.
    """
    wanted = await asyncio.to_thread(_wanted, change, served, root)
    version = wanted.version if wanted.canary is None else wanted.canary
    deadline = asyncio.get_running_loop().time() + STAGE_TIMEOUT_S
    asked = await asyncio.gather(*(calls.ask_all(name, deadline, "stage", version) for name in names), return_exceptions=True)
    for answer in asked:
        if isinstance(answer, BaseException):
            await adopt(calls, names, served)
            if isinstance(answer, RayLirError):
                raise Conflict(f"version {version} cannot be served, {served.version} goes on: {answer}") from answer
            raise answer
    replicas = {name: len(answer) for name, answer in zip(names, asked, strict=True)}
    return wanted, replicas


async def adopt(calls: Calls, names: list[str], served: Served) -> None:
    """Tells every replica what is served, and to keep nothing else open but what a roll-back goes to. One that does not hear it
    learns it from its next call."""
    deadline = asyncio.get_running_loop().time() + ADOPT_TIMEOUT_S
    asked = await asyncio.gather(*(calls.ask_all(name, deadline, "adopt", served) for name in names), return_exceptions=True)
    for name, answer in zip(names, asked, strict=True):
        if isinstance(answer, BaseException):
            logger.warning("%s was not told that version %d is served now: %s", name, served.version, answer)


async def recall(calls: Calls, names: list[str], deadline: float) -> Served | None:
    """What the replicas remember of the last change, for a gateway that has just started; None if none answers."""
    asked = await asyncio.gather(*(calls.ask_all(name, deadline, "remembered") for name in names), return_exceptions=True)
    remembered = [each for answers in asked if not isinstance(answers, BaseException) for each in answers]
    return max(remembered, key=lambda served: served.change, default=None)


def _wanted(change: IndexChange, served: Served, root: str) -> Served:
    """What is to be served after the change. Raises Conflict if it makes no sense."""
    number = served.change + 1
    if change.action == "promote":
        if served.canary is None:
            raise Conflict("there is no canary to promote; load a version with a share")
        return Served(number, served.canary, served.version)
    if change.action == "roll_back":
        if served.canary is not None:
            return Served(number, served.version, served.previous)
        if served.previous is None:
            raise Conflict(f"there is no version before {served.version} to go back to; load one")
        return Served(number, served.previous, served.version)
    version = latest_version(root) if change.version is None else change.version
    if version == served.version:
        raise Conflict(f"version {version} is served already")
    if change.share is not None and change.share < 1:
        return Served(number, served.version, served.previous, version, change.share)
    return Served(number, version, served.version)
