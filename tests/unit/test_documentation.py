"""The documents name files, commands and flags that exist."""

import posixpath
import re
import subprocess
import sys
from functools import cache

import pytest

from ray_lir.engines import ENGINES
from tests.support.repository import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "bench/README.md", "infra/README.md")
    for path in REPOSITORY.glob(pattern)
)
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
MADE_BY_USERS = {"scorer/", "dead_letters/", "bench/results/gpu.json"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    links = [
        posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    ]
    named = re.findall(r"`((?:ray_lir|serving|jobs|bench|infra|tests|docs)/[\w./-]+)`", text)
    missing = [path for path in links + named if path not in MADE_BY_USERS and not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_to_sections_exist(page: str) -> None:
    for target, section in re.findall(r"\]\(([^)#:\s]*\.md)?#([^)]+)\)", (REPOSITORY / page).read_text()):
        path = REPOSITORY / posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else REPOSITORY / page
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        assert section in slugs, f"{page}: {target}#{section}"


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile(page: str) -> None:
    for language, code in CODE.findall((REPOSITORY / page).read_text()):
        if language == "python":
            compile(code, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_a_page_runs_exist(page: str) -> None:
    modules = re.findall(r"(?:python -m |`)((?:bench|tests|jobs|serving)(?:\.[a-z]\w*)+)", (REPOSITORY / page).read_text())
    places = {module: REPOSITORY / module.replace(".", "/") for module in modules}
    assert [name for name, place in places.items() if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())] == []


@cache
def fields_of(verb: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", "jobs", verb, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"--[\w.]+", shown)) | {"--where"}  # --where is another spelling of --filters


@pytest.mark.parametrize("page", PAGES)
def test_the_command_line_has_the_documented_verbs_and_flags(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    code = "\n".join(code.replace("\\\n", " ") for language, code in CODE.findall(text) if language != "python")
    for verb, rest in re.findall(r"(?:ray-lir|python -m jobs[ .])[ ]*([a-z]\w+)([^\n#]*)", code):
        for flag in re.findall(r"(?<!\S)--[\w.-]+", rest):
            assert flag.replace("-", "_").replace("__", "--", 1) in fields_of(verb), f"{page}: ray-lir {verb} {flag}"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "docs/reference.md"])
def test_the_table_of_engines_is_that_of_the_registry(page: str) -> None:
    [table] = re.findall(r"^\| engine \| .*\n\|---\|---\|\n((?:\|.*\n)+)", (REPOSITORY / page).read_text(), re.M)
    assert table.splitlines() == [f"| `{name}` | {engine.description} |" for name, engine in ENGINES.items()]


def test_the_reference_lists_the_parameters_of_every_engine() -> None:
    section = (REPOSITORY / "docs" / "reference.md").read_text().partition("## Engine parameters\n")[2].partition("\n## ")[0]
    models = [engine.params for engine in ENGINES.values()]
    assert re.findall(r"^::: (.*)$", section, re.M) == [f"{model.__module__}.{model.__qualname__}" for model in models]


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150
