"""The command line of every job: turns flags and a recipe into a configuration, and prints the result as text or JSON.

A recipe (--recipe FILE) is a YAML file with the job's fields. Flags override it. In a recipe, `extends: FILE` names another recipe in the
same folder; the recipe's own fields override those of the other one.
"""

import difflib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError

from ray_lir.base import logs
from ray_lir.base.config import Config, optional_model, parse_yaml, without_constraints
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.base.extras import EXTRAS, missing_message

Job = TypeVar("Job", bound=Config)
Result = dict[str, Any]

TRACEBACK = "RAY_LIR_TRACEBACK"
"""Environment variable: if it is set, an unexpected error shows its traceback."""
DEEPEST_RECIPE = 8
"""Recipes that a recipe can extend, one after another."""
INTERRUPTED, CLOSED_PIPE = 130, 141
"""Exit codes."""
TRUTHS = {"true", "false", "yes", "no", "on", "off", "1", "0", "none", "null"}
"""Words that can be the value of the boolean flag before them."""

command: str | None = None
"""The running command, such as `ray-lir encode`. None: it runs as `python -m jobs.<verb>`."""


def main(
    config_type: type[Job],
    run: Callable[[Job], Result],
    argv: list[str] | None = None,
    show: Callable[[Result, Job], None] | None = None,
    positional: str | Sequence[str] = (),
) -> Result:
    """Run a job from the command line, and return its result.

    On a terminal the result is printed as text. With --json, or if standard output is piped or redirected, the result is one JSON
    object on the last line of standard output. A user's mistake and a failing disk or object store end the job with one line on
    standard error and exit code 2. An unexpected error ends it with exit code 1.

    Args:
        config_type: Configuration of the job.
        run: Runs the job and returns its result.
        argv: Flags. None: the arguments of this process.
        show: Prints the result as text. None: one line a field.
        positional: Fields for arguments without a flag, in order, such as the folder of `ray-lir inspect DIR`.
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
    return result


class ending_in_one_line:
    """Context manager: an error in its body ends the process with one line on standard error instead of a traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            _end("interrupted; run the same command again to continue", INTERRUPTED)
        if isinstance(error, BrokenPipeError):  # the program that reads standard output, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(CLOSED_PIPE)
        if not isinstance(error, Exception) or os.environ.get(TRACEBACK):
            return
        from ray_lir.storage.files import store_errors  # loading fsspec takes a tenth of a second

        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RayLirError):
            _end(f"error: {error}", 2)
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            _end(f"error: {missing_message(error.name, 'this command')}", 2)
        if isinstance(error, store_errors()):
            _end(f"error: {why}; check the address, your permissions and the free space", 2)
        _end(f"error: unexpected {type(error).__name__}: {why[:300]}; set {TRACEBACK}=1 to see the traceback, and report it", 1)


