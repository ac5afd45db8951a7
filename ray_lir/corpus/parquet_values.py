"""Arrow columns of any type as JSON values: no value of a column stops a job.

Numbers stay numbers, decimals too. A float32 becomes the number of its shortest decimal text, so that 0.1 equals 0.1. Dates and times
become ISO 8601 texts that sort by time (time zones are converted to UTC); durations become seconds. Text that is not UTF-8 keeps its bytes
as \\xNN. Bytes become {"base64": ...}. If fields have equal names, the second becomes name_2.
"""

import base64
import uuid
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names; a name that occurred before gets a number."""
    taken: set[str] = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        number, distinct = 2, name
        while distinct in seen or (distinct != name and distinct in taken):
            number, distinct = number + 1, f"{name}_{number}"
        seen.add(distinct)
        result.append(distinct)
    return result


def column_values(array: pa.Array, decode_errors: str = "backslashreplace") -> list[Any]:
    """Return the values of an Arrow array as JSON values.

    Args:
        array: An array of any type.
        decode_errors: How text that is not UTF-8 is decoded, as in `bytes.decode`.
    """

    def nested(child: pa.Array) -> list[Any]:
        return column_values(child, decode_errors)

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        values = array.storage.to_pylist() if kind.extension_name == "arrow.uuid" else None
        return _each(lambda value: str(uuid.UUID(bytes=value)), values) if values is not None else nested(array.storage)
    if pa.types.is_dictionary(kind):
        words = nested(array.dictionary)
        return _each(words.__getitem__, array.indices.to_pylist())
    if pa.types.is_run_end_encoded(kind):
        return nested(pc.run_end_decode(array))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _each(lambda raw: raw.decode("utf-8", decode_errors), array.cast(pa.large_binary()).to_pylist())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return _each(lambda raw: {"base64": base64.b64encode(raw).decode()}, array.to_pylist())
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        narrow = np.float16 if pa.types.is_float16(kind) else np.float32
        return _each(lambda value: float(str(narrow(value))), array.to_pylist())
    if pa.types.is_decimal(kind):
        return _each(_number, array.to_pylist())
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return _each(str, _times(array))
    if pa.types.is_duration(kind):
        ticks = TICKS_PER_SECOND[kind.unit]
        return _each(lambda value: value // ticks if value % ticks == 0 else value / ticks, array.view(pa.int64()).to_pylist())
    if pa.types.is_struct(kind):
        names = distinct_names([kind.field(number).name for number in range(kind.num_fields)])
        rows = zip(*(nested(child) for child in array.flatten()), strict=True) if names else ((),) * len(array)
        return [dict(zip(names, row, strict=True)) if there else None for row, there in zip(rows, _valid(array), strict=True)]
    if pa.types.is_map(kind):
        pairs = list(zip(nested(array.keys), nested(array.items), strict=True))
        return _lists(array, array.offsets[:-1], array.offsets[1:], pairs, _object)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(array, array.offsets[:-1], array.offsets[1:], nested(array.values))
    if pa.types.is_fixed_size_list(kind):
        starts = pa.array((np.arange(len(array)) + array.offset) * kind.list_size, pa.int64())
        return _lists(array, starts, pc.add(starts, kind.list_size), nested(array.values))
    if isinstance(kind, pa.ListViewType | pa.LargeListViewType):
        return _lists(array, array.offsets, pc.add(array.offsets, array.sizes), nested(array.values))
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_float64(kind):
        return array.to_pylist()
    return _each(str, array.to_pylist())


def _each(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [None if value is None else function(value) for value in values]


def _valid(array: pa.Array) -> list[bool]:
    return array.is_valid().to_pylist()


def _lists(array: pa.Array, starts: pa.Array, ends: pa.Array, values: list[Any], of: Callable[[list[Any]], Any] = list) -> list[Any]:
    spans = zip(_valid(array), starts.to_pylist(), ends.to_pylist(), strict=True)
    return [of(values[start:end]) if there else None for there, start, end in spans]


def _object(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a map as a JSON object, or as a list of pairs if its keys are not distinct texts."""
    result = {key: value for key, value in pairs if isinstance(key, str)}
    return result if len(result) == len(pairs) else [list(pair) for pair in pairs]


def _number(value: Decimal) -> int | float:
    """Return a decimal as a JSON number; an integer that is too long for a float64 stays exact."""
    if value == value.to_integral_value() and (int(value.as_tuple().exponent) >= 0 or Decimal(float(value)) != value):
        return int(value)
    return float(value)


def _times(array: pa.Array) -> list[str | None]:
    """Return dates, times and timestamps in ISO 8601; years may have more or fewer than four digits."""
    kind = array.type
    if pa.types.is_date32(kind):
        unit, ticks = "D", array.view(pa.int32())
    elif pa.types.is_date64(kind):
        unit, ticks = "ms", array.view(pa.int64())
    else:
        unit, ticks = kind.unit, array.view(pa.int32() if pa.types.is_time32(kind) else pa.int64())
    moments = ticks.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).view(f"datetime64[{unit}]")
    texts = np.datetime_as_string(moments.astype("datetime64[D]") if pa.types.is_date(kind) else moments).tolist()
    if pa.types.is_time(kind):
        texts = [text.partition("T")[2] for text in texts]
    zone = "+00:00" if pa.types.is_timestamp(kind) and kind.tz else ""
    texts = [(text.rstrip("0").rstrip(".") if "." in text else text) + zone for text in texts]
    return [text if there else None for text, there in zip(texts, _valid(array), strict=True)]
