"""`ray job submit` runs a job on an existing cluster from the current working tree."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ray_lir.search.searcher import Searcher
from tests.support.checkpoints import put_together
from tests.support.corpora import write_rows
from tests.support.processes import descendants
from tests.support.repository import REPOSITORY

RAY = Path(sys.executable).parent / "ray"
PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the address of a job server and the environment that authorises a client."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the sockets in it allow no long path
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **variables, "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    port, dashboard, client, agent = (free_port() for _ in range(4))
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1"]
    # The job agent would not start beside that of another cluster, which has the default port.
    ports += [f"--dashboard-agent-listen-port={agent}"]
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", *ports]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", process)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        for pid in [process.pid, *descendants(process.pid)]:  # it would take half a minute to stop on request
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, even if only that the token is missing
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the Ray head did not answer at {url}")


def run_when_ready(submit: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run the command, and repeat it while the head's agent is starting."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(submit, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=2 * PATIENCE)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def test_submitted_jobs_encode_a_corpus_and_build_its_index(head, tmp_path: Path):
    address, environment = head
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path / "checkpoint")
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"_id": str(number), "text": f"document {number}"} for number in range(20)])
    embeddings, index = str(tmp_path / "embeddings"), str(tmp_path / "index")
    jobs = {
        "jobs.encode": ["--corpus", corpus, "--output", embeddings, "--encoder.checkpoint", checkpoint],
        "jobs.build_index": ["--embeddings", embeddings, "--output", index],
    }
    for module, flags in jobs.items():
        submit = [str(RAY), "job", "submit", "--address", address, "--working-dir", ".", "--", sys.executable, "-m", module, *flags]
        done = run_when_ready(submit, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
        assert result["num_docs"] == 20
        assert "in this process" not in done.stdout + done.stderr  # a submitted job uses its cluster, however small it is
    assert Searcher.open(index).doc_ids([0, 19]) == ["0", "19"]
