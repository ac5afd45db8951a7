"""Paths: every name that a file system allows, pathlib.Path, home folders and URLs."""

import json
import os
from pathlib import Path

import pytest

from ray_lir import storage
from ray_lir.base.config import EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.update import update_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher
from tests.support.synthetic import collection

NAMES = ["a::b", "zip::x", "s3::b", "x#1", "x?y=1", "two words", "~old", "50%20off", "данные-é", "a:b", "[1]*", "~", "file:"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_with_unusual_names_are_written_and_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place in (str(tmp_path / name), tmp_path / name, f"./{name}/", f"nowhere/../{name}"):
        (tmp_path / "nowhere").mkdir(exist_ok=True)
        storage.write_bytes(storage.join(place, "sub", "file"), b"1")
        assert (tmp_path / name / "sub" / "file").read_bytes() == storage.read_bytes(storage.join(place, "sub/file")) == b"1"
        assert storage.list_names(place) == ["sub"] and storage.is_folder(place) and storage.is_local(place)
        storage.remove_tree(place)
        assert not storage.exists(place)
    assert sorted(os.listdir(tmp_path)) == ["nowhere"]


def test_only_the_users_own_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert storage.absolute("~") == "/home/ada"
    assert storage.absolute("~/x") == storage.absolute(Path("~/x")) == storage.absolute("file://~/x") == "/home/ada/x"
    assert storage.absolute("~root") == f"{tmp_path}/~root"
    assert storage.absolute("./~") == f"{tmp_path}/~"


@pytest.mark.parametrize(
    ("place", "local"),
    [
        ("s3://bucket/a::b", False),
        ("simplecache::s3://bucket/a", False),
        ("zip://a.txt::/x.zip", False),
        ("file:///x", True),
        ("a::s3://b", True),
        ("dir/s3://b", True),
        ("/s3://b", True),
    ],
)
def test_urls_and_paths_are_distinguished(place, local):
    assert storage.is_local(place) == local


def test_colons_in_a_url_without_a_chain_stay_in_its_path():
    fs, path = storage.filesystem("memory://folder/a::b")
    assert (type(fs).__name__, path.lstrip("/")) == ("MemoryFileSystem", "folder/a::b")
    storage.write_bytes("memory://folder/a::b", b"1")
    assert storage.read_bytes("memory://folder/a::b") == b"1"


@pytest.mark.parametrize("wrong", ["", "a\0b", None, 3, b"bytes", ["x"]])
def test_an_invalid_path_is_refused(wrong):
    for call in (storage.absolute, storage.is_local, storage.read_bytes, Searcher.open, read_version, Encoder.load):
        with pytest.raises(ConfigError, match="path"):
            call(wrong)


@pytest.mark.parametrize("name", ["a::b", "~old", "x?#%20 é"])
def test_unusual_folder_names_work_from_corpus_to_answers(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    rows = [{"_id": str(number), "text": f"text of {number}"} for number in range(3)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "text"}) + "\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    assert load_dataset(folder).queries == {"q": "text"}
    Encoder.load().save(folder / "checkpoint")
    encoder = EncoderConfig(checkpoint=folder / "checkpoint")
    assert encode_corpus(folder, Path(f"{name}-embeddings"), encoder).manifest.num_docs == 3
    build_index(Path(f"{name}-embeddings"), folder / "index")
    build_index(Path(f"{name}-embeddings"), folder / "again", IndexConfig(codec_from=folder / "index"))
    save_embeddings(folder / "more", collection(2, dim=384), read_version(folder / "index").contract, ["a", "b"])
    assert update_index(folder / "index", folder / "more", ["1"]).manifest.num_docs == 4
    assert Searcher.open(folder / "index", verify=True).find(["0", "1"]).keys() == {"0"}
    assert Encoder.load(folder / "checkpoint").contract.checkpoint == str((tmp_path / name / "checkpoint").resolve())
