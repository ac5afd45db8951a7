"""Progress of a long step is reported from the first second on, even before the first result."""

import logging
import time

import pytest

from ray_lir.base import progress


def test_progress_lines_appear_before_the_first_result(caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_TO_FIRST_LINE", 0.1)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)

    def slow():
        time.sleep(0.5)
        yield 3
        time.sleep(0.5)
        yield 4

    with caplog.at_level(logging.INFO, "ray_lir"):
        assert list(progress.track(slow(), "encode", 7, lambda each: each)) == [3, 4]
        time.sleep(0.3)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("encode: 0 of 7 documents, waiting for the first result")
    assert any(line.startswith("encode: 3 of 7 documents") for line in lines)
    count = len(lines)
    time.sleep(0.3)
    assert len(caplog.records) == count  # the reporter ends with the step


def test_progress_lines_stop_after_an_error(caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_TO_FIRST_LINE", 0.1)

    def failing():
        yield 1
        raise ValueError

    with caplog.at_level(logging.INFO, "ray_lir"):
        with pytest.raises(ValueError):
            list(progress.track(failing(), "encode", None, lambda each: each))
        time.sleep(0.3)
    assert not caplog.records
