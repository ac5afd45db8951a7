"""Metadata of documents: a dict in Python, a JSON object in files."""

import datetime
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, FormatError


def to_json(metadata: Mapping[str, Any], name: str = "metadata") -> str:
    """Return the JSON object of a document's metadata.

    NumPy values and Decimals become numbers (a float32 by its shortest decimal text), dates and times become ISO 8601 texts, tuples and
    arrays become lists, NaN and infinity become null.

    Args:
        metadata: The metadata of one document.
        name: Name of the argument, for the message.

    Raises:
        ConfigError: A value has no counterpart in JSON.
    """
    try:
        text = json.dumps(to_json_value(metadata), ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} holds half of a surrogate pair, which is not valid Unicode; repair it") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {' '.join(str(error).split()):.160}; use numbers, texts, lists and dicts") from None
    return text


def from_json(text: str, doc_id: str) -> dict[str, Any]:
    """Return the metadata of a stored document.

    Args:
        text: The stored JSON object.
        doc_id: Id of the document, for the message.

    Raises:
        FormatError: The text is not a JSON object.
    """
    try:
        found = parse_json(text)
    except ValueError as error:
        raise FormatError(f"metadata of document {doc_id!r}", "a JSON object", f"{error!s:.120}", "build the index again") from None
    if not isinstance(found, dict):
        raise FormatError(f"metadata of document {doc_id!r}", "a JSON object", f"{text:.60}", "build the index again")
    return found


def to_json_value(value: Any) -> Any:
    """Return a value as JSON represents it.

    Raises:
        TypeError: The value has no counterpart in JSON.
    """
    if isinstance(value, (np.float16, np.float32)):
        return to_json_value(float(str(value)))  # 0.1 as float32 is 0.1, not 0.10000000149
    if isinstance(value, np.generic):
        return to_json_value(value.item())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return (int(value) if value == value.to_integral_value() else float(value)) if value.is_finite() else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: to_json_value(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return [to_json_value(each) for each in value]
    if isinstance(value, (list, tuple)):
        return [to_json_value(each) for each in value]
    raise TypeError(f"{type(value).__name__} {value!r:.40} has no counterpart in JSON")
