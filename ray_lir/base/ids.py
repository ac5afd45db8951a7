"""Document and query ids: the rule for new ids, and the conversion of numbers to text.

An id is 1 to 1,024 characters of Unicode text without control characters (U+0000 to U+001F, U+007F). Everything else is allowed:
slashes, dots, spaces, line separators such as U+2028. Ids are compared exactly and never trimmed. A whole number becomes its decimal
text. `check_id` is for new ids. Lookups (delete, find, explain) accept any text, because older indexes may hold other ids.
"""

import re
from numbers import Integral
from typing import Any

MAX_ID_CHARACTERS = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class BadId(ValueError):
    """A value is not a valid id. The message follows the name of a field: "_id" + "is empty"."""


def id_text(value: Any) -> str:
    """Return a text as it is and a whole number as its decimal text.

    Raises:
        BadId: The value is neither.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    raise BadId(f"is {_kind(value)}, not a string or a whole number")


def check_lookup_id(value: Any) -> str:
    """Check an id by which a document is looked up, and return it as text. The rules for new ids do not apply.

    Raises:
        BadId: The value is neither text nor a whole number, is empty, or is not valid Unicode. No document has such an id.
    """
    text = id_text(value)
    if not text:
        raise BadId("is empty")
    if _SURROGATE.search(text):
        raise BadId(f"holds half of a surrogate pair, which is not valid Unicode ({ascii(text[:40])})")
    return text


def check_id(value: Any) -> str:
    """Return the id of a new document or query.

    Raises:
        BadId: The value does not follow the rule of this module.
    """
    text = check_lookup_id(value)
    if len(text) > MAX_ID_CHARACTERS:
        raise BadId(f"has {len(text):,} characters, more than {MAX_ID_CHARACTERS:,} ({text[:40]!r}...)")
    if found := _CONTROL.search(text):
        raise BadId(f"holds the control character U+{ord(found[0]):04X} ({text[:40]!r})")
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = ((bool, "a truth value"), (float, "a number with a fraction"), (dict, "an object"), (list, "a list"))
    name = next((name for kind, name in names if isinstance(value, kind)), f"of type {type(value).__name__}")
    return f"{name} ({value!r:.40})"
