"""Parsing filters from text (`year >= 2020, tags ~ news`) and short dicts ({"year": {">=": 2020}}) into the tree of filters.py.

Grammar:

    expression  = all {"or" all}
    all         = term {("and" | ",") term}
    term        = "not" term | "(" expression ")" | condition
    condition   = field sign value | field ["not"] "in" "[" value {"," value} "]" | field ["not"] "exists" | "exists" field

Signs are = == != < <= > >= ~ (contains) !~ ^= (starts with). A quoted value is text. An unquoted value that looks like a number or a truth
value is one, and = != ~ in then match the same characters as text too. It ends at a comma, "and", "or" or a closing parenthesis.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_CHARACTERS = 100_000
MAX_NESTING = 16
SIGNS = {"=": "eq", "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "~": "contains", "!~": "lacks", "^=": "prefix"}
NAMES = {**SIGNS, **{op: op for op in SIGNS.values()}, "gte": "ge", "lte": "le", "in": "in", "not in": "not in", "exists": "exists"}
"""Operators of short dicts."""
NEGATED = {"ne": "eq", "lacks": "contains", "not in": "in"}

_SPACE = re.compile(r"\s*")
_SIGN = re.compile(r"[=!<>]=|!~|\^=|[=<>~]")
_NAME = re.compile(r"[^\s=<>!~^,()\[\]\"']+")
_WORD = re.compile(r"[^\s,()]+")
_ITEM = re.compile(r"[^,\[\]()\"']+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)

Tree = dict[str, Any]


def parse(text: str) -> Tree:
    """Return the tree of a filter written as text.

    Raises:
        ValueError: The text is not a filter; the message is one line and names the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the filter has {len(text)} characters; at most {MAX_CHARACTERS} are possible")
    parser = _Parser(text)
    tree = parser.expression(0)
    if parser.rest():
        raise parser.error('"and", "or" or "," before the next condition')
    return tree


def from_mapping(conditions: Mapping[str, Any], nesting: int = 0) -> Tree:
    """Return the tree of a short dict, which requires all of its entries.

    An entry is a field with a value, with a list (any of its values) or with {sign: value, ...}. Or it is `and` or `or` with a list of
    short dicts, or `not` with one short dict.

    Raises:
        ValueError: An entry is none of these.
    """
    if nesting >= MAX_NESTING:
        raise ValueError(f"the filter is nested more than {MAX_NESTING} deep")
    parts: list[Tree] = []
    for field, value in conditions.items():
        if field in ("and", "or") and isinstance(value, (list, tuple)):
            parts.append(_group(field, [_nested(field, each, nesting) for each in value]))
        elif field == "not" and isinstance(value, Mapping):
            parts.append(_not(_nested(field, value, nesting)))
        elif isinstance(value, Mapping):
            parts += [_operated(field, sign, operand) for sign, operand in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts.append(_operated(field, "in", value))
        else:
            parts.append(_operated(field, "=", value))
    if not parts:
        raise ValueError("the filter has an empty dict where a condition belongs")
    return _group("and", parts)


def is_short(conditions: Mapping[Any, Any]) -> bool:
    """Return whether a dict is a short one: every entry is a field with a value, a list of values, or operators."""
    return bool(conditions) and all(
        isinstance(field, str) and value is not None and (not isinstance(value, (list, tuple, Mapping)) or len(value) > 0)
        for field, value in conditions.items()
    )


def _nested(name: str, value: Any, nesting: int) -> Tree:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} takes dicts of conditions, not {value!r:.40}")
    return dict(value) if isinstance(value.get("op"), str) else from_mapping(value, nesting + 1)


