"""`ray-lir <verb> ...` and `python -m jobs <verb> ...`: runs the job of that name."""

import ast
import contextlib
import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ray_lir import __version__

VERBS = (
    "encode",
    "build_index",
    "update",
    "compact",
    "evaluate",
    "compare",
    "analyze",
    "tune",
    "mine",
    "train",
    "plot",
    "demo",
    "search",
    "ask",
    "inspect",
    "export",
    "plan",
    "load",
    "promote",
    "rollback",
    "serve",
    "mcp",
    "push",
)
SERVICE = f"{(__package__ or '').removesuffix('jobs')}serving"
"""The package that `serve` runs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a job like `python -m jobs.<verb> --field value ...`.

    Args:
        argv: The verb and its flags. None: the arguments of this process.
    """
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        return _print(usage())
    if verb in ("-V", "--version", "version"):
        return _print(f"ray-lir {__version__}")
    name = verb.replace("-", "_")
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(VERBS)}"
        print(f"error: unknown command {verb!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    try:
        from . import cli

        program = "python -m jobs" if sys.argv[0].endswith("__main__.py") else "ray-lir"
        cli.command = f"{program} {verb}"
        runpy.run_module(_module(name), run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # an interrupt while modules are loaded; cli.main handles later ones
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # as in `ray-lir --help | head`
        print(text, flush=True)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage() -> str:
    """Return the help text: one line for each command, from the docstring of its module."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary(verb)}" for verb in VERBS]
    more = "ray-lir COMMAND --help lists the fields of a command. ray-lir --version prints the version."
    return "\n".join(["usage: ray-lir COMMAND [--recipe FILE] [--field value ...]", "", *lines, "", more])


def _module(verb: str) -> str:
    return SERVICE if verb == "serve" else f"{__package__}.{verb}"


def summary(verb: str) -> str:
    """Return the first line of a command's docstring. It is read from the source, because importing every job takes seconds."""
    spec = find_spec(f"{SERVICE}.__main__" if verb == "serve" else _module(verb))
    source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
