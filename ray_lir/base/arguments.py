"""Checks and converts arguments of public callables: lists of texts, ids or document numbers, and whole numbers.

A string is never treated as a list of its characters, and an iterator is read once.
"""

import io
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.ids import BadId, check_id, id_text


def text_list(name: str, values: Iterable[str]) -> list[str]:
    """Return texts as a list, from a list, tuple, iterator, open text file, NumPy or Arrow array, or pandas Series of strings.

    Raises:
        ConfigError: `values` is a string, a set or a dict, or an element is not a string; the message names the position.
    """
    return _strings(name, _ordered(name, values))


def id_list(name: str, values: Iterable[str | int]) -> list[str]:
    """Return ids as a list, from the same types as `text_list`; a whole number becomes its decimal text.

    Ids must be valid Unicode. An open file is refused, because its lines end in line breaks.

    Raises:
        ConfigError: `values` is not a list of ids.
    """
    return _stored(name, _id_texts(name, _ordered(name, _not_a_file(name, values))))


def id_set(name: str, values: Iterable[str | int]) -> list[str]:
    """Return ids sorted, each once; like `id_list`, but sets are accepted too.

    Raises:
        ConfigError: `values` is not a collection of ids.
    """
    return sorted(set(_stored(name, _id_texts(name, _listed(name, _not_a_file(name, values))))))


def new_ids(name: str, values: Iterable[str | int]) -> list[str]:
    """Return ids of new documents as a list; like `id_list`, but each must pass `ids.check_id` and be unique.

    Raises:
        ConfigError: An id is not valid or is repeated; the message names the position.
    """
    places: dict[str, int] = {}
    for position, value in enumerate(id_list(name, values)):
        try:
            doc_id = check_id(value)
        except BadId as error:
            raise ConfigError(f"{_entry(name)} {position} {error}; give 1 to 1,024 characters without control characters") from None
        if doc_id in places:
            raise ConfigError(
                f"{_entry(name)} {position} is {value!r:.60}, as is {_entry(name)} {places[doc_id]}; give each document its own id"
            )
        places[doc_id] = position
    return list(places)


def aligned_texts(name: str, values: Iterable[str], count: int) -> list[str]:
    """Return texts as a list, one for each document.

    Args:
        name: Name of the argument, for error messages.
        values: Strings of valid Unicode.
        count: Number of documents.

    Raises:
        ConfigError: `values` is not a list of `count` such strings.
    """
    return same_length(name, _stored(name, text_list(name, values)), count)


def aligned_mappings(name: str, values: Iterable[Mapping[str, Any] | None], count: int) -> list[Mapping[str, Any]]:
    """Return mappings as a list, one for each document.

    Args:
        name: Name of the argument, for error messages.
        values: Mappings with string keys; None means an empty mapping.
        count: Number of documents.

    Raises:
        ConfigError: `values` is not a list of `count` such mappings.
    """
    found = same_length(name, list(_ordered(name, values, "dicts")), count)
    for position, value in enumerate(found):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name}[{position}] is {_shown(value)}, not a dict")
        strange = next((key for key in value or {} if not isinstance(key, str)), None)
        if strange is not None:
            raise ConfigError(f"{name}[{position}] has the key {_shown(strange)}; keys must be strings")
    return [value or {} for value in found]


def same_length(name: str, values: list[Any], count: int) -> list[Any]:
    """Return `values` if there is one for each document.

    Args:
        name: Name of the argument, for error messages.
        values: The values.
        count: Number of documents.

    Raises:
        ConfigError: There are more or fewer values.
    """
    if len(values) != count:
        raise ConfigError(f"{len(values)} {name} for {count} documents; give one each")
    return values


def number_list(name: str, values: Iterable[int], stop: int) -> np.ndarray:
    """Return document numbers as int64, in their order.

    Args:
        name: Name of the argument, for error messages.
        values: A list, tuple, range, iterator or array of whole numbers.
        stop: All numbers must be below this one.

    Raises:
        ConfigError: A value is not a whole number, or is out of range.
    """
    return _numbers(name, _ordered(name, values, "whole numbers"), stop)


