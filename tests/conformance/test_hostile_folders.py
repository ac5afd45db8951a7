"""Untrusted folders: what a hostile or damaged index, embeddings folder, checkpoint or corpus must not do.

It must not reach files outside its folder, run code, end the process, or give a wrong answer although it was verified.
The fuzz tests run in another process, because a kernel that reads out of bounds would end it. RAY_LIR_FUZZ=N multiplies their cases.
"""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import parse
from jobs.update import UpdateJob
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig, parse_yaml
from ray_lir.base.errors import ConfigError, FormatError, RayLirError
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.publishing import remove_versions
from ray_lir.building.update import update_index
from ray_lir.corpus import records, text_lines
from ray_lir.corpus.records import BadRow, parse_document, read_rows
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.encoder.cross_encoder import CrossEncoder
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.index.arrays import array_bytes
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import files_of
from serving.http.access import read_tokens
from tests.support.checkpoints import put_together
from tests.support.repository import REPOSITORY
from tests.support.synthetic import collection, queries_about

CASES = 250 * int(os.environ.get("RAY_LIR_FUZZ", "1"))
EMBEDDINGS = collection(num_docs=60, dim=16, topics=12, max_tokens=8)
QUERIES = queries_about(EMBEDDINGS, [3, 50])


USES = (Searcher.open, compact_index, lambda root: update_index(root, delete=["doc-1"]))


def make_index(folder: Path) -> str:
    """An index of two shards, a delta shard and tombstones, in two versions."""
    config = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=24), codec=CodecConfig(nbits=2))
    build_index(EMBEDDINGS.slice(0, 50), str(folder), config, texts=[f"text {number}" for number in range(50)])
    update_index(str(folder), add=EMBEDDINGS.slice(50, 60), texts=["more"] * 10, delete=["doc-7", "doc-30"])
    return str(folder)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_index(tmp_path_factory.mktemp("hostile") / "index")


@pytest.fixture
def index(pristine: str, tmp_path: Path) -> Path:
    """Return a copy of the index, with a file beside it that is not part of the index."""
    shutil.copytree(pristine, tmp_path / "runs" / "index")
    for folder in (tmp_path / "runs" / "precious", tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "file").write_text("not part of any index")
    yield tmp_path / "runs" / "index"
    assert (tmp_path / "runs" / "precious" / "file").exists()
    assert (tmp_path / "elsewhere" / "file").exists()


def answers(root: str, verify: bool) -> list[Any]:
    """Use an index in every way a reader can; return scores and documents as plain values."""
    searcher = Searcher.open(root, verify=verify)
    found = []
    for engine in VECTOR_ENGINES:
        for top in searcher.search(QUERIES, k=5, engine=engine):
            found.append((top.scores.tolist(), [document["doc_id"] for document in searcher.documents(top.documents)]))
    return found


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


NAMES = [
    "../precious/file",
    "/etc/passwd",
    "shards/../../precious/file",
    "shards//x",
    "./shards/x",
    "~/x",
    "s3://bucket/x",
    "shards\\x",
    "",
]


