"""An index on an object store: shards are copied to the local disk, verified, and copied again if damaged."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer
from ray.serve import Application, Deployment

from ray_lir import storage
from ray_lir.api.admin import IndexChange
from ray_lir.base.errors import FormatError
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import FileEntry
from serving.app import build
from serving.http.routes import routes
from tests.support.local_service import local_service
from tests.support.served_index import QUERIES, make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("stored"), num_docs=100, num_shards=2)


@pytest.fixture
def stored(index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the index in a bucket of a local server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"shelf-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    for file in sorted(path for path in index.rglob("*") if path.is_file()):
        storage.write_bytes(f"s3://{bucket}/index/{file.relative_to(index).as_posix()}", file.read_bytes())
    yield f"s3://{bucket}/index"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def found(service: object) -> list[str]:
    with TestClient(routes(service)) as client:
        reply = client.post("/search", json={"query": QUERIES[1], "k": 5, "engine": "scan"})
        assert reply.status_code == 200, reply.text
        return [hit["doc_id"] for hit in reply.json()["results"][0]]


def test_answers_are_the_same_from_a_store_and_a_damaged_copy_is_fetched_again(stored, index, tmp_path):
    searcher = Searcher.open(str(index))
    queries = Encoder.for_contract(searcher.manifest.contract).encode_queries([QUERIES[1]])
    expected = searcher.doc_ids(searcher.search(queries, 5, "scan")[0].documents)
    cache = str(tmp_path / "cache")
    assert found(local_service(stored, 2, cache=cache)[0]) == expected
    copies = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert {path.name for path in copies} == {path.name for path in index.glob("shards/*/*")}
    codes = next(path for path in copies if path.name == "codes.npy")
    whole, untouched = codes.read_bytes(), copies[-1].stat().st_mtime_ns
    codes.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert found(local_service(stored, 2, cache=cache)[0]) == expected
    assert codes.read_bytes() == whole and copies[-1].stat().st_mtime_ns == untouched


def test_copies_of_versions_that_no_request_can_reach_are_removed(stored, index, tmp_path):
    other = make_index(tmp_path / "other", num_docs=60, num_shards=1)
    for file in sorted(path for path in other.rglob("*") if path.is_file() and path.parent.parent.name != "versions"):
        if (name := file.relative_to(other).as_posix()) != "LATEST":
            storage.write_bytes(f"{stored}/{name}", file.read_bytes())
    for version in (2, 3):
        storage.write_bytes(f"{stored}/versions/{version}/manifest.json", (other / "versions" / "1" / "manifest.json").read_bytes())
    service, _ = local_service(stored, 2, cache=str(tmp_path / "cache"))

    def copies() -> set[str]:
        return {path.parent.name for path in (tmp_path / "cache").rglob("*.npy")}

    first = {path.parent.name for path in index.glob("shards/*/*.npy")}
    second = {path.parent.name for path in other.glob("shards/*/*.npy")}
    assert copies() == first
    for version, left in ((2, first | second), (3, second)):
        asyncio.run(service.change_index(IndexChange(action="load", version=version)))
        assert copies() == left
    assert len(found(service)) == 5


def test_a_damaged_file_on_the_store_is_refused_and_not_cached(stored, tmp_path):
    name = storage.list_names(f"{stored}/shards")[0]
    storage.write_bytes(f"{stored}/shards/{name}/codes.npy", b"something else")
    with pytest.raises(FormatError, match=r"codes\.npy: expected sha256"):
        local_service(stored, 2, cache=str(tmp_path))
    assert not list(tmp_path.rglob("codes.npy")) and not list(tmp_path.rglob(".codes*"))


def applications_in(value: object) -> list[Deployment]:
    """Yield the deployments that are bound in the arguments of another one."""
    if isinstance(value, Application):
        return [value._bound_deployment]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [deployment for each in values for deployment in applications_in(each)]


def test_an_index_on_a_store_can_be_served_with_a_cache_folder(stored, tmp_path):
    gateway = build({"index": stored, "cache": str(tmp_path), "num_groups": 2})._bound_deployment
    assert gateway.name == "Gateway" and gateway.init_args[:2] == (stored, 1)
    groups = [deployment for deployment in applications_in(gateway.init_args) if deployment.name.startswith("ShardGroup-")]
    assert [group.name for group in groups] == ["ShardGroup-0", "ShardGroup-1"]
    assert all(group.init_args[0] == stored and str(tmp_path) in group.init_args for group in groups)


def test_a_manifest_name_outside_the_cache_is_refused():
    for name in ("../../secret", "/etc/passwd"):
        with pytest.raises(ValueError, match="is not a valid name of a file in this folder"):
            FileEntry(name=name, size=1, sha256="0" * 64)
