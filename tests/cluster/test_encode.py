"""jobs.encode on Ray: the same bytes as in one process, whichever processes are killed."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.finished_chunks import PROGRESS
from ray_lir.encoder.chunk_encoder import ChunkEntry
from ray_lir.encoder.corpus_encoder import Plan, encode_corpus
from tests.support.corpora import write_rows
from tests.support.processes import descendants
from tests.support.repository import REPOSITORY

ROWS = [
    {"_id": f"d{number}", "title": f"Title {number}", "text": f"the text of document {number} " * (number % 7)} for number in range(120)
]
BAD = [{"_id": "d5", "text": "again"}, {"_id": "no text"}, b"not json"]
DOCS_PER_PART = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two files; the second has rows that are refused."""
    folder = tmp_path_factory.mktemp("corpus")
    write_rows(folder / "a.jsonl", ROWS[:70])
    write_rows(folder / "b.jsonl", [*ROWS[70:80], *BAD, *ROWS[80:]])
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(corpus: str, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of a run in one process."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    encode_corpus(corpus, str(output), EncoderConfig(checkpoint=checkpoint), docs_per_part=DOCS_PER_PART)
    return (output / "manifest.json").read_bytes()


def workers(sign: str) -> list[int]:
    return [pid for pid, name in descendants(os.getpid()).items() if sign in name]


def test_ray_gives_the_same_manifest_as_one_process(ray_cluster, corpus: str, checkpoint: str, undisturbed: bytes, tmp_path: Path):
    from ray_lir.distributed.encode import Workers, make_pool, on_ray
    from ray_lir.distributed.ray_map import ray_map

    config = EncoderConfig(checkpoint=checkpoint)
    spread = partial(on_ray, pool=make_pool(Workers(num_workers=2, cpus_per_worker=1), config))
    result = encode_corpus(corpus, str(tmp_path / "out"), config, docs_per_part=DOCS_PER_PART, map=ray_map, spread=spread)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == undisturbed
    assert (result.manifest.num_docs, result.manifest.num_dead) == (len(ROWS), len(BAD))


def test_a_killed_worker_is_replaced_without_loss(ray_cluster, corpus: str, checkpoint: str, undisturbed: bytes, tmp_path: Path):
    from ray_lir.distributed.encode import Workers, make_pool, on_ray

    config = EncoderConfig(checkpoint=checkpoint)
    killed: list[int] = []

    def spread(plan: Plan) -> Iterator[ChunkEntry]:
        for entry in on_ray(plan, make_pool(Workers(num_workers=1), config)):
            if not killed:
                killed.extend(workers("_EncodingWorker"))
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            yield entry

    encode_corpus(corpus, str(tmp_path / "out"), config, docs_per_part=DOCS_PER_PART, spread=spread)
    assert killed
    assert (tmp_path / "out" / "manifest.json").read_bytes() == undisturbed


@pytest.mark.clusters
def test_a_stalled_encoding_restarts_its_unfinished_part(
    ray_cluster, corpus: str, checkpoint: str, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    """A stopped worker never answers, like a worker on a lost machine."""
    from ray_lir.distributed import encode, pipeline

    config = EncoderConfig(checkpoint=checkpoint)
    monkeypatch.setattr(pipeline, "PATIENCE_S", 15.0)
    before = workers("_EncodingWorker")  # workers of an earlier test that are about to end
    stopped: list[int] = []

    def spread(plan: Plan) -> Iterator[ChunkEntry]:
        for entry in encode.on_ray(plan, encode.make_pool(encode.Workers(num_workers=1), config)):
            if not stopped:
                stopped.extend(pid for pid in workers("_EncodingWorker") if pid not in before)
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
            yield entry

    try:
        with caplog.at_level(logging.WARNING, "ray_lir"):
            encode_corpus(corpus, str(tmp_path / "out"), config, docs_per_part=DOCS_PER_PART, spread=spread)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert "no progress for" in caplog.text and "the remaining chunks start again" in caplog.text
    assert (tmp_path / "out" / "manifest.json").read_bytes() == undisturbed


def test_abandoned_encoding_leaves_no_process(ray_cluster, corpus: str, checkpoint: str, tmp_path: Path):
    from ray_lir.distributed.encode import Workers, make_pool, on_ray

    config = EncoderConfig(checkpoint=checkpoint)

    def spread(plan: Plan) -> Iterator[ChunkEntry]:
        yield next(on_ray(plan, make_pool(Workers(num_workers=1), config)))
        raise ConfigError("enough")

    with pytest.raises(ConfigError, match="enough"):
        encode_corpus(corpus, str(tmp_path / "out"), config, docs_per_part=DOCS_PER_PART, spread=spread)
    deadline = time.monotonic() + 60
    while workers("_EncodingWorker") or workers("_Tokeniser"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_error_in_a_worker_is_one_line(ray_cluster, corpus: str, checkpoint: str, tmp_path: Path):
    from ray_lir.distributed.encode import Workers, make_pool, on_ray

    config = EncoderConfig(checkpoint=checkpoint)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to") as caught:
        encode_corpus(corpus, str(tmp_path / "file" / "out"), config, spread=partial(on_ray, pool=make_pool(Workers(), config)))
    assert "\n" not in str(caught.value)


def job_command(corpus: str, output: Path, checkpoint: str, where: str) -> list[str]:
    words = ["--corpus", corpus, "--output", str(output), "--encoder.checkpoint", checkpoint, "--docs_per_part", str(DOCS_PER_PART)]
    return [sys.executable, "-m", "jobs.encode", *words, "--where", where]


@pytest.mark.parametrize(("first", "second"), [("here", "ray"), ("ray", "here")])
def test_a_killed_job_continues_elsewhere_and_writes_the_same_manifest(
    first: str, second: str, corpus: str, checkpoint: str, undisturbed: bytes, tmp_path: Path
):
    output = tmp_path / "out"
    pipes: dict[str, Any] = {"cwd": REPOSITORY, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen(job_command(corpus, output, checkpoint, first), **pipes)
    deadline = time.monotonic() + 120
    while not list(output.glob(f"{PROGRESS}/*/chunk-*.json")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    job.kill()
    job.communicate()
    assert not (output / "manifest.json").exists()
    again = subprocess.run(job_command(corpus, output, checkpoint, second), **pipes, timeout=180)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert 0 < result["num_skipped"] < result["num_chunks"]
    assert (result["num_docs"], result["num_dead"]) == (len(ROWS), len(BAD))
    assert "continues after" in again.stderr
    assert (output / "manifest.json").read_bytes() == undisturbed
