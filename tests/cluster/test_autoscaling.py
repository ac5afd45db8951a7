"""A cluster that starts without machines and adds them for a job: Ray's own autoscaler, with raylets as machines."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray.util

from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.corpus_encoder import encode_corpus
from tests.cluster.test_job_submit import RAY, free_port
from tests.fixtures.tiny import bert
from tests.support.corpora import write_rows
from tests.support.processes import descendants
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.clusters

PATIENCE_S = 120
MOST_MACHINES = 2


@dataclass(frozen=True)
class Growing:
    """A head without CPUs; its autoscaler may start machines of one CPU."""

    address: str
    environment: dict[str, str]
    process: subprocess.Popen

    def num_machines(self) -> int:
        """Raylets other than the head's."""
        return sum(name.split("\0")[0].endswith("/raylet") for name in descendants(self.process.pid).values()) - 1


def autoscaling(address: str) -> dict:
    """The file that `ray up` would write for the fake provider with which Ray tests its autoscaler."""
    provider = {
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "foreground_node_launch": True,
    }
    machine = {"resources": {"CPU": 1, "object_store_memory": 80 << 20}, "node_config": {}, "min_workers": 0, "max_workers": MOST_MACHINES}
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing",
        "max_workers": MOST_MACHINES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": address, **provider},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, "small": machine},
        **{f"{name}_commands": [] for name in lists},
    }


@pytest.fixture
def growing() -> Iterator[Growing]:
    folder, port = Path(tempfile.mkdtemp(prefix="ray-")), free_port()  # socket paths have a length limit
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "autoscaling.json").write_text(json.dumps(autoscaling(address)))
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_worker_niceness": "0"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | variables | token | {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    words = [str(RAY), "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    words += [f"--autoscaling-config={folder}/autoscaling.json", f"--object-store-memory={80 << 20}"]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Growing(address, environment | {"RAY_ADDRESS": address}, process)
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_on_an_empty_cluster_waits_for_the_first_machine_and_requests_all_its_workers(growing: Growing, tmp_path: Path):
    bert(tmp_path / "checkpoint")
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"_id": str(number), "text": f"token {number}"} for number in range(40)])
    encode_corpus(corpus, str(tmp_path / "here"), EncoderConfig(checkpoint=str(tmp_path / "checkpoint")), docs_per_part=1)
    words = ["--corpus", corpus, "--output", str(tmp_path / "there"), "--encoder.checkpoint", str(tmp_path / "checkpoint")]
    words += ["--docs_per_part", "1", "--workers.num_workers", str(MOST_MACHINES)]
    job = start_when_it_answers(growing, [sys.executable, "-m", "jobs.encode", *words])
    most = 0
    while job.poll() is None:
        most = max(most, growing.num_machines())
        time.sleep(0.1)
    _, stderr = job.communicate()
    assert job.returncode == 0, stderr
    assert "waiting for the first" in stderr and most == MOST_MACHINES
    assert (tmp_path / "there" / "manifest.json").read_bytes() == (tmp_path / "here" / "manifest.json").read_bytes()


def start_when_it_answers(growing: Growing, command: list[str]) -> subprocess.Popen:
    deadline = time.monotonic() + PATIENCE_S
    while growing.num_machines() < 0:  # end the head's own raylet last
        assert growing.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=growing.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
