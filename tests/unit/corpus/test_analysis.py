"""Lexical analysis: text becomes terms."""

import pytest

from ray_lir.corpus.analysis import MAX_TERM, Analyzer


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("os.path.join", ["os.path.join", "os", "path", "join"]),
        ("HTTP_404", ["http_404", "http", "404"]),
        ("B-1234", ["b-1234", "b", "1234"]),
        ("std::vector->size()", ["std::vector->size", "std", "vector", "size"]),
        ("__init__", ["__init__", "init"]),
        ("ZipFile, HTTPServer; mRNA DNAs", ["zipfile", "zip", "file", "httpserver", "http", "server", "mrna", "dnas"]),
        ("Python 3.14's", ["python", "3.14", "3", "14"]),
        ("The author's Ångström", ["the", "author", "ångström"]),
        ("ﬁle ＡＢＣ", ["file", "abc"]),
        ("東京タ", ["東", "京", "タ", "東京", "京タ"]),
        ("हिन्दी", ["हिन्दी"]),
        ("... ' _ --- ", []),
        ("", []),
    ],
)
def test_identifiers_have_their_whole_and_their_parts_as_terms(text: str, terms: list[str]):
    assert Analyzer(None).terms(text) == terms


def test_stemming_maps_words_but_not_whole_identifiers_to_stems():
    assert Analyzer("english").terms("Running runs os.files") == ["run", "run", "os.files", "os", "file"]
    assert Analyzer("german").terms("Häuser") == Analyzer("german").terms("hauses") == ["haus"]


def test_queries_find_documents_in_another_case_and_unicode_form():
    english = Analyzer("english")
    assert english.terms("CAFE\u0301") == english.terms("café")


def test_terms_of_hostile_text_are_bounded():
    long = "a" * 10_000
    assert Analyzer(None).terms(long) == ["a" * MAX_TERM]
    assert Analyzer(None).terms(".".join(["b"] * 5000)) == ["b"] * 5000
    assert all(len(term) <= MAX_TERM for term in Analyzer("english").terms("x_" * 100_000))
