"""Makes a running service serve another version of its index."""

from typing import Any

from pydantic import Field

from ray_lir.api.admin import TRAFFIC_FRACTION

from .cli import main
from .connection import ServiceJob, connect, state


class LoadJob(ServiceJob):
    """Makes a running service serve another version of its index.

    Every replica opens and verifies the version first, so no request fails. The environment variable RAY_LIR_TOKEN must hold an
    admin token.
    """

    version: int | None = Field(None, ge=1)
    """Version to serve. None: the latest."""
    traffic_fraction: float | None = Field(None, ge=0, le=1, validation_alias=TRAFFIC_FRACTION)
    """Fraction of the requests that the version answers, as a canary. None: all requests. 0: only requests that name the
    version. `ray-lir promote` gives it all requests. --share is another name."""


def run(job: LoadJob) -> dict[str, Any]:
    """Load the version and return the served versions.

    Raises:
        RayLirError: The service refuses the change or does not answer.
    """
    with connect(job) as client:
        return state(client.load_version(job.version, job.traffic_fraction))


if __name__ == "__main__":
    main(LoadJob, run)
