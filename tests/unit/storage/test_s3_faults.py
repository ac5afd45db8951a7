"""Jobs on an object store that answers with errors, late, in half or not at all: the same bytes, or a one-line error."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from jobs import cli
from jobs.build_index import BuildIndexJob
from jobs.build_index import run as run_build_index
from ray_lir import storage
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.index.versions import read_version
from ray_lir.storage import s3
from ray_lir.storage.manifest import LATEST, MANIFEST, PROVENANCE, FileEntry, check_file, read_manifest
from tests.support.corpora import write_rows
from tests.support.faulty_proxy import FAULTS, Faults, faulty_proxy
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server, s3rver_server

ROWS = [{"_id": f"d{number}", "text": f"the text of document {number} " * (1 + number % 5)} for number in range(40)]
DOCS_PER_PART = 8
INDEX = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=16, num_iterations=2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_rows(folder / "a.jsonl", ROWS[:15])
    write_rows(folder / "b.jsonl", ROWS[15:])
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return the manifests of embeddings and index made on a disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    encode_corpus(str(corpus), str(folder / "embeddings"), EncoderConfig(checkpoint=checkpoint), docs_per_part=DOCS_PER_PART)
    build_index(str(folder / "embeddings"), str(folder / "index"), INDEX)
    return (folder / "embeddings" / MANIFEST).read_bytes(), (folder / "index" / "versions" / "1" / MANIFEST).read_bytes()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Yield the fault plan of a moto server, without faults at first. botocore's long pauses are removed."""
    plan = Faults(delay_s=0.1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with moto_server() as server, faulty_proxy(server, plan) as url, as_endpoint(url, monkeypatch):
        yield plan


def encode_and_build(bucket: str, corpus: Path, checkpoint: str) -> tuple[bytes, bytes]:
    """Return the manifests of embeddings and index made on an object store; only listed files exist there."""
    for file in sorted(corpus.iterdir()):
        storage.write_bytes(f"{bucket}/corpus/{file.name}", file.read_bytes())
    encode_corpus(f"{bucket}/corpus", f"{bucket}/embeddings", EncoderConfig(checkpoint=checkpoint), docs_per_part=DOCS_PER_PART)
    build_index(f"{bucket}/embeddings", f"{bucket}/index", INDEX)
    embeddings = read_manifest(f"{bucket}/embeddings/{MANIFEST}", EmbeddingsManifest, "jobs.encode")
    index = read_version(f"{bucket}/index")
    files = [file for shard in index.shards for file in shard.files]
    _check_all(f"{bucket}/embeddings", embeddings.parts, {MANIFEST, PROVENANCE})
    own = {LATEST, f"versions/1/{MANIFEST}", f"versions/1/{PROVENANCE}"}
    _check_all(f"{bucket}/index", (index.codec, index.cluster_sizes, *files), own)
    urls = [f"{bucket}/embeddings/{MANIFEST}", f"{bucket}/index/versions/1/{MANIFEST}"]
    return storage.read_bytes(urls[0]), storage.read_bytes(urls[1])


def _check_all(root: str, listed: Sequence[FileEntry], others: set[str]) -> None:
    """Assert that a folder holds exactly the files of its manifest, complete, and `others`."""
    for file in listed:
        check_file(root, file, content=True)
    fs, path = storage.filesystem(root)
    assert {name.removeprefix(f"{path}/") for name in fs.find(path)} == others | {file.name for file in listed}


def test_every_kind_of_store_fault_is_retried_and_the_bytes_are_the_same(
    faults: Faults, corpus: Path, checkpoint: str, undisturbed: tuple[bytes, bytes]
):
    bucket = make_bucket()
    faults.share = 0.08
    assert encode_and_build(bucket, corpus, checkpoint) == undisturbed
    counts = faults.counts()
    assert all(counts[kind] for kind in FAULTS), counts
    assert counts["repeated"] > 10


def test_both_s3_servers_give_the_same_bytes_under_faults(
    corpus: Path, checkpoint: str, undisturbed: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    faults = Faults(delay_s=0.1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3rver_server(tmp_path) as server, faulty_proxy(server, faults) as url, as_endpoint(url, monkeypatch):
        bucket = make_bucket()
        faults.share = 0.08
        assert encode_and_build(bucket, corpus, checkpoint) == undisturbed
        assert faults.counts()["repeated"] > 10
        with as_endpoint(url, monkeypatch, key="nobody"), pytest.raises(ConfigError, match="cannot read s3://.*Forbidden"):
            build_index(f"{bucket}/embeddings", f"{bucket}/index", INDEX)


def test_large_files_are_uploaded_in_parts_and_read_a_block_at_a_time(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # as small as S3 allows
    bucket = make_bucket()
    data = os.urandom(18 << 20)
    (tmp_path / "large").write_bytes(data)
    faults.always = {"partNumber=2": "500"}
    with pytest.raises(ConfigError, match="cannot write"):
        storage.publish(tmp_path / "large", f"{bucket}/large")
    assert storage.list_names(bucket) == []  # no part of it is visible
    assert any(request.method == "DELETE" and "uploadId" in request.target for request in faults.log)  # and no upload remains
    faults.always = {}
    for url in (f"{bucket}/published", f"{bucket}/written"):
        faults.log.clear()
        storage.publish(tmp_path / "large", url) if url.endswith("published") else storage.write_bytes(url, data)
        assert sum("partNumber" in request.target for request in faults.log) == 4
        faults.log.clear()
        with storage.open_input(url) as file:
            assert file.read(1000) == data[:1000]
        [read] = [request.range for request in faults.log if request.method == "GET"]
        assert read == f"bytes=0-{1000 + s3.BLOCK_BYTES - 1}"
        assert storage.read_bytes(url) == data


def test_failed_s3_deletions_are_repeated(faults: Faults):
    """A lost reply: the request had its effect."""
    bucket = make_bucket()
    storage.write_bytes(f"{bucket}/folder/file", b"first")
    faults.always = {"PUT": "answer_lost"}
    with pytest.raises(ConfigError, match="cannot write s3://"):
        storage.write_bytes(f"{bucket}/folder/file", b"second")
    faults.always = {}
    assert storage.read_bytes(f"{bucket}/folder/file") == b"second"
    storage.remove_tree(f"{bucket}/folder")
    storage.remove_tree(f"{bucket}/folder")
    assert not storage.exists(f"{bucket}/folder")


def test_a_failing_store_is_a_one_line_error_and_published_files_stay(
    faults: Faults, corpus: Path, checkpoint: str, undisturbed: tuple[bytes, bytes], capsys, caplog, monkeypatch: pytest.MonkeyPatch
):
    bucket = make_bucket()
    assert encode_and_build(bucket, corpus, checkpoint) == undisturbed
    faults.log.clear()
    faults.always = {"": "503"}
    monkeypatch.setattr("ray_lir.base.logs.configure", lambda: None)  # propagation is off after a job, and caplog needs it
    with caplog.at_level(logging.INFO, "ray_lir"), pytest.raises(SystemExit, match="2"):
        cli.main(BuildIndexJob, run_build_index, ["--embeddings", f"{bucket}/embeddings", "--output", f"{bucket}/index", "--where", "here"])
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: cannot read {bucket}/embeddings/{MANIFEST}: ") and "check the path or URL" in error
    assert len(faults.log) == S3FileSystem.retries
    assert "HeadObject, attempt 1: answered 503" in caplog.text and "HeadObject still answers 503" in caplog.text
    faults.always = {}
    assert encode_and_build(bucket, corpus, checkpoint) == undisturbed


def test_a_missing_bucket_is_a_one_line_error(faults: Faults, corpus: Path, checkpoint: str, tmp_path: Path, capsys):
    embeddings = str(tmp_path / "embeddings")
    encode_corpus(str(corpus), embeddings, EncoderConfig(checkpoint=checkpoint), docs_per_part=DOCS_PER_PART)
    flags = {"embeddings": embeddings, "output": "s3://nobody-made-this-bucket/index", "where": "here"}
    for changes in ({}, {"embeddings": "s3://nobody-made-this-bucket/embeddings"}):
        words = [word for name, value in (flags | changes).items() for word in (f"--{name}", value)]
        with pytest.raises(SystemExit, match="2"):
            cli.main(BuildIndexJob, run_build_index, words)
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and "nobody-made-this-bucket" in error


def test_an_encoder_on_an_object_store_is_loaded_again_if_it_changed(
    faults: Faults, corpus: Path, checkpoint: str, undisturbed: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = make_bucket()
    storage.publish(Path(checkpoint), f"{bucket}/checkpoint")
    config = EncoderConfig(checkpoint=f"{bucket}/checkpoint")
    result = encode_corpus(str(corpus), str(tmp_path / "out"), config, docs_per_part=DOCS_PER_PART)
    expected = read_manifest(str(tmp_path / "out" / MANIFEST), EmbeddingsManifest, "jobs.encode")
    assert expected.contract.checkpoint == f"{bucket}/checkpoint"
    assert [part.sha256 for part in result.manifest.parts] == [
        part.sha256 for part in EmbeddingsManifest.model_validate_json(undisturbed[0]).parts
    ]
    copies = tmp_path / "cache" / "ray_lir" / "checkpoints"
    assert len(list(copies.iterdir())) == 1
    storage.write_bytes(f"{bucket}/checkpoint/README.md", b"changed")
    encode_corpus(str(corpus), str(tmp_path / "again"), config, docs_per_part=DOCS_PER_PART)
    assert len(list(copies.iterdir())) == 2
    with pytest.raises(ConfigError, match="there is no checkpoint folder s3://"):
        encode_corpus(str(corpus), str(tmp_path / "none"), EncoderConfig(checkpoint=f"{bucket}/elsewhere"))
