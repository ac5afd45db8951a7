"""An index and a service answer the integrations in the same form, with the same scores."""

import pytest

from ray_lir import Client, ConfigError, FormatError, Index, NotFound
from ray_lir.integrations.source import FoundDocument, SearchSettings, Source
from tests.unit.integrations.conftest import DOCUMENTS, QUERY


def test_local_and_remote_sources_answer_like_the_index(index: Index, source: Source):
    queries = [QUERY, *(f"the sea {number}" for number in range(70))]  # more than one request of a service may hold
    found = source.search(queries, SearchSettings(k=3))
    expected = index.search(queries, k=3)
    assert [[(each.doc_id, each.score, each.text, each.title, each.metadata) for each in hits] for hits in found] == [
        [(hit.doc_id, hit.score, hit.text, hit.title, hit.metadata) for hit in hits] for hits in expected
    ]
    assert [list(each.highlights) for each in found[0]] == [list(hit.highlights) for hit in expected[0]]
    assert [each.snippet for each in found[0]] == [hit.snippet for hit in expected[0]]


def test_search_settings_apply_to_local_and_remote_sources(source: Source):
    settings = SearchSettings.of(k=2, where="year > 2019", engine="scan", params={"ncandidates": 3}, highlight=False)
    [found] = source.search([QUERY], settings)
    assert len(found) == 2 and all(each.metadata["year"] > 2019 and each.snippet is None for each in found)
    [unlimited] = source.search([QUERY], SearchSettings(k=201))  # more than a service highlights
    assert len(unlimited) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"k": 0}, "^k: "), ({"quality": "best"}, "^quality: "), ({"where": "year >"}, "^where: expected a value"), ({"kk": 1}, "field kk")],
)
def test_a_wrong_setting_is_a_one_line_error(fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        SearchSettings.of(**fields)
    with pytest.raises(ConfigError, match=message):
        SearchSettings().changed(**fields)


def test_a_service_returns_at_most_1000_documents(url: str):
    with pytest.raises(ConfigError, match="k: a service returns at most 1000 documents a query, not 1001"):
        Source.of(url).search([QUERY], SearchSettings(k=1001))


def test_metadata_is_one_dict_that_keeps_own_names(source: Source):
    [[found]] = source.search(["The sea is deep and blue."], SearchSettings(k=1, where="year = 2024"))
    merged = found.merged_metadata()
    assert (merged["doc_id"], merged["score"], merged["metadata.score"], merged["lang"]) == ("sea", found.score, 7, "de")
    assert merged["snippet"] == DOCUMENTS[2]["text"]
    assert all(found.text[mark["start"] : mark["end"]] == mark["word"] and mark["strength"] > 0 for mark in merged["highlights"])
    assert "highlights" not in FoundDocument("a", "", "text", {}, 1.0).merged_metadata()
    [[other]] = source.search([QUERY], SearchSettings(k=1, where={"metadata.score": 7}))
    assert other.doc_id == "sea"


def test_documents_are_scored_exactly(index: Index, source: Source):
    expected = {hit.doc_id: hit.score for hit in index.search(QUERY, engine="exact")}
    assert source.scores(QUERY, ["sea", "atp", "nothing", "sea"]) == {name: expected[name] for name in ("sea", "atp")}
    assert source.scores(QUERY, ["nothing"]) == {} == source.scores(QUERY, [])


def test_documents_are_read(source: Source):
    found = source.get("atp")
    assert found is not None and (found.title, found.text, found.metadata) == ("Cells", DOCUMENTS[0]["text"], DOCUMENTS[0]["metadata"])
    assert source.get("nothing") is None


def test_a_document_is_explained(index: Index, source: Source):
    trace = source.explain(QUERY, "sea", SearchSettings(where="lang = en", engine="exact"))
    assert (trace.doc_id, trace.rank, trace.dropped_at) == ("sea", None, "filters")
    trace = source.explain(QUERY, "sea", SearchSettings(engine="exact"))
    assert trace.score == next(hit.score for hit in index.search(QUERY, engine="exact") if hit.doc_id == "sea")
    assert trace.rank and f"rank {trace.rank} of 4" in trace.reason and trace.stages[0].survived
    with pytest.raises(NotFound, match="no document 'nothing'"):
        source.explain(QUERY, "nothing")


def test_a_source_reports_its_facts(index: Index, place: str):
    facts = Source.of(place).facts()
    assert (facts.name, facts.version, facts.num_docs) == (place, 1, 4)
    assert (facts.fingerprint, facts.dim) == (index.manifest.contract.fingerprint, index.manifest.dim)


def test_sources_are_indexes_clients_folders_and_addresses(index: Index, url: str, tmp_path):
    assert Source.of(index).name == index.path
    with Client(url) as client:
        found = Source.of(client)
        assert found.name == url and Source.of(found) is found
    with pytest.raises(ConfigError, match="not int"):
        Source.of(7)
    with pytest.raises(FormatError, match="no LATEST file"):
        Source.of(tmp_path)
