"""A running service loads the versions that updates and compactions publish."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_lir.api.client import Client
from ray_lir.building.compact import compact_index
from ray_lir.building.update import update_index
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from tests.support.served_index import QUERIES, answers_in_process, make_index, serve_started

ADMIN = "admin-0123456789abcdef"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("updated"), num_docs=120, num_shards=3)


@pytest.fixture(scope="module")
def client(ray_cluster: None, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Yield the service of the first version, with shards in two groups."""
    from ray import serve

    from serving.app import build

    tokens = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    tokens.write_text(f"admin: [{ADMIN}]\n")
    with serve_started() as url, Client(url, ADMIN) as client:
        serve.run(build({"index": str(index), "tokens": str(tokens), "encoder_cpus": 0.1, "num_groups": 2}))
        yield client


def served(client: Client) -> tuple[int, list[list[tuple[str, float]]]]:
    response = client.search(list(QUERIES), k=10, engine="scan", include=[])
    return response.index_version, [[(hit.doc_id, hit.score) for hit in hits] for hits in response.results]


def test_each_version_is_served_once_it_is_loaded(client, index):
    first = answers_in_process(index, QUERIES, 10)
    assert served(client) == (1, first)
    encoder = Encoder.for_contract(Searcher.open(str(index)).manifest.contract)
    gone = sorted({hits[0][0] for hits in first})
    added = encoder.encode_documents([QUERIES[0], "a bridge to the city"], [gone[0], "added"])
    update_index(str(index), added, gone, texts=["replaced", "new"], contract=encoder.contract)
    assert served(client) == (1, first)
    assert client.load_version(2).version == 2
    second = answers_in_process(index, QUERIES, 10)
    assert served(client) == (2, second) and second != first and not {hits[0][0] for hits in second} & set(gone[1:])
    assert client.document("added").text == "new" and client.document(gone[0]).text == "replaced"
    compact_index(str(index), 2)
    assert client.load_version(3).version == 3 and served(client) == (3, second)
    assert client.index().num_docs == 120 - len(gone) + 2
