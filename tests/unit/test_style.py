"""Code and documents keep the rules of CONTRIBUTING.md for language: `Args:` sections and plain phrases."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.support.repository import REPOSITORY

MODULES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("ray_lir", "jobs", "serving", "bench")
    for path in (REPOSITORY / folder).rglob("*.py")
)
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/*.md", "bench/README.md", "infra/README.md", "examples/*.md")
    for path in REPOSITORY.glob(pattern)
    if path.name != "CHANGELOG.md"
)
DOCUMENTED_FROM = 3
"""Parameters from which a public callable needs an `Args:` section."""
MOST_WORDS = 30
"""Words that a sentence may have: the rule is 25, and a few more are let pass."""
BANNED = re.compile(
    r"\b(of which|whose|so many|nobody(?:'s)?|those that|those who|takes nobody|as it likes|what is told|(?:is|are|the) told"
    r"|in turn|once and for all|but once|of its own accord|thereof|whereof|to be had|no more and no less|what is said)\b",
    re.IGNORECASE,
)


def sentences(text: str) -> Iterator[str]:
    text = re.sub(r"^ *(?:\||>>> ).*$|^ {4}\w+ +=.*$", "", text, flags=re.MULTILINE)  # tables, examples, grammars
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=[\w*`]+(?: \([^)]*\))?: |[*|] )", text):
        yield from re.split(r"(?<=[.;:!?]) ", re.sub(r"\s+", " ", paragraph))


def language_faults(text: str) -> Iterator[str]:
    for sentence in sentences(text):
        if found := BANNED.search(sentence):
            yield f"'{found.group(0)}' in: {sentence.strip()[:100]}"
        if len(sentence.split()) > MOST_WORDS:
            yield f"{len(sentence.split())} words: {sentence.strip()[:100]}"


def public_callables(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_callables(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def args_faults(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    names, text = parameters_of(function), ast.get_docstring(function) or ""
    if len(names) < DOCUMENTED_FROM or "overload" in map(ast.unparse, function.decorator_list):
        return
    if re.search(r"^Args: (?:as in `[\w.]+`|see the comments beside the parameters)", text, re.MULTILINE):
        return
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        yield f"{name} has {len(names)} parameters and no Args section"
        return
    entries = re.findall(r"^    (\S[^:]*):", section.group(1), re.MULTILINE)
    documented = {word.strip("*`") for entry in entries for word in re.split(r",\s*|\s+and\s+", re.sub(r"\s*\([^)]*\)", "", entry))}
    if missing := [each for each in names if each not in documented]:
        yield f"{name}: Args does not name {', '.join(missing)}"


def module_faults(source: str) -> Iterator[str]:
    """Return every fault of a module, each with its line."""
    tree = ast.parse(source)
    for name, function in public_callables(tree.body):
        for fault in args_faults(name, function):
            yield f"{function.lineno}: {fault}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            for fault in language_faults(text):
                yield f"{getattr(node, 'lineno', 1)}: {fault}"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            for fault in language_faults(token.string.lstrip("# ")):
                yield f"{token.start[0]}: {fault}"


def page_faults(text: str) -> Iterator[str]:
    """Return the banned phrases of a page, outside code and tables. Long sentences are not looked for."""
    text = re.sub(r"```.*?```", lambda code: "\n" * code.group(0).count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    for number, line in enumerate(text.splitlines(), 1):
        if found := BANNED.search(line):
            yield f"{number}: '{found.group(0)}' in: {line.strip()[:100]}"


def test_modules_document_their_parameters_in_plain_language() -> None:
    faults = [f"{path}:{fault}" for path in MODULES for fault in module_faults((REPOSITORY / path).read_text())]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def test_documentation_uses_plain_language() -> None:
    faults = [f"{path}:{fault}" for path in PAGES for fault in page_faults((REPOSITORY / path).read_text())]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('def f(a, b, c):\n    """Add."""\n', "1: f has 3 parameters and no Args section"),
        ('def f(a, b, c):\n    """Add.\n\n    Args:\n        a, c: Numbers.\n    """\n', "1: f: Args does not name b"),
        ('class C:\n    def m(self, a, *, b, c=1):\n        """Add."""\n', "2: C.m has 3 parameters and no Args section"),
        ("x = 1  # the query, of which nothing is left\n", "1: 'of which' in: the query, of which nothing is left"),
        ('"""Nobody waits."""\n', "1: 'Nobody' in: Nobody waits."),
        (f'"""{"word " * 31}"""\n', "1: 31 words: "),
    ],
)
def test_a_style_fault_is_reported(source: str, fault: str) -> None:
    [found] = module_faults(source)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    "source",
    [
        'def f(a, b, c):\n    """Add.\n\n    Args:\n        a: One, of any size.\n        b, c (int): Others.\n    """\n',
        'def _f(a, b, c):\n    """Private."""\n',
        'def f(a, b):\n    """Two parameters."""\n',
        'text = "nobody"\n',
        'def f(a, b, c):\n    """Add.\n\n    Args: as in `g`.\n    """\n',
        f'"""Files:\n\n| name | holds |\n|---|---|\n| a | {"word " * 31} |\n"""',
        f'"""Return x.\n\nExample:\n    >>> {"word " * 31}\n"""',
        "class C:\n    @overload\n    def m(self, a: int, b: int, c: int) -> int: ...\n",
    ],
)
def test_source_that_follows_the_rules_has_no_style_fault(source: str) -> None:
    assert list(module_faults(source)) == []
