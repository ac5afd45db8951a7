"""Long documents in windows, from texts to hits: matches, highlights and changes of the index."""

from pathlib import Path

import numpy as np
import pytest

from ray_lir import Index
from ray_lir.base.config import EncoderConfig, WindowsConfig
from ray_lir.corpus.records import document_text
from ray_lir.search import explain
from ray_lir.search.explain import match_tokens
from tests.fixtures.tiny import WORDS, bert

LENGTH = 32


def sentences(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() + "." for _ in range(count))


DOCUMENTS = [{"_id": f"d{n}", "title": f"The tower {n}", "text": sentences(size, n)} for n, size in enumerate([3, 60, 1, 120, 40])]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    folder = tmp_path_factory.mktemp("windowed") / "checkpoint"
    bert(folder)
    return EncoderConfig(checkpoint=str(folder), windows=WindowsConfig(length=LENGTH, stride=24, repeat_title=True))


@pytest.fixture(scope="module")
def index(windowed: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.create(tmp_path_factory.mktemp("index") / "index", DOCUMENTS, windowed)


def windows_of(index: Index, doc_id: str) -> list[str]:
    """The texts of a document's windows, without their titles."""
    document = index.get(doc_id)
    assert document is not None
    text = document_text(document["title"], document["text"])
    [spans] = index.encoder.tokenizer.tokenize_documents([text], [len(document["title"])]).windows or []
    return [text[first:end] for first, end in spans]


@pytest.mark.parametrize("part", [0, 7, -1])
def test_a_document_is_found_by_any_of_its_windows_and_shows_it(index: Index, part: int):
    query = windows_of(index, "d3")[part]
    found = query if part == 0 else f"{DOCUMENTS[3]['title']} {query}"
    hit = index.search(found, k=1)[0]
    assert hit.doc_id == "d3" and hit.text == DOCUMENTS[3]["text"]
    assert hit.passage is not None and hit.text[hit.passage.start : hit.passage.end].strip() in query
    assert hit.snippet is not None and hit.passage.start <= hit.snippet.start < hit.passage.end
    exact = [match for match in hit.matches if match.similarity > 0.99 and match.field == "text"]
    assert len(exact) > 10
    for match in exact:
        assert match.start is not None and match.end is not None
        assert hit.text[match.start : match.end].lower() == match.token.replace("##", "")
        assert hit.passage.start <= match.start < hit.passage.end
    assert all(hit.text[mark.start : mark.end].isalpha() for mark in hit.highlights if mark.field == "text" and mark.strength)


def test_matches_do_not_depend_on_the_blocks_in_which_a_document_is_read(index: Index, monkeypatch: pytest.MonkeyPatch):
    query = index.encoder.encode_queries(["the bridge on the river of the city"])
    [plan] = index.searcher.planner.plan(query, 1, "exact")
    [shard], number = index.searcher.shards, index.searcher.find(["d3"])["d3"]
    whole = match_tokens(plan, shard, index.searcher.planner.codec, number)
    monkeypatch.setattr(explain, "BLOCK_TOKENS", 50)
    blocks = match_tokens(plan, shard, index.searcher.planner.codec, number)
    assert np.array_equal(whole.tokens, blocks.tokens) and np.array_equal(whole.contributions, blocks.contributions)
    assert whole.windows is not None and np.array_equal(whole.windows, blocks.windows)
    assert (whole.windows[:, 0] <= whole.tokens).all() and len(np.unique(whole.windows[:, 0])) > 1


def test_added_documents_are_divided_like_those_of_the_index(windowed: EncoderConfig, tmp_path: Path):
    index = Index.create(tmp_path / "index", DOCUMENTS[:3], windowed)
    index.add([{**DOCUMENTS[3], "_id": "d1"}, DOCUMENTS[4]])
    index.delete(["d2"])
    changed = {doc_id: windows_of(index, doc_id)[-1] for doc_id in ("d0", "d1", "d4")}
    for _ in range(2):
        for doc_id, query in changed.items():
            hit = index.search(f"{index.get(doc_id)['title']} {query}" if doc_id != "d0" else query, k=1)[0]
            assert hit.doc_id == doc_id and hit.passage is not None and hit.text[hit.passage.start : hit.passage.end] in query
        before = [shard.windows for shard in index.searcher.shards]
        index.compact()
    assert len(before) == 1 and before[0] is not None
    assert index.searcher.shards[0].num_docs == 3 and (before[0][:, 1] == 0).sum() == 3


def test_an_explanation_says_nothing_of_truncation(index: Index):
    trace = index.explain("the bridge", "d3", k=5)
    assert trace.truncation is None and trace.rank is not None


def test_an_index_without_windows_has_no_passages(windowed: EncoderConfig, tmp_path: Path):
    index = Index.create(tmp_path / "index", DOCUMENTS[:1], windowed.model_copy(update={"windows": None}))
    assert index.search("the bridge")[0].passage is None and index.searcher.shards[0].windows is None
