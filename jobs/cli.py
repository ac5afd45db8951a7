"""What every job does alike: flags and a recipe become a configuration, a result becomes the last line of JSON.

A recipe (--recipe FILE) is YAML with the job's fields; flags given beside it win.
"""

import difflib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
import yaml
from pydantic import AliasChoices, BaseModel, ValidationError

from ray_lir import logs
from ray_lir.config import Config
from ray_lir.errors import ConfigError, RayLirError
from ray_lir.formats import storage
from ray_lir.formats.storage import store_errors

Job = TypeVar("Job", bound=Config)


def main(config_type: type[Job], run: Callable[[Job], dict[str, Any]], argv: list[str] | None = None) -> None:
    """Runs a job from the command line: its result is the last line of standard output, as one JSON object.

    A mistake of the user, or a disk or object store that does not do its part, ends it with one line on standard error and
    exit code 2.
    """
    logs.configure()
    try:
        result = run(parse(config_type, sys.argv[1:] if argv is None else argv))
    except RayLirError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except store_errors() as error:
        why = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {why}; check the address, your rights and the space left", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print(json.dumps(result), flush=True)


def parse(config_type: type[Job], argv: list[str]) -> Job:
    """The configuration that `--field value` and `--field=value` flags, and a recipe, describe.

    Raises:
        ConfigError: if a field is unknown, missing or has a wrong value; the message is one line.
    """
    if "--help" in argv or "-h" in argv:
        note = "--recipe FILE reads any of these fields from a YAML file; flags win over it."
        tyro.cli(
            config_type,
            args=["--help"],
            description=f"{(config_type.__doc__ or '').strip()}\n\n{note}",
            config=(tyro.conf.FlagConversionOff,),
        )
    fields = dict(_fields(config_type))
    same = dict(_other_names(config_type))
    flags = dict(_flags(argv, {name for name, annotation in fields.items() if annotation is bool or bool in get_args(annotation)}))
    recipe = _read_recipe(flags.pop("recipe")) if "recipe" in flags else {}
    values: dict[str, Any] = {}
    for name, value in _flatten(recipe, {**fields, **same}):
        _put(values, _known(same.get(name, name), fields, ""), value)
    for name, text in flags.items():
        name = name.replace("-", "_")
        name = _known(same.get(name, name), fields, "--")
        _put(values, name, _value(text, fields[name]))
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _flags(argv: list[str], switches: set[str]) -> Iterator[tuple[str, str]]:
    """Names and values; a switch may stand alone, which means true."""
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"unexpected argument {word!r}; fields are given as --name value")
        if not equals:
            alone = not words or words[0].startswith("--")
            if alone and name.replace("-", "_") in switches:
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
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _reads_text(choices: Iterable[Any]) -> bool:
    """Whether one of the types has a syntax of its own (Filters): a class method `parse`."""
    return any(hasattr(choice, "parse") for choice in choices)


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(storage.local_path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
