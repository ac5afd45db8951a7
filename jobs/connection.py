"""Connects commands to a running service: its address, and the token from the environment."""

import os
import sys
from typing import TYPE_CHECKING, Any

from ray_lir.base.config import Config

if TYPE_CHECKING:
    from ray_lir.api.client import Client

TOKEN = "RAY_LIR_TOKEN"
"""Environment variable with the bearer token."""


class ServiceJob(Config):
    """A command that calls a running service."""

    url: str = "http://127.0.0.1:8000"
    """Address of the service."""
    name: str | None = None
    """Name of the index, in a service of several. None: the service has one index."""


def connect(job: ServiceJob) -> "Client":
    """Return a client that sends the token of the environment variable RAY_LIR_TOKEN, if it is set."""
    if "httpx" not in sys.modules:  # keep httpcore from loading trio for AsyncClient, which takes 0.2 s
        sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    from ray_lir.api.client import Client

    return Client(job.url, os.environ.get(TOKEN), index=job.name)


def state(reply: Config) -> dict[str, Any]:
    """Return the reply of the service as a job's result."""
    return reply.model_dump(mode="json", exclude_none=True)