def _end(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def show_fields(result: Result) -> None:
    """Print a result as text: one line for each field, and one for each entry of a list."""
    width = max(map(len, result), default=0)
    for name, value in result.items():
        for number, each in enumerate(value if isinstance(value, list) and value else [value]):
            print(f"{'' if number else name:<{width}}  {readable(each)}")


def readable(value: Any) -> str:
    """Return a value as text: commas between thousands, mappings as name=value."""
    if isinstance(value, dict):
        return "  ".join(f"{name}={readable(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parse(config_type: type[Job], argv: list[str], positional: str | Sequence[str] = ()) -> Job:
    """Return the configuration from flags (`--field value` or `--field=value`) and a recipe.

    Args:
        config_type: Configuration of the job.
        argv: Flags.
        positional: Fields for arguments without a flag, in order.

    Raises:
        ConfigError: A field is unknown, missing or has a wrong value.
    """
    return parse_command(config_type, argv, positional)[0]


def parse_command(config_type: type[Job], argv: list[str], positional: str | Sequence[str] = ()) -> tuple[Job, bool]:
    """Return the configuration, and whether --json is set. Prints the help text and exits if --help is.

    Args:
        config_type: Configuration of the job.
        argv: Flags.
        positional: Fields for arguments without a flag, in order.

    Raises:
        ConfigError: A field is unknown, missing or has a wrong value.
    """
    positional = (positional,) if isinstance(positional, str) else positional
    if "--help" in argv or "-h" in argv:
        from .help import help_text  # only loaded for --help

        print(help_text(config_type, _usage(config_type, positional)), flush=True)
        sys.exit(0)
    fields = dict(_fields(config_type))
    aliases = dict(_aliases(config_type))
    booleans = {name for name, annotation in fields.items() if annotation is bool or bool in get_args(annotation)} | {"json"}
    switches = {name for name, annotation in fields.items() if optional_model(annotation)}
    flags = dict(_flags(argv, booleans, positional, switches))
    recipes = _read_recipes(flags.pop("recipe")) if "recipe" in flags else []
    as_json = _boolean("json", flags.pop("json", "false"))
    values: dict[str, Any] = {}
    for recipe in recipes:
        for name, value in _flatten(recipe, {**fields, **aliases}):
            _put(values, _known(aliases.get(name, name), fields, ""), value)
    for name, text in flags.items():
        name = name.replace("-", "_")
        name = _known(aliases.get(name, name), fields, "--")
        _put(values, name, _value(text, fields[name]))
    try:
        job = config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    _check_finite(job.model_dump())  # pydantic parses text such as 1e400 as infinity
    return job, as_json


def _usage(config_type: type[BaseModel], positional: Sequence[str]) -> str:
    required = [name for name, field in config_type.model_fields.items() if field.is_required()]
    words = [name.upper() if name in positional else f"--{name} {name.upper()}" for name in required]
    words += [f"[{name.upper()}]" for name in positional if name not in required]
    return " ".join([command or _module_command(), *words, "[--field value ...]"])


def _module_command() -> str:
    """Return the command that started this process, such as `python -m jobs.encode`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _check_finite(values: dict[str, Any], prefix: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{prefix}{name}: {value} is not a finite number")


def _boolean(name: str, text: str) -> bool:
    value = _value(text, bool)
    if not isinstance(value, bool):
        raise ConfigError(f"--{name}: must be true or false, not {text!r}")
    return value


def _flags(
    argv: list[str], booleans: set[str], positional: str | Sequence[str] = (), switches: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Names and values. A boolean flag without a value is true, and so is a switch (a group of fields that is off by default) before
    another flag. Words without a flag are the values of the positional fields, in order."""
    words, unnamed = deque(argv), deque(positional)
    while words:
        word = words.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if unnamed and (not word.startswith("--") or " " in name):
            name, value = unnamed.popleft(), word
        elif not word.startswith("--") or not name:
            raise ConfigError(f"unexpected argument {word!r}; write fields as --name value")
        elif not equals:
            is_boolean = name.replace("-", "_") in booleans
            is_switch = name.replace("-", "_") in switches
            if (is_boolean and (not words or words[0].lower() not in TRUTHS)) or (is_switch and (not words or words[0].startswith("--"))):
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
            if model := optional_model(field.annotation):
                yield from _fields(model, f"{prefix}{name}.")


def _aliases(config_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Aliases of fields, each with the field's own name."""
    for name, field in config_type.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _aliases(field.annotation, f"{prefix}{name}.")
        elif isinstance(field.validation_alias, AliasChoices):
            yield from ((f"{prefix}{other}", prefix + name) for other in field.validation_alias.choices if other != name)


def _known(name: str, fields: dict[str, Any], dashes: str) -> str:
    if name in fields:
        return name
    near = [field for field in fields if field.endswith("." + name)] or difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
    hint = f"did you mean {dashes}{near[0]}?" if near else f"the fields are {', '.join(fields)}"
    raise ConfigError(f"unknown field {dashes}{name}; {hint}")


def _value(text: str, annotation: Any) -> Any:
    """The value of a flag. Text stays text; other types are parsed as YAML."""
    choices = tuple(map(without_constraints, get_args(annotation))) if get_origin(annotation) in (Union, UnionType) else ()
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    if annotation is str or str in choices or (_reads_text(choices) and not text.lstrip().startswith("{")):
        return text
    try:
        return parse_yaml(text)
    except ValueError:  # also raised for an impossible date
        return text


def _reads_text(choices: Iterable[Any]) -> bool:
    """Whether one of the types parses text itself, like Filters: it has a class method `parse`."""
    return any(hasattr(choice, "parse") for choice in choices)


def _read_recipes(path: str) -> list[dict[str, Any]]:
    """Return a recipe and the recipes that it extends, the extended ones first."""
    recipes: list[dict[str, Any]] = []
    while True:
        recipe = _read_recipe(path)
        base = recipe.pop("extends", None)
        recipes.insert(0, recipe)
        if base is None:
            return recipes
        if not isinstance(base, str) or len(recipes) > DEEPEST_RECIPE:
            raise ConfigError(f"the recipe {path} extends {base!r}; name one recipe that does not extend this one")
        path = os.path.join(os.path.dirname(path), base)


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
        if not isinstance(values, dict):
            raise ConfigError(f"--{'.'.join(parents)} and --{name} are both set; write one value, such as {{length: 256, stride: 224}}")
    values[leaf] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"--{where} is required"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"--{where}: {message}, not {first['input']!r}" if where else message
