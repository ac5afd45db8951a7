"""What tests share: one Ray cluster for the session, and the folder of real collections."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a test does not fail because the machine is busy
settings.load_profile("patient")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for a model hub
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # nor for somebody's cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="tests", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks compute in one thread: they would only wait for others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of collections in the BEIR layout that RAY_LIR_DATA names."""
    folder = os.environ.get("RAY_LIR_DATA")
    if not folder:
        pytest.skip("RAY_LIR_DATA is not set: it names a folder of collections in the BEIR layout")
    return Path(folder)