@pytest.mark.parametrize("name", [*NAMES, "shards/*", "versions/1/manifest.json", "LATEST", "x" * 1000, "shards/a\0b", "_work/x", ".ssh/x"])
@pytest.mark.parametrize("place", ["codec", "shard", "tombstones", "file"])
def test_a_manifest_name_outside_the_index_is_refused(index: Path, name: str, place: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        shard = manifest["shards"][0]
        if place == "shard":
            shard["name"] = name
        elif place == "file":
            shard["files"].append({"name": name, "size": 1, "sha256": "0" * 64})
        else:
            (manifest if place == "codec" else shard)[place]["name"] = name

    edit(index / "versions" / "2" / "manifest.json", change)
    for verify in (False, True):
        with pytest.raises(FormatError, match="manifest"):
            Searcher.open(str(index), verify=verify)


def test_removing_versions_leaves_what_is_outside_of_the_index(index: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][0]["files"].append({"name": "../precious/file", "size": 1, "sha256": "0" * 64})

    edit(index / "versions" / "1" / "manifest.json", change)
    (index / "_work").mkdir(exist_ok=True)
    (index / "_work" / "garbage.json").write_text(json.dumps(["../../elsewhere", "versions", "codec", "shards/*"]))
    assert remove_versions(str(index), keep=1)["versions_removed"] == [1]
    assert Searcher.open(str(index), verify=True).manifest.num_docs == 58


@pytest.mark.parametrize(
    "note", ['{"a": 1}', "[1]", "[" * 100_000, "[null]", "nonsense", '["versions/2"]', '["_work/x"]', '["shards/a/b"]']
)
def test_a_malformed_garbage_list_removes_nothing(index: Path, note: str) -> None:
    (index / "_work").mkdir(exist_ok=True)
    (index / "_work" / "garbage.json").write_text(note)
    remove_versions(str(index), keep=2)
    assert Searcher.open(str(index), verify=True).manifest.num_docs == 58


@pytest.mark.parametrize("name", ["shards", "codec", "tombstones", "versions", "versions/2", "versions/2/manifest.json", "_work", "LATEST"])
def test_a_symbolic_link_out_of_the_index_is_refused(index: Path, name: str, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "moved"
    if (index / name).exists():
        (index / name).rename(target)
    else:
        target.mkdir()
    (index / name).symlink_to(target)
    for use in (
        Searcher.open,
        compact_index,
        lambda root: update_index(root, delete=["doc-1"]),
        lambda root: remove_versions(root, keep=1),
    ):
        with pytest.raises(FormatError, match="symbolic link"):
            use(str(index))
    assert target.exists()


def test_a_link_to_an_outside_file_is_refused_and_inner_links_are_followed(index: Path, tmp_path: Path) -> None:
    file = next(index.glob("shards/*/codes.npy"))
    file.rename(index / "codes.npy")
    file.symlink_to(index / "codes.npy")
    assert Searcher.open(str(index), verify=True).manifest.num_docs == 58
    (index / "codes.npy").rename(tmp_path / "elsewhere" / "codes.npy")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere" / "codes.npy")
    with pytest.raises(FormatError, match="symbolic link"):
        Searcher.open(str(index))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("num_docs",), 10**30),
        (("num_docs",), 59),
        (("num_tokens",), -1),
        (("dim",), 0),
        (("dim",), 17),
        (("nbits",), 3),
        (("nbits",), 4),
        (("num_centroids",), 10**12),
        (("num_centroids",), 23),
        (("codec", "size"), -5),
        (("codec", "sha256"), "x"),
        (("format_version",), True),
        (("format_version",), -1),
        (("format_version",), "1" * 10_000),
        (("kind",), "k" * 10_000_000),
        (("mean_residual_norm",), float("nan")),
        (("shards", 0, "first_document"), 5),
        (("shards", 0, "num_docs"), 24),
        (("shards", 0, "num_tokens"), 10**18),
        (("shards", 0, "num_deleted"), 0),
        (("shards", 0, "num_deleted"), 10**9),
        (("shards", 0, "files"), []),
        (("shards", 0, "tombstones"), None),
        (("shards", 0), None),
        (("shards",), {}),
        (("contract", "query_prompt"), "x" * 10_000_000),
        (("contract", "query_length"), -1),
        (("contract", "dim"), "{0.__class__}"),
    ],
)
def test_a_manifest_with_impossible_values_is_refused(index: Path, place: tuple[Any, ...], value: Any) -> None:
    def change(manifest: Any) -> None:
        for key in place[:-1]:
            manifest = manifest[key]
        manifest[place[-1]] = value

    edit(index / "versions" / "2" / "manifest.json", change)
    with pytest.raises(FormatError) as refused:
        Searcher.open(str(index))
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\x00", "null", '"x"', "[]", "\ud800", '{"kind": "index"}']
)
@pytest.mark.parametrize("name", ["manifest.json", "tuning.json"])
def test_malformed_or_deeply_nested_json_is_refused(index: Path, name: str, content: str) -> None:
    (index / "versions" / "2" / name).write_text(content, errors="surrogatepass")
    with pytest.raises(FormatError):
        Searcher.open(str(index))


@pytest.mark.parametrize("content", ["../..", "9" * 5000, "-1", "0", "1_0", "\u00b2", "1.0", "", "2\n3", "+2", " "])
def test_a_latest_file_without_a_number_is_refused(index: Path, content: str) -> None:
    (index / "LATEST").write_text(content)
    with pytest.raises(FormatError, match="a version number"):
        latest_version(str(index))


@pytest.mark.parametrize("name", ["\u00b2", "-1", "01", "1e3", "..x", "9" * 200])
def test_removing_versions_leaves_unknown_folders(index: Path, name: str) -> None:
    shutil.copytree(index / "versions" / "1", index / "versions" / name)
    (index / "_work" / "version-x").mkdir(parents=True)
    assert remove_versions(str(index), keep=1)["versions_removed"] == [1]
    assert (index / "versions" / name).exists()


