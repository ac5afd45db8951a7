"""What tests share: one Ray cluster for the session."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="tests", log_to_driver=False)
    yield
    ray.shutdown()
