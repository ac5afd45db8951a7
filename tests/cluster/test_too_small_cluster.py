"""A cluster that is too small for a job is reported at once, with its resources and the setting to change."""

import time
from pathlib import Path

import pytest

from ray_lir.base.errors import ConfigError


@pytest.mark.parametrize("num_workers", [None, 2])
def test_an_encode_job_with_gpus_fails_within_seconds_on_a_cluster_without_gpus(ray_cluster, num_workers):
    from ray_lir.base.config import EncoderConfig
    from ray_lir.distributed.encode import Workers, make_pool

    start = time.monotonic()
    with pytest.raises(ConfigError, match="GPU"):
        make_pool(Workers(num_workers=num_workers, gpus_per_worker=1), EncoderConfig())
    assert time.monotonic() - start < 10


def test_a_ray_map_that_fits_no_machine_fails_within_seconds(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    with pytest.raises(ConfigError, match="each task needs 1 GPUs, but the Ray cluster has 0"):
        list(ray_map(str, [1], num_gpus=1))


@pytest.mark.parametrize("arguments", [{"encoder_gpus": "1"}, {"shard_gpus": "1"}, {"encoder_cpus": "1000"}, {"shard_cpus": "1000"}])
def test_a_service_that_fits_no_machine_is_refused_before_it_starts(ray_cluster, tmp_path: Path, arguments):
    from serving.app import build

    with pytest.raises(ConfigError, match="but the Ray cluster has"):
        build({"index": str(tmp_path), **arguments})