def npy(descr: str, shape: str, data: bytes = b"", fortran: bool = False, version: bytes = b"\x01\x00", pad: int = 118) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(pad - 1).encode() + b"\n"
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header + data


class Exploit:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["codes", "doc_offsets", "residuals", "scales"])
def test_arrays_with_an_unusual_layout_are_refused(index: Path, name: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    original = next(index.glob(f"shards/*/{name}.npy")).read_bytes()
    contents = [
        npy("'|O'", "(1,)", pickle.dumps(Exploit(ran))),
        pickle.dumps(Exploit(ran)),
        npy("'<u2'", "(99999999999999,)"),
        npy("'<u2'", "(-1,)"),
        npy("'<u2'", "()", b"ab"),
        npy("'<u2'", "(1, 2)", b"abcd", fortran=True),
        npy("'>u2'", "(1,)", b"ab"),
        npy("'<u2'", "(1,)", b"ab", pad=100),
        npy("'<u2'", "(1,)", b"ab", pad=60_000),
        npy("'<u2'", "(1,)", b"ab", version=b"\x02\x00"),
        npy("'<u2'", "(" * 90 + ")" * 90, b"ab", pad=300),
        npy("[('a', '<u2')]", "(1,)", b"ab"),
        original[:8] + b"\xff\xff" + original[10:],
        original + b"more",
        original[:-2],
        b"",
        b"PK\x03\x04" + original,
    ]
    for content in contents:
        replace_listed(index, f"{name}.npy", content)
        with pytest.raises(FormatError):
            Searcher.open(str(index))
    assert not ran.exists()


def replace_listed(index: Path, file_name: str, content: bytes) -> None:
    """Overwrite the first shard's file with other content of the size in the manifest (at least 1)."""

    def change(manifest: dict[str, Any]) -> None:
        file = next(file for file in manifest["shards"][0]["files"] if file["name"].endswith(f"/{file_name}"))
        file["size"] = max(1, len(content))
        (index / file["name"]).write_bytes(content)

    edit(index / "versions" / "2" / "manifest.json", change)


@pytest.mark.parametrize(
    ("file_name", "change"),
    [
        ("codes.npy", lambda codes: np.full_like(codes, 24)),
        ("codes.npy", lambda codes: codes.astype(np.uint32)),
        ("doc_offsets.npy", lambda offsets: offsets[::-1]),
        ("doc_offsets.npy", lambda offsets: offsets + 1),
        ("doc_offsets.npy", lambda offsets: np.where(np.arange(len(offsets)) == 3, 1 << 60, offsets)),
        ("doc_offsets.npy", lambda offsets: np.where(np.arange(len(offsets)) == 3, -5, offsets)),
        ("doc_offsets.npy", lambda offsets: offsets.astype(np.float64)),
        ("residuals.npy", lambda residuals: residuals.reshape(-1)),
        ("residuals.npy", lambda residuals: residuals[:, :1].copy()),
        ("scales.npy", lambda scales: scales[:-1].copy()),
    ],
)
def test_numbers_out_of_range_are_found_when_the_index_is_opened(
    index: Path, file_name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    array = np.load(next(index.glob(f"shards/shard-00000*/{file_name}")))
    replace_listed(index, file_name, array_bytes(np.ascontiguousarray(change(array))))
    with pytest.raises(FormatError, match=file_name):
        Searcher.open(str(index))


@pytest.mark.parametrize("numbers", [[99], [5, 3], [3, 3]])
def test_tombstones_out_of_range_are_refused(index: Path, numbers: list[int]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        shard = manifest["shards"][0]
        content = array_bytes(np.array(numbers, np.uint32))
        (index / shard["tombstones"]["name"]).write_bytes(content)
        shard["tombstones"]["size"] = len(content)
        extra = len(numbers) - shard["num_deleted"]
        shard["num_deleted"] += extra
        manifest["num_docs"] -= extra

    edit(index / "versions" / "2" / "manifest.json", change)
    for use in USES:
        with pytest.raises(FormatError, match="tombstones"):
            use(str(index))


def test_a_gzip_file_of_one_enormous_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"_id": "1", "text": "a text"}\n{"_id": "2", "text": "')
        for _ in range(2 * text_lines.MAX_LINE_BYTES >> 20):
            file.write(bytes(1 << 20))
    found = read_rows(str(tmp_path / "corpus.jsonl.gz"))
    assert next(found)[0] == 1
    with pytest.raises(FormatError, match="a line 2 of more than"):
        next(found)


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000, "[" * 90_000 + "]" * 90_000, "1" * 10_000, '"\\ud800"', "1e999"])
def test_an_unreadable_row_is_a_bad_row(value: str) -> None:
    with pytest.raises(BadRow):
        parse_document(b'{"_id": "1", "text": "t", "metadata": ' + value.encode() + b"}")


def test_a_parquet_file_that_expands_a_thousand_times_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "corpus.parquet")
    texts = ["x" * (1 << 20)] * 8
    pq.write_table(pa.table({"_id": [str(number) for number in range(8)], "text": texts}), url, compression="zstd", use_dictionary=False)
    assert Path(url).stat().st_size * 200 < 8 << 20
    assert len(list(read_rows(url))) == 8
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(FormatError, match="a row 1 of"):
        next(read_rows(url))
    monkeypatch.setattr(records, "LARGEST_EXPANSION", 4 << 20)
    with pytest.raises(FormatError, match="row group 0 of"):
        next(read_rows(url))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in pairwise("abcdefghi")
)