def number_set(name: str, values: Iterable[int], stop: int) -> np.ndarray:
    """Return document numbers as int64, ascending, each once.

    Args:
        name: Name of the argument, for error messages.
        values: As for `number_list`; sets are accepted too.
        stop: All numbers must be below this one.

    Raises:
        ConfigError: A value is not a whole number, or is out of range.
    """
    return np.unique(_numbers(name, _listed(name, values, "whole numbers"), stop))


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number as an int.

    Args:
        name: Name of the argument, for error messages.
        value: A Python or NumPy integer.
        low: Smallest allowed value.
        high: Largest allowed value.

    Raises:
        ConfigError: `value` has another type (bool, float, string), or is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be a whole number between {low} and {high}, not {_shown(value)}") from None
    if not low <= number <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, not {number}")
    return number


def _listed(name: str, values: Any, elements: str = "strings") -> list[Any] | np.ndarray:
    """The values as a list; arrays of whole numbers stay arrays."""
    if isinstance(values, (str, bytes, bytearray, memoryview)):
        raise ConfigError(f"{name} must be a list of {elements}, not one {type(values).__name__}; put it in a list")
    if isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a list of {elements}, not a {type(values).__name__}; give a list of its keys or of its values")
    for convert in ("to_pylist", "to_list", "tolist"):  # Arrow, pandas and polars, NumPy and torch
        if hasattr(values, convert) and not isinstance(values, np.ndarray):
            values = getattr(values, convert)()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ConfigError(f"{name} must be a list of {elements}, not an array of shape {values.shape}")
        return values if values.dtype.kind in "iu" else values.tolist()
    try:
        return list(values)
    except TypeError:
        raise ConfigError(f"{name} must be a list of {elements}, not {_shown(values)}") from None


def _ordered(name: str, values: Any, elements: str = "strings") -> list[Any] | np.ndarray:
    if isinstance(values, (set, frozenset)):
        raise ConfigError(f"{name} must be a list of {elements}, not a {type(values).__name__}, which has no order; sort it into a list")
    return _listed(name, values, elements)


def _not_a_file(name: str, values: Any) -> Any:
    if isinstance(values, io.IOBase):
        raise ConfigError(f"{name} must be a list of strings, not an open file; give [line.strip() for line in file]")
    return values


def _strings(name: str, values: Iterable[Any]) -> list[str]:
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(f"{_entry(name)} {position} is {_shown(value)}, not a string; leave it out or convert it")
    return [value if type(value) is str else str(value) for value in values]


def _id_texts(name: str, values: Iterable[Any]) -> list[str]:
    texts = []
    for position, value in enumerate(values):
        try:
            texts.append(id_text(value))
        except BadId:
            raise ConfigError(
                f"{_entry(name)} {position} is {_shown(value)}, not a string or a whole number; leave it out or convert it"
            ) from None
    return texts


def _stored(name: str, values: list[str]) -> list[str]:
    """The strings. Raises ConfigError if one cannot be encoded as UTF-8."""
    for position, value in enumerate(values):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{_entry(name)} {position} holds half of a surrogate pair, which is not valid Unicode; correct it") from None
    return values


def _numbers(name: str, values: list[Any] | np.ndarray, stop: int) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        for position, value in enumerate(values):
            if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
                raise ConfigError(f"{_entry(name)} {position} is {_shown(value)}, not a whole number")
        values = np.array([operator.index(value) for value in values] or np.zeros(0, np.int64))
    if len(values) and not 0 <= values.min() <= values.max() < stop:
        wrong = int(values.min() if values.min() < 0 else values.max())
        raise ConfigError(f"{name} holds {wrong}; document numbers run from 0 to {stop - 1}")
    return values.astype(np.int64)


def _entry(name: str) -> str:
    """The name of one entry in error messages: "text" for texts, "query" for queries, "entry of delete" for delete."""
    if not name.endswith("s"):
        return f"entry of {name}"
    return f"{name[:-3]}y" if name.endswith("ies") else name[:-1]


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"
