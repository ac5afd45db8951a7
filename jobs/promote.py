"""Makes the canary version of a running service answer all requests."""

from typing import Any

from .cli import main
from .connection import ServiceJob, connect, state


class PromoteJob(ServiceJob):
    """Makes the canary version of a running service answer all requests.

    The environment variable RAY_LIR_TOKEN must hold an admin token.
    """


def run(job: PromoteJob) -> dict[str, Any]:
    """Promote the canary and return the served versions.

    Raises:
        RayLirError: The service refuses the change or does not answer.
    """
    with connect(job) as client:
        return state(client.promote())


if __name__ == "__main__":
    main(PromoteJob, run)