@pytest.mark.parametrize("text", [BOMB, "[" * 100_000, "!!python/object/apply:os.system ['true']", "a: [", "\x00"])
def test_yaml_with_bombs_or_code_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_yaml(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not YAML"):
        parse(UpdateJob, ["--recipe", str(tmp_path / "recipe.yaml")])
    with pytest.raises(ConfigError, match="is not a token file"):
        read_tokens(str(tmp_path / "recipe.yaml"))


EVIL = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertModel, BertForSequenceClassification
class EvilConfig(BertConfig): model_type = "neverheardof"
class EvilModel(BertModel): config_class = EvilConfig
"""


def with_code(folder: Path, marker: Path, **config: Any) -> str:
    """A checkpoint with code that leaves a file when it runs."""
    put_together("pylate", "expansion", folder)
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoModelForSequenceClassification": "evil.EvilModel"}
    edit(folder / "config.json", lambda value: {**value, "auto_map": auto_map, **config})
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    return str(folder)


@pytest.mark.parametrize("model_type", ["neverheardof", "bert"])
def test_checkpoint_code_is_not_run_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "ran"
    folder = with_code(tmp_path / "hostile", marker, model_type=model_type)
    edit(Path(folder, "tokenizer_config.json"), lambda value: {**value, "auto_map": {"AutoTokenizer": ["evil.EvilConfig", None]}})
    for load in (Encoder.load, CrossEncoder.load):
        with suppress(ConfigError):
            load(folder)
        assert not marker.exists()
    if model_type == "neverheardof":
        with pytest.raises(ConfigError, match=r"contains Python code .*trust_remote_code"):
            Encoder.load(folder)
    assert sys.stdin.read() == "y\ny\n"


def test_checkpoint_code_runs_only_with_the_field_that_allows_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = with_code(tmp_path / "trusted", marker, model_type="neverheardof")
    config = f"EncoderConfig(checkpoint={folder!r}, trust_remote_code=True)"
    script = f"from ray_lir import Encoder, EncoderConfig; Encoder.load({config})"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert marker.exists()


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("modules.json", [{"idx": 0, "name": "0", "path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]),
        ("modules.json", [{"idx": 0, "name": "0", "path": "/etc", "type": "sentence_transformers.models.Transformer"}]),
        ("modules.json", [{"idx": "0", "path": ""}]),
        ("modules.json", {"a": 1}),
        ("modules.json", "x"),
        ("config.json", []),
        ("config.json", {"auto_map": 3, "model_type": "neverheardof"}),
        ("config_sentence_transformers.json", []),
        ("sentence_bert_config.json", 7),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"hidden_size": 10**12}),
        ("config.json", {"vocab_size": -1}),
        ("config.json", {"attn_implementation": "evil/kernels"}),
        ("1_Dense/config.json", {"activation_function": "os.system"}),
        ("1_Dense/config.json", []),
    ],
)
def test_a_malformed_checkpoint_or_one_with_outside_paths_is_refused(file: str, value: Any, tmp_path: Path) -> None:
    folder = Path(put_together("pylate", "expansion", tmp_path / "checkpoint"))
    put_together("pylate", "expansion", tmp_path / "elsewhere")
    edit(folder / file, lambda old: {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value)
    with pytest.raises(ConfigError) as refused:
        Encoder.load(str(folder))
    assert "\n" not in str(refused.value)


def test_the_query_encoder_reads_no_module_outside_the_checkpoint(tmp_path: Path) -> None:
    folder = Path(put_together("pylate", "no_expansion", tmp_path / "runs" / "checkpoint"))
    contract = Encoder.load(str(folder)).contract
    assert NumpyQueryEncoder.load(contract, str(folder)) is not None
    (folder / "1_Dense").rename(tmp_path / "runs" / "elsewhere")
    edit(folder / "modules.json", lambda modules: [{**each, "path": each["path"] and "../elsewhere"} for each in modules])
    assert NumpyQueryEncoder.load(contract, str(folder)) is None


def test_no_pickle_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = Path(put_together("pylate", "expansion", tmp_path / "checkpoint"))
    for file in ("model.safetensors", "1_Dense/model.safetensors"):
        (folder / file).unlink()
        (folder / file).with_name("pytorch_model.bin").write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(ConfigError):
        Encoder.load(str(folder))
    put_together("stanford", "default", tmp_path / "stanford")
    (tmp_path / "stanford" / "colbert.dnn").write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(ConfigError):
        Encoder.load(str(tmp_path / "stanford" / "colbert.dnn"))
    assert not marker.exists()


def mutations(rng: random.Random, content: bytes, others: list[bytes]) -> tuple[str, bytes]:
    """Return the content after one change, and the name of the change."""
    kind = rng.choice(["flip", "flip", "flips", "cut", "zeros", "swap", "grow", "run"])
    changed = bytearray(content)
    if kind == "flip":
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randrange(2, 30)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif kind == "zeros":
        start = rng.randrange(len(changed))
        changed[start : start + 16] = bytes(len(changed[start : start + 16]))
    elif kind == "swap":
        changed = bytearray(rng.choice(others))
    elif kind == "grow":
        changed += rng.randbytes(rng.randrange(1, 20))
    else:
        start = rng.randrange(len(changed))
        changed[start : start + 8] = (b"\xff" * 8)[: len(changed[start : start + 8])]
    return kind, bytes(changed)


def fuzz_index(folder: Path, seed: int, count: int) -> None:
    """Change one file of an index at a time; raise AssertionError for a harmful case."""
    root = make_index(folder / "index")
    expected = answers(root, verify=True)
    listed = {Path(root, file.name) for file in files_of(read_version(root))}
    files = sorted({*listed, Path(root, "LATEST"), Path(root, "versions", "2", "manifest.json")})
    contents = {path: path.read_bytes() for path in files}
    manifest = Path(root, "versions", "2", "manifest.json")
    for case in range(count):
        rng = random.Random(seed * 1_000_003 + case)
        path = rng.choice(files)
        same_kind = [contents[other] for other in files if other.suffix == path.suffix and other != path] or [b"1\n"]
        kind, changed = mutations(rng, contents[path], same_kind)
        fitting = rng.random() < 0.5 and path != manifest
        print(f"case {case}: {kind} {path.relative_to(root)} fitting={fitting}", flush=True)
        path.write_bytes(changed)
        if fitting:  # a hostile author also changes the manifest
            manifest.write_bytes(contents[manifest].replace(*(b'"size":%d' % len(each) for each in (contents[path], changed))))
        for verify in (False, True):
            try:
                found = answers(root, verify)
            except RayLirError as error:
                assert "\n" not in str(error), str(error)
                assert len(str(error)) < 2000
                continue
            assert not (verify and path in listed and changed != contents[path]), "altered content was verified"
            assert not verify or found == expected or path.name == "LATEST", "another answer"
        path.write_bytes(contents[path])
        manifest.write_bytes(contents[manifest])


def fuzz_embeddings(folder: Path, seed: int, count: int) -> None:
    """Change one file of an embeddings folder at a time, and build an index of it."""
    root = folder / "embeddings"
    save_embeddings(str(root), EMBEDDINGS.slice(0, 20))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in files}
    config = IndexConfig(clustering=ClusteringConfig(num_centroids=8, num_iterations=1))
    for case in range(count):
        rng = random.Random(seed * 1_000_003 + case)
        path = rng.choice(files)
        kind, changed = mutations(rng, contents[path], [b"PAR1", b"{}"])
        print(f"case {case}: {kind} {path.relative_to(root)}", flush=True)
        path.write_bytes(changed)
        output = folder / f"index-{case}"
        try:
            build_index(str(root), str(output), config)
        except RayLirError as error:
            assert "\n" not in str(error), str(error)
            assert len(str(error)) < 2000
        shutil.rmtree(output, ignore_errors=True)
        path.write_bytes(contents[path])


FUZZ = {"index": (fuzz_index, CASES), "embeddings": (fuzz_embeddings, CASES // 5)}


@pytest.mark.parametrize("name", FUZZ)
def test_damaged_folders_are_refused_or_harmless(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, name, str(tmp_path), "0", str(FUZZ[name][1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]


if __name__ == "__main__":
    FUZZ[sys.argv[1]][0](Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
