"""Highlights and snippets of found documents."""

import pytest
from fastapi.testclient import TestClient

from jobs.hits import show_hits
from ray_lir.api.search import Highlight, Match, QueryToken
from ray_lir.search.highlights import FUNCTION_WORD_WEIGHT, SNIPPET_LENGTH, highlights, snippet
from serving.http.routes import routes
from tests.support.local_service import local_service
from tests.support.served_index import QUERIES, make_index

QUERY = "where does energy"
TOKENS = [
    QueryToken(piece="[CLS]", weight=1),
    QueryToken(piece="where", start=0, end=5, weight=1),
    QueryToken(piece="ener", start=11, end=15, weight=1),
    QueryToken(piece="##gy", start=15, end=17, weight=1),
]


def match(text: str, word: str, contribution: float = 1.0, field: str = "text") -> Match:
    start = text.index(word)
    return Match(similarity=contribution, contribution=contribution, field=field, start=start, end=start + len(word))


def test_tokens_of_one_word_share_one_highlight():
    text = "All the bioenergetics are here."
    marks = highlights(
        QUERY, TOKENS, [match(text, "All"), match(text, "here"), match(text, "ener", 0.5), match(text, "getics", 0.25)], "text", text
    )
    assert [(text[mark.start : mark.end], mark.query_tokens) for mark in marks] == [("All", [0]), ("bioenergetics", [2, 3]), ("here", [1])]
    assert marks[1].strength == 0.75 and marks[0].strength == 0


def test_function_words_weigh_less_in_queries_and_documents():
    text = "energy where the mill"
    same = [match(text, "mill"), match(text, "where"), match(text, "energy"), match(text, "the")]
    strengths = {text[mark.start : mark.end]: mark.strength for mark in highlights(QUERY, TOKENS, same, "text", text)}
    assert strengths["energy"] == 1 and strengths["the"] == FUNCTION_WORD_WEIGHT
    assert strengths["where"] == pytest.approx(FUNCTION_WORD_WEIGHT**2) and strengths["mill"] == 0


def test_highlights_leave_out_matches_in_other_fields_or_outside_the_text():
    nowhere = Match(similarity=1, contribution=1)
    beyond = Match(similarity=1, contribution=1, field="text", start=90, end=95)
    title = Match(similarity=1, contribution=1, field="title", start=0, end=1)
    assert highlights(QUERY, TOKENS, [nowhere, beyond, title, nowhere], "text", "short") == []


def test_a_snippet_is_the_passage_with_the_strongest_marks_and_starts_with_a_sentence():
    text = "Nothing is here. " * 40 + "The cell needs energy from somewhere. " + "And so on it goes. " * 40
    place = text.index("energy")
    found = snippet(text, [Highlight(field="text", start=place, end=place + 6, strength=1, query_tokens=[2])])
    assert found.text.startswith("The cell needs energy") and len(found.text) <= SNIPPET_LENGTH and found.more
    assert text[found.start :].startswith(found.text) and not found.text[-1].isspace()
    assert snippet("short text", []).model_dump() == {"text": "short text", "start": 0, "more": False}
    assert snippet(text, []).start == 0


@pytest.mark.parametrize("text", ["x" * 1000, "é\u0301 " * 300, " " * 500 + "word", "a. " * 400, "日本語" * 200])
def test_every_snippet_is_a_part_of_its_text(text):
    for place in range(0, len(text) - 1, 37):
        found = snippet(text, [Highlight(field="text", start=place, end=place + 1, strength=1, query_tokens=[])])
        assert text[found.start : found.start + len(found.text)] == found.text and len(found.text) <= SNIPPET_LENGTH
        assert found.start <= place and (found.start + len(found.text) > place or text[place].isspace())


def test_a_service_sends_highlights_without_explanations(tmp_path):
    client = TestClient(routes(local_service(make_index(tmp_path), 2)[0]))
    reply = client.post("/search", json={"query": QUERIES[1], "k": 3, "highlight": True}).json()
    assert "query_tokens" not in reply
    for hit in reply["results"][0]:
        assert "matches" not in hit and hit["snippet"]["text"] in hit["text"]
        assert all(mark["start"] < mark["end"] <= len(hit[mark["field"]]) for mark in hit["highlights"]) and hit["highlights"]
    refused = client.post("/search", json={"query": "x", "k": 201, "highlight": True})
    assert refused.status_code == 422 and "highlight is for 200 documents at most" in refused.json()["error"]["message"]


def test_hits_show_rank_title_metadata_and_marked_words(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = "It needs energy, and it needs sleep."
    marks = [{"field": "text", "start": 9, "end": 15, "strength": 1.0}, {"field": "text", "start": 0, "end": 2, "strength": 0.1}]
    hit = {"doc_id": "a", "score": 1.5, "title": "Cells", "text": text, "metadata": {"year": 2020, "page": 3}, "highlights": marks}
    show_hits(
        [{**hit, "snippet": {"text": text, "start": 0, "more": True}}, {"doc_id": "b", "score": 1, "title": "", "text": ""}], ["year"]
    )
    assert capsys.readouterr().out.splitlines() == [
        "  1. Cells  (1.500)",
        "     a | year: 2020",
        "     It needs [energy], and it needs sleep. ...",
        "  2. b  (1.000)",
    ]
