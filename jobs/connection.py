"""The connection of a command to a running service: its address, and its token from the environment."""

import os
import sys
from typing import TYPE_CHECKING, Any

from ray_lir.base.config import Config

if TYPE_CHECKING:
    from ray_lir.api.client import Client

TOKEN = "RAY_LIR_TOKEN"


class ServiceJob(Config):
    """A command that calls a running service."""

    url: str = "http://127.0.0.1:8000"
    """Address of the service."""


def connect(job: ServiceJob) -> "Client":
    """A client with the token of the environment variable RAY_LIR_TOKEN, if it is set."""
    if "httpx" not in sys.modules:  # this process is a command: httpcore need not load trio, a fifth of a second, for AsyncClient
        sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    from ray_lir.api.client import Client

    return Client(job.url, os.environ.get(TOKEN))


def state(reply: Config) -> dict[str, Any]:
    """The reply to a change of the served version, as a result."""
    return reply.model_dump(mode="json", exclude_none=True)
