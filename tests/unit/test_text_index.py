"""ray_lir.Index: text in, hits out."""

import doctest
import json
from pathlib import Path

import pytest

import ray_lir
from ray_lir import ConfigError, Hit, Hits, Index, text_index

EXAMPLES = [example for example in doctest.DocTestFinder(exclude_empty=True).find(text_index) if example.examples]

DOCUMENTS = [
    {"_id": "atp", "title": "Cells", "text": "The mitochondrion makes the energy of a cell.", "year": 2019},
    {"_id": "zinc", "text": "Zinc fingers bind to the genes of a cell & <more>.", "metadata": {"year": 2021, "tags": ["genes"]}},
    {"_id": "sea", "text": "The sea is deep and blue.", "year": 2024},
]


@pytest.fixture
def index(checkpoint: str, tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", DOCUMENTS, encoder=checkpoint)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Index:
    """With the default encoder, which has learned the meaning of words."""
    return Index.create(tmp_path_factory.mktemp("trained") / "index", DOCUMENTS)


def test_a_document_is_found_by_its_words_and_returned_with_its_fields(trained: Index):
    hits = trained.search("The sea is deep and blue.", k=2)
    assert len(hits) == 2 and hits[0].score >= hits[1].score
    assert (hits[0].doc_id, hits[0].text, hits[0].metadata) == ("sea", DOCUMENTS[2]["text"], {"year": 2024})
    words = {hits[0].text[match.start : match.end] for match in hits[0].matches if match.field == "text"}
    assert words & {"sea", "deep", "blue"}
    assert sum(match.contribution for match in hits[0].matches) == pytest.approx(hits[0].score, abs=2e-3)


def test_each_query_of_a_request_gets_its_own_answer(index: Index):
    one, two = index.search(["the sea", "genes"], k=1, matches=False)
    assert one[0] == index.search("the sea", k=1, matches=False)[0] and two[0].matches == ()


def test_an_index_uses_the_encoder_that_it_was_given(index: Index):
    assert Index(index.path, index.encoder).encoder is index.encoder
    assert Index(index.path).encoder is not index.encoder


def test_filters_are_texts_or_dicts(index: Index):
    assert {hit.doc_id for hit in index.search("a cell", where="year >= 2020")} == {"zinc", "sea"}
    assert {hit.doc_id for hit in index.search("a cell", where={"year": {"<": 2020}})} == {"atp"}


def test_an_index_object_sees_its_own_changes(index: Index):
    index.add(["Rivers run to the sea.", {"_id": "sea", "text": "The ocean is wide."}])
    assert len(index) == 4 and "3" in index
    assert index.get("sea")["text"] == "The ocean is wide."
    index.delete(["atp", "unknown"])
    assert len(index) == 3 and "atp" not in index and index.get("atp") is None
    index.compact()
    assert repr(index).endswith("3 documents, version 4)")
    assert {hit.doc_id for hit in index.search("the sea")} == {"zinc", "sea", "3"}
    assert {hit.doc_id for hit in Index.open(index.path).search("the sea")} == {"zinc", "sea", "3"}


def test_added_texts_get_unused_ids(index: Index):
    index.add([{"_id": "3", "text": "a third"}, {"_id": "5", "text": "a fifth"}])
    index.delete(["atp", "zinc"])
    index.compact()
    index.add(["one more", "and another"])
    texts = {hit.text for hit in index.search("text", k=10)}
    assert texts == {DOCUMENTS[2]["text"], "a third", "a fifth", "one more", "and another"} and len(index) == 5
    assert (index.get("3")["text"], index.get("5")["text"]) == ("a third", "a fifth")


def test_texts_are_numbered_and_generators_are_read(checkpoint: str, tmp_path: Path):
    index = Index.create(tmp_path / "index", (text for text in ["one text", "another text"]), encoder=checkpoint)
    assert [index.get(number)["text"] for number in ("0", "1")] == ["one text", "another text"]


def test_a_corpus_path_is_read(checkpoint: str, tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    index = Index.create(tmp_path / "index", tmp_path / "corpus.jsonl", encoder=checkpoint)
    assert len(index) == 3 and [index.get(row["_id"])["text"] for row in DOCUMENTS] == [row["text"] for row in DOCUMENTS]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([{"_id": "a", "text": "x"}, {"_id": "a", "text": "y"}], "document 1"),
        ([{"_id": "a", "title": "no text"}], "no text"),
        ([{"text": "x"}, {"text": None}], "document 1"),
        ([7], "document 0 is int"),
        ({"_id": "a", "text": "x"}, "put one into a list"),
        ([{"text": "x", "when": object()}], "document 0 holds a value"),
    ],
)
def test_an_invalid_document_is_named_and_nothing_is_written(documents, message, checkpoint: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        Index.create(tmp_path / "index", documents, encoder=checkpoint)
    assert not (tmp_path / "index").exists()


def test_explain_follows_a_document(index: Index):
    assert index.explain("The sea is deep and blue.", "sea").rank == 1
    assert index.explain("the sea", "atp", where="year > 2020").dropped_at == "filters"
    with pytest.raises(ConfigError, match="holds no document 'nothing'"):
        index.explain("the sea", "nothing")


def test_a_notebook_shows_hits_as_a_table(trained: Index):
    table = trained.search("Zinc fingers bind to the genes of a cell", k=1)._repr_html_()
    assert table.startswith("<table>") and "<mark>" in table and "&lt;more&gt;" in table


@pytest.mark.parametrize("name", ray_lir.__all__)
def test_public_names_have_their_own_docstrings(name: str):
    value = getattr(ray_lir, name)
    if isinstance(value, str):
        return  # __version__
    first_line = (value.__doc__ or "").strip().splitlines()[0]
    assert not first_line.startswith(f"{name}("), "a dataclass writes this docstring itself"
    assert len(first_line.split()) >= 3 and all(value.__doc__ != base.__doc__ for base in getattr(value, "__mro__", ())[1:])


def test_generated_ids_skip_existing_ids(index: Index):
    index.add([{"_id": str(number), "text": f"number {number}"} for number in (70, 90)])
    index.add([f"text {number}" for number in range(100)])
    assert len(index) == 105 and index.get("70")["text"] == "number 70" and index.get("90")["text"] == "number 90"


def test_an_id_already_given_to_a_text_without_id_is_refused(index: Index):
    with pytest.raises(ConfigError, match="document 1 has the id '3'"):
        index.add(["a text", {"_id": "3", "text": "another"}])
    index.add([{"_id": "3", "text": "another"}, "a text"])
    assert len(index) == 5 and index.get("3")["text"] == "another" and index.get("4")["text"] == "a text"


def test_hits_carry_the_best_passage_and_its_words(trained: Index):
    [hit] = trained.search("energy of a cell", k=1)
    assert hit.snippet.text == hit.text and "energy" in {hit.text[mark.start : mark.end] for mark in hit.highlights if mark.field == "text"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.partition(".")[2])
def test_the_examples_of_the_docstrings_run(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    example.globs.update(ray_lir=ray_lir)
    if not example.name.endswith(("Index", "create")):
        example.globs["index"] = Index.create("my-index", ["The mitochondrion makes ATP.", "Zinc fingers bind DNA."])
    shown: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=shown.append)
    assert shown == []


def test_a_hit_prints_in_short_form_and_hits_one_a_line():
    hits = Hits([Hit("a", 1.25, "Title", "word " * 40, {"year": 1}), Hit("b", 1.0, "", "text")])
    assert repr(hits) == f"[Hit('a', 1.250, 'Title', '{'word ' * 15}[...]', {{'year': 1}}),\n Hit('b', 1.000, 'text')]"
