"""Every example without Ray runs and prints the expected output; tests/cluster has the others."""

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import ray_lir
from tests.support.repository import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def test_the_readme_lists_every_example():
    examples = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text())) == examples


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("five_line_search.py", ["60 documents", "Mitochondrion: The mitochondrion burns sugar"]),
        (
            "filters_and_updates.py",
            [
                "all documents: Black holes (physics, 1916)",
                "version 2: 2 added, 1 of them in place of another",
                "Lighthouse (geography, 1852)",
                "59 documents are left.",
            ],
        ),
        ("long_documents.py", ["3 documents of up to 2092 characters", "Found in biology", "The mitochondrion burns sugar"]),
        ("own_embeddings.py", ["60 documents, 1063 vectors of 96 dimensions", "Most earthquakes and volcanoes"]),
    ],
)
def test_a_library_example_prints_what_it_found(script: str, lines: list[str], capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    shown = capsys.readouterr().out
    assert [line for line in lines if line not in shown] == [], shown


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ("README.md", {"my-index": "The mitochondrion makes ATP.", "notes-index": "The spare key hangs behind the door."}),
        ("docs/index-your-documents.md", {"products-index": "Boils water."}),
    ],
)
def test_python_examples_of_the_documentation_run(document: str, found: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    Path("notes/house.md").write_text("# House\n\nThe spare key hangs behind the door.", encoding="utf-8-sig")
    Path("products.csv").write_text("sku,name,description\nk1,Kettle,Boils water.\n", encoding="utf-8-sig")
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / document).read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in (block for block in blocks if "Index.create" in block or "ray_lir" not in block):
        exec(block, names)
    for index, text in found.items():
        assert ray_lir.Index.open(index).search("where does energy come from? the key, boil", k=1)[0].text == text


def test_the_guide_to_hybrid_search_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/hybrid-search.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("b-1234 ") and "('terms', 'vectors')" in first and not second.startswith("b-1234")
    assert names["hits"][0].doc_id == "zip" and names["hits"][0].sides.bm25 > 0
    assert [hit.doc_id for hit in names["index"].search("os.path.join", k=1, engine="bm25")] == ["join"]
    assert names["index"].explain("B-1234", "b-1234", engine="hybrid").stages[-1].name == "fuse"


def test_the_notebook_shows_the_hits_as_a_table_with_marked_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    monkeypatch.chdir(EXAMPLES)
    names: dict[str, object] = {"__name__": "__main__"}
    tables = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        shown = run_cell("".join(cell["source"]), names)
        if hasattr(shown, "_repr_html_"):
            tables.append(shown._repr_html_())
            [stored] = cell["outputs"]
            assert re.sub(r"[\d.]+", "", "".join(stored["data"]["text/html"])) == re.sub(r"[\d.]+", "", tables[-1])
    assert len(tables) == 2
    assert "<mark>energy</mark>" in tables[0] and "<mark>.</mark>" not in tables[0] and "<table>" in tables[0]


def run_cell(source: str, names: dict[str, object]) -> object:
    """Run a cell like Jupyter, which shows its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
