"""A small bench.faults.chaos: jobs killed at random points end with the bytes of an undisturbed run and repeat little work."""

import random
from pathlib import Path

import pytest

from bench.faults.chaos import disturb
from bench.faults.small_jobs import make_inputs, steps_repeated
from tests.support.clusters import NOTICED_SOON, machines

pytestmark = pytest.mark.clusters


def test_an_update_with_killed_driver_and_workers_ends_with_the_same_bytes(tmp_path: Path):
    make_inputs(tmp_path, 480, 10)
    with machines(2, **NOTICED_SOON) as cluster:
        report = disturb(cluster, tmp_path, "update", ["worker", "driver", "worker"], random.Random(7))
    assert [kind for kind, _ in report.kills] == ["worker", "driver", "worker"] and report.resumes == 1
    assert report.equal
    tombstones = 4  # every start writes one file for each shard
    assert report.repeated <= tombstones + 2  # and each killed worker may have written a chunk without reporting it


def test_repeated_training_steps_are_counted_from_progress_lines():
    log = "".join(f"12:00:00 train: step {step}/9 loss 1\n" for step in (1, 2, 3, 4, 3, 4, 5, 1, 2))
    assert steps_repeated(log) == 2 + 5
