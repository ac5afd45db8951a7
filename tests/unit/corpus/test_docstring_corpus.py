"""The docstring corpus: docstrings that become documents, their selection, and known-item queries."""

import sys
from pathlib import Path

import pytest

from ray_lir.corpus.docstring_corpus import collect, known_items, package_documents
from ray_lir.corpus.records import Document

SHOP = '''"""A shop for tests: this sentence is long enough to be a document of its own."""

class Basket:
    """Holds what a customer has chosen so far, in the order in which it was chosen."""

    def add(self, item, /, count=1, *, gift):
        """Puts an item into the basket; an item that is there already is counted once more."""

    def _sort(self):
        """Private, and therefore no document, although this docstring is as long as the others."""

async def pay(basket):
    """Short."""

def undocumented():
    return 1
'''


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a package on the import path; importing its modules would fail."""
    package = tmp_path / "toy_shop"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(SHOP + "\nraise ImportError('imported')\n")
    (package / "copy.py").write_text(
        '"""Another module, with a class documented word for word like the first one\'s class."""\n' + SHOP[SHOP.index("class") :]
    )
    (package / "broken.py").write_text("def nothing(:\n")
    (package / "tests" / "test_shop.py").write_text(
        '"""Tests of the shop are not its documentation, however long this docstring may be."""'
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "toy_shop"


def test_documents_are_public_docstrings_with_signature_and_place(shop):
    documents = {document.doc_id: document for document in package_documents(shop)}
    assert "toy_shop.Basket._sort" not in documents and "toy_shop.tests.test_shop" not in documents
    add = documents["toy_shop.Basket.add"]
    assert add.title == "toy_shop.Basket.add(item, count, gift)"
    assert add.text == "Puts an item into the basket; an item that is there already is counted once more."
    assert add.metadata == {"module": "toy_shop", "file": "toy_shop/__init__.py", "line": 6}
    assert documents["toy_shop"].metadata["line"] == 1
    assert documents["toy_shop.copy.pay"].metadata["file"] == "toy_shop/copy.py"


def test_collecting_docstrings_imports_nothing_and_skips_broken_files(shop):
    assert list(package_documents(shop))
    assert shop not in sys.modules
    assert list(package_documents("no_such_package_anywhere")) == []


def test_short_and_repeated_docstrings_are_left_out(shop):
    ids = [document.doc_id for document in collect(100, first=[shop], then=[])]
    assert ids == ["toy_shop", "toy_shop.Basket", "toy_shop.Basket.add", "toy_shop.copy"]


def test_a_smaller_demo_corpus_is_a_subset_of_a_larger_one(shop):
    small, large = ({document.doc_id for document in collect(n, first=["json", "csv"], then=[shop])} for n in (5, 15))
    assert len(small) == 5 and small < large
    both = [document.doc_id for document in collect(1000, first=["json", "csv"], then=[shop])]
    assert both[-4:] == ["toy_shop", "toy_shop.Basket", "toy_shop.Basket.add", "toy_shop.copy"]
    assert not any(doc_id.startswith(shop) for doc_id in small)


def test_a_known_item_query_is_not_in_its_document():
    long, short = "It is described at length. " * 10, "Too little."
    documents = [
        Document("a.f", "a.f(x)", f"Reads one line\nof a file.\n\n{long}", {}),
        Document("a.g", "a.g()", f"Writes one line of a file.\n\n{short}", {}),
        Document("b.f", "b.f(x)", f"Reads one line of a file.\n\n{long}", {}),
        Document("a.h", "a.h()", f"Too terse.\n\n{long}", {}),
    ]
    items, queries = known_items(documents, 10)
    assert len(items) == 1 and items[0].doc_id in ("a.f", "b.f")
    assert queries == {items[0].doc_id: "Reads one line of a file."}
    assert items[0].text == long and "line" not in items[0].title
