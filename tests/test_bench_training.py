"""bench.training: what is told of the steps that were timed."""

import json
from pathlib import Path

from bench.training import keep, markdown


def test_a_rate_is_of_the_median_step_after_the_warm_up(tmp_path: Path):
    steps = [{"seconds": seconds, "cpu_seconds": seconds / 2} for seconds in (100, 2, 4, 3)]  # from the first step's end on
    keep(tmp_path / "result.json", {"steps": steps, "losses": [1, 1, 1, 1, 1], "peak_bytes": 1}, batch=12)
    row = json.loads((tmp_path / "result.json").read_text())
    assert (row["steps"], row["examples_per_second"], row["examples_per_cpu_second"]) == (3, 4, 8)


def test_efficiency_is_of_as_many_times_one_worker_and_what_is_not_measured_is_left_out():
    machine = {"cpu": "one", "cores": 2}
    report = {"machine": machine, "batch": 16, "length": 96, "warm_up": 2}
    report |= {f"result-workers-{number}": {"examples_per_second": rate} for number, rate in ((1, 5.0), (2, 9.0))}
    text = markdown(report)
    assert "| 2 | 9.0 | 90% |" in text and "pylate" not in text and "Encoding" not in text
