"""`ray-lir <verb> ...`, and `python -m jobs <verb> ...`: runs the job of that name."""

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

VERBS = (
    "encode",
    "build_index",
    "update",
    "compact",
    "evaluate",
    "tune",
    "mine",
    "train",
    "demo",
    "search",
    "ask",
    "inspect",
    "export",
    "plan",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `verb --field value ...` just as `python -m jobs.<verb> --field value ...` would."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print(usage())
        return
    name = verb.replace("-", "_")
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the jobs are {', '.join(VERBS)}"
        print(f"error: unknown job {verb!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """One line for each job: what its module says of itself."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary(verb)}" for verb in VERBS]
    return "\n".join(["usage: ray-lir JOB [--recipe FILE] [--field value ...]", "", *lines, "", "ray-lir JOB --help shows a job's fields."])


def summary(verb: str) -> str:
    """The first line of a job's docstring, read from its source: importing every job would take seconds."""
    spec = find_spec(f"{__package__}.{verb}")
    source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
