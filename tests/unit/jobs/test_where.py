"""Where a job runs: in this process if it is small and names no cluster, and otherwise on Ray. The bytes are the same."""

import json
import logging
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from jobs import where
from jobs.where import SMALL_TOKENS, JobSize, runs_on_ray
from ray_lir.base.config import EncoderConfig
from ray_lir.distributed.workers import TaskWorkers, Workers
from ray_lir.encoder.corpus_encoder import encode_corpus
from tests.support.corpora import write_rows
from tests.support.repository import REPOSITORY

ROWS = [{"_id": f"d{number}", "text": f"the river of document {number} " * (number % 5)} for number in range(40)]
BAD = [{"_id": "d5", "text": "again"}, {"_id": "no text"}, b"not json"]
SMALL, LARGE = JobSize.of_tokens(SMALL_TOKENS), JobSize.of_tokens(SMALL_TOKENS + 1)
KILLED = """
import os, signal, sys
from ray_lir.encoder import corpus_encoder
def encode_chunk(*args, encode=corpus_encoder.encode_chunk):
    if args[0].number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*args)
corpus_encoder.encode_chunk = encode_chunk
from jobs.encode import EncodeJob, main, run
main(EncodeJob, run)
"""
ALL_JOBS = """
import json, sys
from jobs import build_index, compact, encode, update
corpus, new, work, checkpoint = sys.argv[1:]
encoder = {"checkpoint": checkpoint}
encode.run(encode.EncodeJob(corpus=corpus, output=f"{work}/embeddings", encoder=encoder))
build_index.run(build_index.BuildIndexJob(embeddings=f"{work}/embeddings", output=f"{work}/index"))
update.run(update.UpdateJob(index=f"{work}/index", add=new))
compact.run(compact.CompactJob(index=f"{work}/index"))
print(json.dumps([name for name in ("ray", "transformers", "torch._dynamo") if name in sys.modules]))
"""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", *where.JOB_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_rows(tmp_path / "corpus.jsonl", [*ROWS[:10], *BAD, *ROWS[10:]])
    return tmp_path / "corpus.jsonl"


def without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def encode_words(corpus: Path, output: Path, checkpoint: str) -> list[str]:
    return ["--corpus", str(corpus), "--output", str(output), "--encoder.checkpoint", checkpoint, "--docs_per_part", "4"]


def test_small_jobs_run_in_this_process_and_say_so(caplog):
    caplog.set_level(logging.INFO, "ray_lir")
    assert not runs_on_ray("auto", "encode", JobSize.of_corpus([str(REPOSITORY / "README.md")]), Workers())
    assert not runs_on_ray("auto", "compact", SMALL)
    assert not runs_on_ray("auto", "build_index", SMALL, TaskWorkers())
    first, second, third = caplog.messages
    size = (REPOSITORY / "README.md").stat().st_size
    assert first == f"encode: {round(size / 1e3)} kB of text, in this process (--workers.num_workers N starts Ray)"
    assert second == "compact: 10,000,000 tokens, in this process (--where ray starts Ray)"
    assert third == "build_index: 10,000,000 tokens, in this process (--where ray starts Ray)"


def test_large_jobs_run_on_ray_and_say_so(caplog):
    caplog.set_level(logging.INFO, "ray_lir")
    assert runs_on_ray("auto", "encode", LARGE, Workers())
    assert caplog.messages == ["encode: 10,000,001 tokens, on Ray (--where here runs the job in this process)"]
    assert not runs_on_ray("here", "encode", LARGE, Workers())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RAY_ADDRESS", "10.1.2.3:6379", True),
        ("RAY_ADDRESS", "auto", True),
        ("RAY_ADDRESS", "local", False),  # a new cluster of this machine
        ("RAY_ADDRESS", "", False),
        ("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}", True),
        ("RAY_JOB_ID", "01000000", True),
    ],
)
def test_a_cluster_in_the_environment_is_used(name, value, expected, monkeypatch):
    monkeypatch.setenv(name, value)
    assert runs_on_ray("auto", "encode", SMALL, Workers()) == expected
    assert not runs_on_ray("here", "encode", SMALL, Workers())


@pytest.mark.parametrize("workers", [Workers(num_workers=1), Workers(cpus_per_worker=2), TaskWorkers(gpus_per_worker=0.5)])
def test_a_flag_of_the_workers_means_ray(workers):
    assert runs_on_ray("auto", "encode", SMALL, workers)


@pytest.mark.parametrize("connected", [True, False])
def test_a_process_that_is_connected_to_ray_stays_on_ray(connected, monkeypatch):
    module = ModuleType("ray")
    module.__spec__, module.is_initialized = find_spec("ray"), lambda: connected
    monkeypatch.setitem(sys.modules, "ray", module)
    assert runs_on_ray("auto", "encode", SMALL, Workers()) == connected


def test_compressed_files_count_as_the_text_that_they_hold(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_bytes(bytes(4_000_000))
    sizes = [JobSize.of_corpus([str(tmp_path / name)]) for name in ("a.jsonl", "a.jsonl.gz", "a.parquet")]
    assert [size.num_tokens for size in sizes] == [1_000_000, 3_000_000, 2_000_000]
    assert sizes[1].text == "12.0 MB of text"


def test_a_killed_job_continues_in_process_with_the_same_bytes(corpus, checkpoint, tmp_path):
    expected = tmp_path / "expected"
    encode_corpus(str(corpus), str(expected), EncoderConfig(checkpoint=checkpoint), docs_per_part=4)
    words = encode_words(corpus, tmp_path / "out", checkpoint)
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=REPOSITORY, capture_output=True, text=True, env=without_ray())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    command = [sys.executable, "-m", "jobs.encode", *words]
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=without_ray())
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["num_skipped"], result["num_chunks"], result["num_dead"]) == (3, 11, len(BAD)), again.stderr
    assert "in this process" in again.stderr and "continues after 3 of 11 chunks" in again.stderr
    files = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file() and path.name != "provenance.json"}
    assert any("dead_letters" in str(path) for path in files)
    for path in files:
        assert (tmp_path / "out" / path).read_bytes() == (expected / path).read_bytes(), path


def test_no_job_of_small_data_loads_ray_or_transformers(corpus, checkpoint, tmp_path):
    write_rows(tmp_path / "new.jsonl", [{"_id": "n1", "text": "the king of the river"}, {"_id": "d1", "text": "a new text"}])
    words = [str(corpus), str(tmp_path / "new.jsonl"), str(tmp_path), checkpoint]
    done = subprocess.run([sys.executable, "-c", ALL_JOBS, *words], cwd=REPOSITORY, capture_output=True, text=True, env=without_ray())
    assert done.stdout == "[]\n", done.stderr