def _operated(field: str, sign: str, value: Any) -> Tree:
    op = NAMES.get(sign)
    if op is None:
        raise ValueError(f"the field {field!r} has the operator {sign!r:.40}; the operators are {', '.join(NAMES)}")
    if op == "exists":
        if not isinstance(value, bool):
            raise ValueError(f"exists takes true or false, not {value!r:.40}")
        exists = {"op": "exists", "field": field}
        return exists if value else _not(exists)
    if op in ("in", "not in"):
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ValueError(f"{sign} takes a list of values, not {value!r:.40}")
        value = list(value)
    return _condition(field, op, value)


def _condition(field: str | list[str], op: str, value: Any) -> Tree:
    if op in NEGATED:
        return _not(_condition(field, NEGATED[op], value))
    return {"op": op, "field": field, "values" if op == "in" else "value": value}


def _group(op: str, parts: list[Tree]) -> Tree:
    return parts[0] if len(parts) == 1 else {"op": op, "filters": parts}


def _not(tree: Tree) -> Tree:
    return {"op": "not", "filter": tree}


class _Parser:
    """Parses a text from left to right.

    Attributes:
        at: Position of the next character.
        last: The last value as written.
    """

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.last = ""

    def rest(self) -> str:
        """Skip white space, and return the next 40 characters."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 40]

    def error(self, expected: str) -> ValueError:
        found = self.rest().split("\n")[0]
        where = f"found {found!r} at character {self.at + 1}" if found else "the filter ends"
        return ValueError(f"expected {expected}, but {where}; write a filter such as: year >= 2020 and tags ~ news")

    def expression(self, nesting: int) -> Tree:
        if nesting > MAX_NESTING:
            raise ValueError(f"the filter is nested more than {MAX_NESTING} deep at character {self.at + 1}")
        parts = [self._all(nesting)]
        while self._keyword("or"):
            parts.append(self._all(nesting))
        return _group("or", parts)

    def _all(self, nesting: int) -> Tree:
        parts = [self._term(nesting)]
        while self._take(",") or self._keyword("and"):
            parts.append(self._term(nesting))
        return _group("and", parts)

    def _term(self, nesting: int) -> Tree:
        if self._is_keyword("not") and self._keyword("not"):
            if nesting > MAX_NESTING:
                raise ValueError(f"the filter is nested more than {MAX_NESTING} deep at character {self.at + 1}")
            return _not(self._term(nesting + 1))
        if self._take("("):
            tree = self.expression(nesting + 1)
            if not self._take(")"):
                raise self.error('")"')
            return tree
        return self._condition()

    def _condition(self) -> Tree:
        if self._is_keyword("exists"):
            self._keyword("exists")
            closing = self._take("(")
            tree = {"op": "exists", "field": self._field()}
            if closing and not self._take(")"):
                raise self.error('")"')
            return tree
        field = self._field()
        negated = self._keyword("not")
        if self._keyword("exists"):
            tree = {"op": "exists", "field": field}
        elif self._keyword("in"):
            tree = _condition(field, "in", self._list())
        else:
            sign = None if negated else _SIGN.match(self.text, self.at)
            if sign is None:
                raise self.error('"in" or "exists"' if negated else f"one of {' '.join(SIGNS)} in exists after the field")
            self.at = sign.end()
            tree = self._compared(field, SIGNS[sign[0]])
        return _not(tree) if negated else tree

    def _compared(self, field: str | list[str], op: str) -> Tree:
        values = self._value()
        if op in ("eq", "ne"):
            if values == [None]:
                exists = {"op": "exists", "field": field}
                return exists if op == "ne" else _not(exists)
            tree = _condition(field, "eq", values[0]) if len(values) == 1 else _condition(field, "in", values)
            return _not(tree) if op == "ne" else tree
        if op in ("contains", "lacks"):
            texts = [self.last] if values == [None] else values
            tree = _group("or", [_condition(field, "contains", value) for value in texts])
            return _not(tree) if op == "lacks" else tree
        text_only = op == "prefix" or isinstance(values[0], bool) or values[0] is None
        return _condition(field, op, self.last if text_only else values[0])

    def _field(self) -> str | list[str]:
        """Parse a path of names with dots between them; a quoted name is one key."""
        keys: list[str] = []
        self.rest()
        start = self.at
        while True:
            quoted = self._quoted()
            if quoted is not None:
                keys.append(quoted)
            else:
                words: list[str] = []
                while (word := _NAME.match(self.text, self.at)) and not (words and self._is_keyword("not", "in", "exists", "and", "or")):
                    words.append(word[0])
                    self.at = word.end()
                    self.rest()
                if not words:
                    raise self.error("the name of a field")
                keys += " ".join(words).strip(".").split(".")
            if not (quoted is not None and self._take(".")) and self.text[self.at - 1] != ".":
                break
        self.rest()
        if any(not key for key in keys):
            self.at = start
            raise self.error("the name of a field")
        return ".".join(keys) if all("." not in key for key in keys) else keys

    def _value(self) -> list[Any]:
        """Parse a value, and return its possible meanings: a number, a truth value or null, and text."""
        quoted = self._quoted()
        if quoted is not None:
            self.last = quoted
            return [quoted]
        self.rest()
        start = end = self.at
        nesting = 0
        while self.rest() and self.text[self.at] != "," and not (self.text[self.at] == ")" and not nesting):
            if self.text[self.at] in "()":
                nesting += 1 if self.text[self.at] == "(" else -1
                self.at += 1
            else:
                if end > start and self._is_keyword("and", "or"):
                    break
                word = _WORD.match(self.text, self.at)
                if end > start and re.search(r"[=<>~]", word[0]):  # type: ignore[index]
                    raise self.error('"and", "or" or "," before the next condition, or the value in quotes')
                self.at = word.end()  # type: ignore[union-attr]
            end = self.at
        if end == start:
            raise self.error("a value")
        return self._meanings(self.text[start:end])

    def _list(self) -> list[Any]:
        opening = self._take("[") or self._take("(")
        if not opening:
            raise self.error('"[" and a list of values')
        closing = {"[": "]", "(": ")"}[opening]
        values: list[Any] = []
        while not self._take(closing):
            if values and not self._take(","):
                raise self.error(f'"," or "{closing}"')
            quoted = self._quoted()
            item = None if quoted is not None else _ITEM.match(self.text, self.at)
            if quoted is not None:
                values.append(quoted)
            elif item and item[0].strip():
                self.at = item.end()
                values += [value for value in self._meanings(item[0].strip()) if value is not None]
            else:
                raise self.error("a value")
        return values

    def _meanings(self, written: str) -> list[Any]:
        self.last = written
        if _NUMBER.fullmatch(written):
            number = float(written) if re.search(r"[.eE]", written) else int(written[:400])
            if abs(number) < 2**63:
                return [number, written]
        if written in ("true", "false"):
            return [written == "true", written]
        return [None] if written == "null" else [written]

    def _quoted(self) -> str | None:
        self.rest()
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            if self.text[self.at : self.at + 1] in ('"', "'"):
                raise self.error(f"the closing {self.text[self.at]}")
            return None
        self.at = found.end()
        return re.sub(r"\\(.)", r"\1", found[1] if found[1] is not None else found[2], flags=re.DOTALL)

    def _take(self, character: str) -> str:
        """Read the character if it comes next, and return it; empty if it does not."""
        if not self.rest().startswith(character):
            return ""
        self.at += 1
        return character

    def _is_keyword(self, *words: str) -> bool:
        """Return whether one of the words comes next, and is neither the name of a field (a sign follows) nor part of a longer word."""
        self.rest()
        found = _NAME.match(self.text, self.at)
        if found is None or found[0].lower() not in words:
            return False
        return not _SIGN.match(self.text, _SPACE.match(self.text, found.end()).end())  # type: ignore[union-attr]

    def _keyword(self, word: str) -> bool:
        if not self._is_keyword(word):
            return False
        self.at += len(word)
        return True
