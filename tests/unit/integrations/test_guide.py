"""The examples of docs/integrations.md run and print what the page shows."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs" / "integrations.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PACKAGES = {"MTEB": "mteb", "PyTerrier": "pyterrier", "DSPy": "dspy"}
"""Packages that sections need and that CI does not install."""
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the index that the page makes first."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "examples").symlink_to(REPOSITORY / "examples")
        exec(BLOCK.findall(PAGE.partition("\n## ")[0])[0][0], {})
    return folder


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_prints_its_transcript(section: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    if section in PACKAGES:
        pytest.importorskip(PACKAGES[section])
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for code, transcript in BLOCK.findall(SECTIONS[section]):
        shown = io.StringIO()
        with redirect_stdout(shown):
            exec(compile(code, f"{section}, docs/integrations.md", "exec"), names)
        assert shown.getvalue() == transcript
