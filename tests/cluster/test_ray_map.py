"""ray_map is `map` on a cluster: order, bytes, errors, back-pressure and killed workers."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.errors import FormatError


def test_results_come_in_order_and_byte_identical_to_map(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    def products(seed: int) -> tuple[int, bytes]:
        rows = np.random.default_rng(seed).standard_normal((50, 20)).astype(np.float32)
        return seed, (rows.T @ rows).tobytes()

    assert list(ray_map(products, range(23))) == list(map(products, range(23)))


def test_a_function_that_closes_over_arrays_is_mapped(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    table = np.arange(300_000, dtype=np.float32)
    assert list(ray_map(lambda number: float(table[number]), [5, 299_999])) == [5.0, 299_999.0]


def test_a_ray_lir_error_keeps_its_type_across_ray(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    def fail(number: int) -> int:
        if number == 2:
            raise FormatError("part-2", "Parquet", "nonsense", "encode anew")
        return number

    results = ray_map(fail, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(FormatError) as caught:
        next(results)
    assert type(caught.value) is FormatError
    assert str(caught.value) == "part-2: expected Parquet, found nonsense; encode anew"


def test_ray_map_takes_only_as_many_items_as_are_in_flight(ray_cluster):
    from ray_lir.distributed.ray_map import ray_map

    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ray_map(str, items(), in_flight=3)
    assert next(results) == "0"
    assert len(taken) == 3
    results.close()
    assert len(taken) == 3


def test_a_call_of_a_killed_worker_runs_again(ray_cluster, tmp_path: Path):
    from ray_lir.distributed.ray_map import ray_map

    def die_once(number: int) -> int:
        mark = tmp_path / str(number)
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    assert list(ray_map(die_once, range(4))) == [0, 1, 4, 9]
    assert (tmp_path / "1").exists()


def test_a_store_error_in_another_process_ends_a_job_with_its_message_in_one_line(ray_cluster, capsys):
    """botocore's exceptions hold values that cannot be pickled."""
    from threading import Lock

    from botocore.exceptions import EndpointConnectionError

    from jobs import cli
    from ray_lir.base.config import Config
    from ray_lir.distributed.ray_map import ray_map

    def write(_: int) -> None:
        raise EndpointConnectionError(endpoint_url="http://store", error=Lock())

    with pytest.raises(OSError, match='EndpointConnectionError: Could not connect to the endpoint URL: "http://store"'):
        list(ray_map(write, range(2)))
    with pytest.raises(SystemExit, match="2"):
        cli.main(Config, lambda job: {"written": list(ray_map(write, range(2)))}, [])
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("error: EndpointConnectionError: ") and error.endswith("check the address, your permissions and the free space")
