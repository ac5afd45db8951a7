"""What every command shares: flags and a recipe become a configuration, the result is shown to people or printed as JSON.

A recipe (--recipe FILE) is YAML with the job's fields; flags beside it win.
"""

import difflib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError

from ray_lir.base import logs
from ray_lir.base.config import Config, parse_yaml
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.base.extras import EXTRAS, missing

Job = TypeVar("Job", bound=Config)
Result = dict[str, Any]

TRACEBACK = "RAY_LIR_TRACEBACK"
"""Environment variable: set, an unexpected error shows its traceback."""
INTERRUPTED, CLOSED_PIPE = 130, 141
TRUTHS = {"true", "false", "yes", "no", "on", "off", "1", "0", "none", "null"}
"""Words that are taken for the value of the switch before them."""

command: str | None = None
"""How the running command was called (`ray-lir encode`), if not as `python -m jobs.encode`."""


def main(
    config_type: type[Job],
    run: Callable[[Job], Result],
    argv: list[str] | None = None,
    show: Callable[[Result, Job], None] | None = None,
    positional: str | None = None,
) -> None:
    """Runs a job from the command line.

    On a terminal the result is shown for people. With --json, or when standard output is piped or redirected, it is the last line of
    standard output, as one JSON object. A user's mistake, or a disk or object store that fails, ends the job with one line on standard
    error and exit code 2; an error that nobody foresaw with exit code 1.

    Args:
        show: prints the result of a job for people. None: one line a field.
        positional: the field that an argument without a flag fills, such as the folder of `ray-lir inspect DIR`.
    """
    logs.configure()
    words = list(sys.argv[1:] if argv is None else argv)
    with ending_in_one_line():
        job, as_json = parse_command(config_type, words, positional)
        result = run(job)
        if as_json or not sys.stdout.isatty():
            print(json.dumps(result), flush=True)
        else:
            show(result, job) if show else show_fields(result)
            sys.stdout.flush()


