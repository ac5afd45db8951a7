"""Makes a running service serve another version of its index."""

from typing import Any

from pydantic import Field

from .cli import main
from .connection import ServiceJob, connect, state


class LoadJob(ServiceJob):
    """Makes a running service serve another version of its index.

    Every replica opens and verifies the version first, so no request fails. The environment variable RAY_LIR_TOKEN must hold a token that
    may administrate.
    """

    version: int | None = Field(None, ge=1)
    """Version to serve; none is the latest."""
    share: float | None = Field(None, gt=0, le=1)
    """Fraction of the requests that the version answers, as a canary; none is all. `ray-lir promote` gives it all of them."""


def run(job: LoadJob) -> dict[str, Any]:
    with connect(job) as client:
        return state(client.load_version(job.version, job.share))


if __name__ == "__main__":
    main(LoadJob, run)
