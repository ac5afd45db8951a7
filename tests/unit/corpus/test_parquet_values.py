"""Arrow columns of every type as JSON values: none ends a job, numbers stay numbers, and times become ordered texts."""

import datetime
import json
import logging
import uuid
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lir.corpus.parquet_values import column_values, distinct_names
from ray_lir.corpus.records import Document, read_documents

NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")])


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array([Decimal("1.50"), None, Decimal("9000.00")]), [1.5, None, 9000.0]),
        (pa.array([Decimal("0.1")], pa.decimal256(60, 1)), [0.1]),
        (pa.array([Decimal(2**70)], pa.decimal128(38, 0)), [2**70]),
        (pa.array([Decimal(7)], pa.decimal128(20, 0)), [7]),
        (pa.array([0.1, None, 16777216.0], pa.float32()), [0.1, None, 16777216.0]),
        (pa.array([np.float16(0.1)], pa.float16()), [0.1]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([datetime.date(2024, 5, 31), None]), ["2024-05-31", None]),
        (pa.array([-1_000_000], pa.date32()), ["-768-02-04"]),
        (pa.array([86_400_000], pa.date64()), ["1970-01-02"]),
        (pa.array([0, 500_000, 1_000_000], pa.timestamp("us")), ["1970-01-01T00:00:00", "1970-01-01T00:00:00.5", "1970-01-01T00:00:01"]),
        (pa.array([0], pa.timestamp("s", "Europe/Berlin")), ["1970-01-01T00:00:00+00:00"]),
        (pa.array([0], pa.timestamp("us", "Mars/Base")), ["1970-01-01T00:00:00+00:00"]),
        (pa.array([10**18], pa.timestamp("us")), ["33658-09-27T01:46:40"]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001"]),
        (pa.array([3_600_000_000, None], pa.time64("us")), ["01:00:00", None]),
        (pa.array([61], pa.time32("s")), ["00:01:01"]),
        (pa.array([1500, 2000, None], pa.duration("ms")), [1.5, 2, None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (NOT_UTF8, ["\\xff", "a"]),
        (pa.ListArray.from_arrays([0, 1, 2], NOT_UTF8), [["\\xff"], ["a"]]),
        (pa.array([b"\x00", None]), [{"base64": "AA=="}, None]),
        (pa.array([b"ab"], pa.binary(2)), [{"base64": "YWI="}]),
        (pa.array([None, None]), [None, None]),
        (pa.array([[1], None, []], pa.list_(pa.int8())), [[1], None, []]),
        (pa.array([[1], None, [2, 3]], pa.large_list(pa.int8())).slice(1), [None, [2, 3]]),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)).slice(1), [None, [3, 4]]),
        (pa.array([[1], None, [2, 3]], pa.list_view(pa.int8())), [[1], None, [2, 3]]),
        (pa.array([{"d": datetime.date(1, 1, 1)}, None]), [{"d": "0001-01-01"}, None]),
        (pa.array([[{"p": Decimal("1.5")}]]), [[{"p": 1.5}]]),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([3])], ["x", "x"]), [{"x": 1, "x_2": 3}]),
        (pa.array([[("a", 1), ("b", 2)], None], pa.map_(pa.string(), pa.int8())), [{"a": 1, "b": 2}, None]),
        (pa.array([[(1, "a")]], pa.map_(pa.int8(), pa.string())), [[[1, "a"]]]),
        (pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8())), [[["a", 1], ["a", 2]]]),
        (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), [str(uuid.UUID(int=1))]),
    ],
    ids=lambda each: str(each.type)[:40] if isinstance(each, pa.Array) else "",
)
def test_a_column_of_any_type_becomes_json_values(array: pa.Array, values: list):
    found = column_values(array)
    assert found == values and [type(each) for each in found] == [type(each) for each in values]
    json.dumps(found)


def test_timestamps_in_text_compare_in_order_of_time():
    ticks = sorted([0, 1, 10, 100_000, 500_000, 999_999, 10**6, 59 * 10**6, 60 * 10**6, 86_399 * 10**6, 10**15])
    for zone in (None, "America/New_York"):
        texts = column_values(pa.array(ticks, pa.timestamp("us", zone)))
        assert texts == sorted(texts) and len(set(texts)) == len(ticks)


def test_columns_with_the_same_name_are_kept_under_distinct_names(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ray_lir"), "propagate", True)  # a job of another test may have changed this
    assert distinct_names(["n", "n", "n_2", "n", "m"]) == ["n", "n_3", "n_2", "n_4", "m"]
    columns = [pa.array(values) for values in (["a"], ["text"], ["b"], [1], [2])]
    pq.write_table(pa.Table.from_arrays(columns, ["_id", "text", "_id", "n", "n"]), tmp_path / "c.parquet")
    assert list(read_documents(str(tmp_path / "c.parquet"))) == [Document("a", "", "text", {"_id_2": "b", "n": 1, "n_2": 2})]
    assert "columns with equal names; all but the first are renamed to _id_2, n_2" in caplog.text