class ending_in_one_line:
    """A context that ends the process with one line on standard error instead of a traceback, whatever its body raises."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if isinstance(error, KeyboardInterrupt):
            _end("interrupted; a job continues when the same command runs again", INTERRUPTED)
        if isinstance(error, BrokenPipeError):  # the reader of standard output, such as `head`, has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(CLOSED_PIPE)
        if not isinstance(error, Exception):
            return False
        if os.environ.get(TRACEBACK):
            return False
        from ray_lir.storage.files import store_errors  # fsspec takes a tenth of a second to load

        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RayLirError):
            _end(f"error: {error}", 2)
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            _end(f"error: {missing(error.name, 'this command')}", 2)
        if isinstance(error, store_errors()):
            _end(f"error: {why}; check the address, your rights and the space left", 2)
        _end(f"error: unexpected {type(error).__name__}: {why[:300]}; set {TRACEBACK}=1 to see where, and report it", 1)
        return False


def _end(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def show_fields(result: Result) -> None:
    """Prints a result for people, a line a field; lists take a line for each entry."""
    width = max(map(len, result), default=0)
    for name, value in result.items():
        for number, each in enumerate(value if isinstance(value, list) and value else [value]):
            print(f"{'' if number else name:<{width}}  {readable(each)}")


def readable(value: Any) -> str:
    """A value for people: thousands with commas, mappings as name=value."""
    if isinstance(value, dict):
        return "  ".join(f"{name}={readable(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parse(config_type: type[Job], argv: list[str], positional: str | None = None) -> Job:
    """The configuration that `--field value` and `--field=value` flags, and a recipe, describe.

    Raises:
        ConfigError: if a field is unknown, missing or has a wrong value; the message is one line.
    """
    return parse_command(config_type, argv, positional)[0]


def parse_command(config_type: type[Job], argv: list[str], positional: str | None = None) -> tuple[Job, bool]:
    """The same, and whether --json asks for JSON."""
    if "--help" in argv or "-h" in argv:
        from .help import help_text  # kept out of ordinary starts

        print(help_text(config_type, _usage(config_type, positional)), flush=True)
        sys.exit(0)
    fields = dict(_fields(config_type))
    same = dict(_other_names(config_type))
    switches = {name for name, annotation in fields.items() if annotation is bool or bool in get_args(annotation)} | {"json"}
    flags = dict(_flags(argv, switches, positional))
    recipe = _read_recipe(flags.pop("recipe")) if "recipe" in flags else {}
    as_json = _switch("json", flags.pop("json", "false"))
    values: dict[str, Any] = {}
    for name, value in _flatten(recipe, {**fields, **same}):
        _put(values, _known(same.get(name, name), fields, ""), value)
    for name, text in flags.items():
        name = name.replace("-", "_")
        name = _known(same.get(name, name), fields, "--")
        _put(values, name, _value(text, fields[name]))
    try:
        job = config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    _check_finite(job.model_dump())  # pydantic reads text such as 1e400 as infinity
    return job, as_json


def _usage(config_type: type[BaseModel], positional: str | None) -> str:
    required = [name for name, field in config_type.model_fields.items() if field.is_required()]
    words = [name.upper() if name == positional else f"--{name} {name.upper()}" for name in required]
    if positional and positional not in required:
        words.append(f"[{positional.upper()}]")
    return " ".join([command or _module_command(), *words, "[--field value ...]"])


def _module_command() -> str:
    """`python -m jobs.encode` for a module that runs as the main program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _check_finite(values: dict[str, Any], prefix: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{prefix}{name}: {value} is not a finite number")


def _switch(name: str, text: str) -> bool:
    value = _value(text, bool)
    if not isinstance(value, bool):
        raise ConfigError(f"--{name}: must be true or false, not {text!r}")
    return value


def _flags(argv: list[str], switches: set[str], positional: str | None = None) -> Iterator[tuple[str, str]]:
    """Names and values. A switch may stand alone, which means true; one word may stand without a flag, for the field `positional`."""
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if positional and (not word.startswith("--") or " " in name):
            name, value, positional = positional, word, None
        elif not word.startswith("--") or not name:
            raise ConfigError(f"unexpected argument {word!r}; fields are given as --name value")
        elif not equals:
            is_switch = name.replace("-", "_") in switches
            if is_switch and (not words or words[0].lower() not in TRUTHS):
                value = "true"
            elif words:
                value = words.popleft()
            else:
                raise ConfigError(f"--{name} needs a value")
        yield name, value


def _fields(config_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in config_type.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + (field.alias or name), field.annotation


def _other_names(config_type: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Other names of fields, each with the field's own name."""
    for name, field in config_type.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            yield from ((str(other), name) for other in field.validation_alias.choices if other != name)


def _known(name: str, fields: dict[str, Any], dashes: str) -> str:
    if name in fields:
        return name
    near = [field for field in fields if field.endswith("." + name)] or difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
    hint = f"did you mean {dashes}{near[0]}?" if near else f"the fields are {', '.join(fields)}"
    raise ConfigError(f"unknown field {dashes}{name}; {hint}")


def _value(text: str, annotation: Any) -> Any:
    """A flag's text as the type of its field: text stays text, everything else is read as YAML."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    if annotation is str or str in choices or (_reads_text(choices) and not text.lstrip().startswith("{")):
        return text
    try:
        return parse_yaml(text)
    except ValueError:  # also of a date that no calendar has
        return text


def _reads_text(choices: Iterable[Any]) -> bool:
    """Whether one of the types has a syntax of its own (Filters): a class method `parse`."""
    return any(hasattr(choice, "parse") for choice in choices)


def _read_recipe(path: str) -> dict[str, Any]:
    from ray_lir import storage

    try:
        recipe = parse_yaml(storage.local_path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}; check the path") from None
    except ValueError as error:
        raise ConfigError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"the recipe {path} must map fields to values, like `codec: {{nbits: 2}}`")
    return recipe


def _flatten(recipe: dict[str, Any], fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in recipe.items():
        if isinstance(value, dict) and prefix + name not in fields:
            yield from _flatten(value, fields, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[leaf] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"--{where} is required"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"--{where}: {message}, not {first['input']!r}" if where else message
