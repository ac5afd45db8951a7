"""Makes a running service end its canary, or serve the previous version of its index."""

from typing import Any

from .cli import main
from .connection import ServiceJob, connect, state


class RollbackJob(ServiceJob):
    """Makes a running service end its canary; without a canary, it serves the previous version of its index again.

    The environment variable RAY_LIR_TOKEN must hold an admin token.
    """


def run(job: RollbackJob) -> dict[str, Any]:
    """Roll back and return the served versions.

    Raises:
        RayLirError: The service refuses the change or does not answer.
    """
    with connect(job) as client:
        return state(client.roll_back())


if __name__ == "__main__":
    main(RollbackJob, run)
