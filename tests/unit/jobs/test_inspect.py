"""jobs.inspect: its report of a folder, and the damage that it finds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import parse
from jobs.export import ExportJob
from jobs.export import run as export
from jobs.inspect import InspectJob, run
from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import manifest_digest
from tests.support.checkpoints import put_together
from tests.support.served_index import make_index
from tests.unit.storage.test_s3 import bucket  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with a checkpoint, embeddings and an index of 3 shards."""
    folder = tmp_path_factory.mktemp("inspect")
    make_index(folder, num_docs=60, num_shards=3)
    return folder


@pytest.fixture
def index(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "index", tmp_path / "index"))


def inspect(folder: Path, **fields) -> dict:
    return run(InspectJob(folder=str(folder), **fields))


def test_an_index_is_described_and_verified(index):
    found = inspect(index)
    manifest = read_version(str(index))
    assert (found["kind"], found["version"], found["documents"], len(found["shards"])) == ("index", 1, 60, 3)
    assert found["lexical"] == {"stemmer": "english", "num_terms": manifest.lexical.num_terms}
    assert found["manifest_digest"] == manifest_digest(manifest) and found["verified"] == "sha256" and found["not_listed"] == []
    files = [path for part in ("codec", "lexical", "shards") for path in (index / part).rglob("*") if path.is_file()]
    assert (found["files"], found["bytes"]) == (len(files), sum(path.stat().st_size for path in files))
    assert sum(shard["tokens"] for shard in found["shards"]) == found["tokens"] == manifest.num_tokens
    assert {"sample", "assemble"} <= {stage["stage"] for stage in found["made"]}


def test_one_changed_bit_is_found_and_every_damaged_file_is_printed(index, capsys):
    first, second, _ = sorted(index.glob("shards/*/residuals.npy"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    assert inspect(index, verify=False)["verified"] == "sizes"  # the size is unchanged
    second.unlink()
    with pytest.raises(FormatError, match=r"sha256 .* \(and 1 more\).*restore it"):
        inspect(index)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert len(printed) == 2 and str(second) in printed[1] and "no such file" in printed[1]


def test_inspect_names_files_that_no_version_lists(index):
    (index / "shards" / "shard-00000-of-a-lost-build").mkdir()
    (index / "shards" / "shard-00000-of-a-lost-build" / "codes.npy").write_bytes(b"x")
    assert inspect(index)["not_listed"] == ["shards/shard-00000-of-a-lost-build"]


def test_a_missing_version_is_refused(index):
    with pytest.raises(FormatError, match=r"versions/7/manifest\.json.*no such file"):
        inspect(index, version=7)


def test_embeddings_are_described_and_verified(made, tmp_path):
    folder = Path(shutil.copytree(made / "embeddings", tmp_path / "embeddings"))
    found = inspect(folder)
    assert (found["kind"], found["documents"], found["parts"], found["rows_refused"]) == ("embeddings", 60, 1, 0)
    assert found["precision"] == "auto"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"config": {}}))  # as of vectors of another library
    assert "precision" not in inspect(folder)
    part = next((folder / "embeddings").iterdir())
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(FormatError, match="truncated or altered"):
        inspect(folder, verify=False)


def test_an_export_is_described_and_verified(made, tmp_path):
    export(ExportJob(source=str(made / "embeddings"), output=str(tmp_path / "out"), layout="parquet"))
    assert inspect(tmp_path / "out")["kind"] == "export"
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(FormatError, match="found 0 bytes"):
        inspect(tmp_path / "out")


def test_folders_on_an_object_store_are_exported_and_inspected(made, bucket):  # noqa: F811
    for path in (made / "embeddings").rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/in/{path.relative_to(made / 'embeddings')}", path.read_bytes())
    assert run(InspectJob(folder=f"{bucket}/in")) == {**inspect(made / "embeddings"), "folder": f"{bucket}/in"}
    for layout in ("npy", "qdrant"):
        export(ExportJob(source=f"{bucket}/in", output=f"{bucket}/{layout}", layout=layout))
        assert run(InspectJob(folder=f"{bucket}/{layout}"))["documents"] == 60
    export(ExportJob(source=str(made / "embeddings"), output=str(made / "npy")))
    assert storage.read_bytes(f"{bucket}/npy/manifest.json") == (made / "npy" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="is empty or does not exist|cannot read"):
        run(InspectJob(folder="s3://no-such-bucket-here/in"))


def test_a_loaded_checkpoint_prints_its_conventions(tmp_path):
    found = inspect(Path(put_together("pylate", "expansion", tmp_path / "checkpoint")))
    assert found["kind"] == "checkpoint" and found["query_expansion"] and found["query_marker"] == "[Q] "
    assert len(found["fingerprint"]) == 16


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is empty or does not exist"),
        ({"notes.txt": b"mine"}, "holds no index, embeddings"),
        ({"_progress": b"x"}, "_progress belongs to an unfinished job; run the job again"),
        ({"manifest.json": b"{"}, "damaged content"),
        ({"manifest.json": b'{"kind": "cake"}'}, "kind 'cake'"),
        ({"manifest.json": b'{"kind": "embeddings", "format_version": 99}'}, "found 99; upgrade ray_lir"),
        ({"LATEST": b"one"}, "expected a version number"),
    ],
)
def test_an_unknown_folder_is_a_one_line_error(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, FormatError), match=message) as error:
        inspect(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="manifest.json is a file; give the folder that holds it"):
        inspect(tmp_path / "manifest.json")


def test_the_folder_can_be_a_positional_argument(tmp_path):
    assert parse(InspectJob, ["DIR", "--json"], "folder") == parse(InspectJob, ["--folder", "DIR"], "folder") == InspectJob(folder="DIR")
    save_embeddings(str(tmp_path / "in"), TokenEmbeddings.of([np.eye(2, 8)]))
    command = [sys.executable, "-m", "jobs", "inspect", str(tmp_path / "in")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] == 2
    (tmp_path / "in" / "manifest.json").write_text("[]")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
