"""bench.models.training: the report of timed steps."""

import json
from pathlib import Path

from bench.models.training import keep, markdown


def test_the_training_rate_is_that_of_the_median_step_after_the_warm_up(tmp_path: Path):
    turns = [
        {"steps": [{"seconds": each, "cpu_seconds": each / 2} for each in seconds], "losses": [1, 1, 1], "peak_bytes": peak}
        for seconds, peak in (((100, 2, 4), 1), ((90, 3, 80), 2))  # from the end of the first step
    ]
    keep(tmp_path / "result.json", turns, batch=14)
    row = json.loads((tmp_path / "result.json").read_text())
    assert (row["steps"], row["examples_per_second"], row["examples_per_cpu_second"], row["peak_bytes"]) == (4, 4, 8, 2)


def test_efficiency_is_relative_to_one_worker_and_unmeasured_rows_are_left_out():
    machine = {"cpu": "one", "cores": 2}
    report = {"machine": machine, "batch": 16, "length": 96, "warm_up": 2}
    report |= {f"result-workers-{name}": {"examples_per_second": rate} for name, rate in (("1-16", 5.0), ("2-16", 8.0), ("2-32", 9.0))}
    text = markdown(report)
    assert "| 2 | 16 | 8.0 | 80% |" in text and "| 2 | 32 | 9.0 | 90% |" in text and "pylate" not in text and "Encoding" not in text
