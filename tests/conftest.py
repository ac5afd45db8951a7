"""Fixtures for all tests: one Ray cluster for each session, and the folder of real collections."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.search.searcher import Searcher

settings.register_profile("patient", deadline=None)  # tests must not fail on a busy machine
settings.load_profile("patient")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads from a model hub
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # no test uses a cluster that it did not start
CLUSTER = Path(__file__).parent / "cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in tests/cluster with `ray`."""
    for item in items:
        if item.path.is_relative_to(CLUSTER):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="tests", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch in one thread: small networks gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tiny random checkpoint in the layout of sentence-transformers."""
    from tests.support.checkpoints import put_together

    return put_together("sentence_transformers", "fixed", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index with deleted documents that no test changes: every third document of each of its 4 shards."""
    from tests.support.served_index import delete, make_index

    folder = make_index(tmp_path_factory.mktemp("served"))
    delete(folder, every=3)
    return folder


@pytest.fixture(scope="session")
def searcher(index: Path) -> "Searcher":
    """Return the searcher of `index`."""
    from ray_lir.search.searcher import Searcher

    return Searcher.open(str(index))


@pytest.fixture(scope="session")
def encoder(searcher: "Searcher") -> "Encoder":
    """Return the encoder of `index`."""
    from ray_lir.encoder.encoder import Encoder

    return Encoder.for_contract(searcher.manifest.contract)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder that RAY_LIR_DATA names: collections in the BEIR layout."""
    folder = os.environ.get("RAY_LIR_DATA")
    if not folder:
        pytest.skip("RAY_LIR_DATA is not set: it names a folder of collections in the BEIR layout")
    return Path(folder)
