"""The `--help` text of a job: usage, description, and every field with its type, default and description."""

import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ray_lir.base.config import optional_model, without_constraints

INDENT = 6
WIDEST = 100
COMMON = {
    "--recipe FILE": "Read fields from a YAML file. Flags override it.",
    "--json": "Print the result as one line of JSON. Piped and redirected output is always JSON.",
    "--help": "Show this text.",
}


def help_text(config_type: type[BaseModel], usage: str, common: dict[str, str] = COMMON) -> str:
    """Return the help text of a job, wrapped to the width of the terminal.

    Args:
        config_type: Configuration of the job.
        usage: The line after "usage:".
        common: Flags that are not fields, with their descriptions.
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    parts = [f"usage: {usage}", *(_wrapped(paragraph, width, 0) for paragraph in _paragraphs(inspect.cleandoc(config_type.__doc__ or "")))]
    for title, fields in _groups(config_type):
        parts.append("\n".join([f"{title}:", *(_entry(flag, text, width) for flag, text in fields)]))
    parts.append("\n".join(["every command:", *(_entry(flag, text, width) for flag, text in common.items())]))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def _groups(config_type: type[BaseModel], prefix: str = "", title: str = "fields") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The job's own fields, then the fields of each nested configuration with its description as the title."""
    own, nested = [], []
    for name, field in config_type.model_fields.items():
        is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        model: type[BaseModel] | None = field.annotation if is_group else optional_model(field.annotation)  # type: ignore[assignment]
        if model:
            summary = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]
            heading = f"{prefix}{name}" + (f" ({' '.join(summary.split()).rstrip('.')})" if summary else "")
            nested.append((model, f"{prefix}{name}.", heading))
        if not is_group:
            own.append((f"--{prefix}{name} {_kind(field.annotation)}".rstrip(), _description(config_type, name, field)))
    if own:
        yield title, own
    for each in nested:
        yield from _groups(*each)


def _description(config_type: type[BaseModel], name: str, field: FieldInfo) -> str:
    text = field.description or next((found for base in config_type.__mro__ if (found := _field_docstrings(base).get(name))), "")
    default = field.get_default(call_default_factory=True)
    note = "required" if field.is_required() else f"default: {'none' if default is None else _shown(default)}"
    return f"{text} ({note})".strip()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return "[" + ", ".join(map(str, default)) + "]" if isinstance(default, tuple | list) else str(default)


@cache
def _field_docstrings(kind: type) -> dict[str, str]:
    """The docstring below each field of a class, read from the source of its module."""
    module = sys.modules.get(kind.__module__)
    if not issubclass(kind, BaseModel) or module is None:
        return {}
    return _docstrings_of(module).get(kind.__name__, {})


@cache
def _docstrings_of(module: ModuleType) -> dict[str, dict[str, str]]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return {}
    return {node.name: dict(_documented(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(node.body, node.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def _kind(annotation: Any) -> str:
    """Return how the help text shows a flag's value: INT, NUMBER, TEXT, {a,b}, [true|false], [LIST] or YAML."""
    annotation = without_constraints(annotation)
    choices = [each for each in get_args(annotation) if each is not NoneType] if get_origin(annotation) in (Union, UnionType) else []
    if choices:
        return "|".join(dict.fromkeys(filter(None, map(_kind, choices))))
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    names = {bool: "[true|false]", int: "INT", float: "NUMBER", str: "TEXT"}
    return names.get(annotation, "[LIST]" if get_origin(annotation) in (tuple, list) else "YAML")


def _entry(flag: str, text: str, width: int) -> str:
    return f"  {flag}\n{_wrapped(text, width, INDENT)}"


def _wrapped(text: str, width: int, indent: int) -> str:
    margin = " " * indent
    wrapper = textwrap.TextWrapper(width, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(text.split()))
