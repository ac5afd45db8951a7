"""Checks of the arguments that public callables take: what counts as a list of texts, of ids or of numbers, and as a whole number.

A string is never taken for a list of its letters, and an iterator is read once.
"""

import io
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.ids import BadId, check_id, id_text


def text_list(name: str, values: Iterable[str]) -> list[str]:
    """The texts as a list: from a list, tuple, iterator, open text file, NumPy or Arrow array, or pandas Series of strings.

    Raises:
        ConfigError: if it is one string, a set or a dict, or an element is not a string; the message names the position.
    """
    return _strings(name, _ordered(name, values))


def id_list(name: str, values: Iterable[str | int]) -> list[str]:
    """The ids as a list, like `text_list`; a whole number stands for its decimal text.

    Ids must be valid Unicode, and a file is refused, since its lines end in line breaks.

    Raises:
        ConfigError: if it is not a list of such values.
    """
    return _stored(name, _id_texts(name, _ordered(name, _not_a_file(name, values))))


def id_set(name: str, values: Iterable[str | int]) -> list[str]:
    """Ids in an order without meaning, each once and sorted: as `id_list`, and sets are accepted.

    Raises:
        ConfigError: if it is not a collection of such values.
    """
    return sorted(set(_stored(name, _id_texts(name, _listed(name, _not_a_file(name, values))))))


def new_ids(name: str, values: Iterable[str | int]) -> list[str]:
    """The ids of documents that enter an index: as `id_list`, each by the rule of `ids.check_id` and once.

    Raises:
        ConfigError: if one breaks the rule or comes twice; the message names the position.
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
    """The texts as a list, one for each of `count` documents, each valid Unicode.

    Raises:
        ConfigError: if it is not a list of as many such strings.
    """
    return same_length(name, _stored(name, text_list(name, values)), count)


def aligned_mappings(name: str, values: Iterable[Mapping[str, Any] | None], count: int) -> list[Mapping[str, Any]]:
    """One mapping for each of `count` documents; None stands for an empty one.

    Raises:
        ConfigError: if it is not a list of as many mappings with strings as keys.
    """
    found = same_length(name, _ordered(name, values, "dicts"), count)
    for position, value in enumerate(found):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name}[{position}] is {_shown(value)}, not a dict")
        strange = next((key for key in value or {} if not isinstance(key, str)), None)
        if strange is not None:
            raise ConfigError(f"{name}[{position}] has the key {_shown(strange)}; keys must be strings")
    return [value or {} for value in found]


def same_length(name: str, values: list[Any], count: int) -> list[Any]:
    """Raises ConfigError unless there is one value for each of `count` documents."""
    if len(values) != count:
        raise ConfigError(f"{len(values)} {name} for {count} documents; give one each")
    return values


def number_list(name: str, values: Iterable[int], stop: int) -> np.ndarray:
    """Document numbers below `stop` as int64, in their order: from a list, tuple, range, iterator or array of whole numbers.

    Raises:
        ConfigError: if they are not whole numbers, or one is out of range.
    """
    return _numbers(name, _ordered(name, values, "whole numbers"), stop)


def number_set(name: str, values: Iterable[int], stop: int) -> np.ndarray:
    """Document numbers below `stop` as int64, ascending, each once; sets are accepted.

    Raises:
        ConfigError: if they are not whole numbers, or one is out of range.
    """
    return np.unique(_numbers(name, _listed(name, values, "whole numbers"), stop))


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`, NumPy's included.

    Raises:
        ConfigError: if it is another type (a bool, a float, a string) or out of range.
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


def _listed(name: str, values: Any, what: str = "strings") -> list[Any] | np.ndarray:
    """The values, read once; arrays of numbers stay arrays."""
    if isinstance(values, (str, bytes, bytearray, memoryview)):
        raise ConfigError(f"{name} must be a list of {what}, not one {type(values).__name__}; put it in a list")
    if isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a list of {what}, not a {type(values).__name__}; give a list of its keys or of its values")
    for convert in ("to_pylist", "to_list", "tolist"):  # Arrow, pandas and polars, NumPy and torch
        if hasattr(values, convert) and not isinstance(values, np.ndarray):
            values = getattr(values, convert)()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ConfigError(f"{name} must be a list of {what}, not an array of shape {values.shape}")
        return values if values.dtype.kind in "iu" else values.tolist()
    try:
        return list(values)
    except TypeError:
        raise ConfigError(f"{name} must be a list of {what}, not {_shown(values)}") from None


def _ordered(name: str, values: Any, what: str = "strings") -> list[Any] | np.ndarray:
    if isinstance(values, (set, frozenset)):
        raise ConfigError(f"{name} must be a list of {what}, not a {type(values).__name__}, which has no order; sort it into a list")
    return _listed(name, values, what)


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
            what = f"{_entry(name)} {position} is {_shown(value)}"
            raise ConfigError(f"{what}, not a string or a whole number; leave it out or convert it") from None
    return texts


def _stored(name: str, values: list[str]) -> list[str]:
    """Raises ConfigError unless the strings can be written as UTF-8."""
    for position, value in enumerate(values):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{_entry(name)} {position} holds half of a surrogate pair, which is no Unicode text; repair it") from None
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
    """How an error calls one entry of a list: "text" of texts, "query" of queries, "entry of delete"."""
    if not name.endswith("s"):
        return f"entry of {name}"
    return f"{name[:-3]}y" if name.endswith("ies") else name[:-1]


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"
