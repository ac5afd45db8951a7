"""A cluster that is too small for what is asked of it is told at once, with what it has and what to set."""

import time
from pathlib import Path

import pytest

from ray_lir.base.errors import ConfigError
from ray_lir.distributed.room import Demand, what_is_missing

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("demands", "problem"),
    [
        ([Demand("worker", {"CPU": 2, "GPU": 1})], None),
        ([Demand("worker", {"CPU": 3}, 2)], None),
        ([Demand("encoder", {"GPU": 2})], "each encoder needs 2 GPUs, but the Ray cluster has 1"),
        ([Demand("encoder", {"CPU": 5})], "each encoder needs 5 CPUs, but the Ray cluster has 6, and no machine more than 4"),
        ([Demand("encoder", {"GPU": 0.6}, 2)], "1.2 GPUs are needed (2 x encoder with 0.6), but the Ray cluster has 1"),
        ([Demand("encoder", {"CPU": 4}), Demand("group", {"CPU": 1}, 3)], "7 CPUs are needed"),
        ([Demand("encoder", {"CPU": 0})], None),
    ],
)
def test_what_is_missing_says_what_is_needed_and_what_there_is(demands, problem):
    found = what_is_missing(demands, NODES)
    assert (found is None) if problem is None else found.startswith(problem)


def test_no_machine_at_all_has_no_gpu():
    assert what_is_missing([Demand("encoder", {"GPU": 0.5})], []) == "each encoder needs 0.5 GPUs, but the Ray cluster has 0"


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [None, 2])
def test_an_encode_job_with_gpus_on_a_cluster_without_fails_within_seconds(ray_cluster, num_workers):
    from ray_lir.base.config import EncoderConfig
    from ray_lir.distributed.encode import Workers, make_pool

    start = time.monotonic()
    with pytest.raises(ConfigError, match="GPU"):
        make_pool(Workers(num_workers=num_workers, gpus_per_worker=1), EncoderConfig())
    assert time.monotonic() - start < 10


@pytest.mark.ray
def test_a_map_that_no_machine_can_run_fails_within_seconds(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    with pytest.raises(ConfigError, match="each task needs 1 GPUs, but the Ray cluster has 0"):
        list(ray_map(str, [1], num_gpus=1))


@pytest.mark.ray
@pytest.mark.parametrize("arguments", [{"encoder_gpus": "1"}, {"encoder_cpus": "1000"}, {"shard_cpus": "1000"}])
def test_a_service_that_no_machine_has_room_for_is_refused_before_it_starts(ray_cluster, tmp_path: Path, arguments):
    from serving.app import build

    with pytest.raises(ConfigError, match="but the Ray cluster has"):
        build({"index": str(tmp_path), **arguments})
