"""Training on a cluster with logical GPUs: each worker reserves its own, and a missing one is a one-line error."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY
from tests.support.training_jobs import flags, make_place

pytestmark = pytest.mark.ray

PROGRAM = """
import json, os, sys
import ray
from jobs import cli
from jobs.train import TrainJob, run
from ray_lir.distributed import train

def attempt(arguments):
    try:
        cli.main(TrainJob, run, arguments)
    except SystemExit as error:
        print("exit", error.code, file=sys.stderr)

@ray.remote(num_gpus=1, num_cpus=0)
class Holder:
    def ready(self):
        pass

ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
calls = json.load(sys.stdin)
attempt(calls["without_cuda"])
os.environ["RAY_LIR_LOGICAL_GPUS"] = "1"
attempt(calls["too_few"])
attempt(calls["two_workers"])
train.GPU_PATIENCE_S = 1.0
holder = Holder.remote()
ray.get(holder.ready.remote())
attempt(calls["one_is_held"])
"""


def test_workers_reserve_gpus_of_their_own_and_a_missing_one_is_one_line(tmp_path: Path):
    place = make_place(tmp_path)

    def call(output: str, **more: object) -> list[str]:
        settings = {"max_steps": 2, "gpus_per_worker": 1, "num_workers": 2, "checkpoint_every": 2} | more
        return flags(place, output, **settings)

    calls = {
        "without_cuda": call("refused"),
        "too_few": call("refused", num_workers=3, batch_size=15),
        "two_workers": call("trained"),
        "one_is_held": call("refused"),
    }
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_LIR_LOGICAL_GPUS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(calls),
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == done.stderr.count("exit 2") == 3, done.stderr
    assert re.search(r"Ray reserved GPU [01] of \S+ for training, but torch finds no CUDA device.*--gpus_per_worker 0$", errors[0])
    assert "--num_workers 3 need a GPU each, and the cluster has 2; use fewer workers, or --gpus_per_worker 0" in errors[1]
    assert "--num_workers 2 need a GPU each, and 1 of the cluster's 2 are free; wait for the jobs that hold them" in errors[2]
    assert not (place / "refused").exists()
    devices = dict(re.findall(r"worker (\d) has GPU (\d) of \S+ as a resource count and computes on the CPU", done.stderr))
    assert set(devices) == set(devices.values()) == {"0", "1"}
    assert json.loads((place / "trained" / "manifest.json").read_text())["num_steps"] == 2


@pytest.mark.clusters
@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda", 0)])
def test_contradictory_flags_are_refused(tmp_path: Path, device: str, gpus: int, ray_cluster: None):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", *flags(make_place(tmp_path), "out", **{"encoder.device": device, "gpus_per_worker": gpus})],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1].startswith(f"error: --gpus_per_worker {gpus} contradicts --encoder.device {device}")
