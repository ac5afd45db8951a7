"""Bulk search in this process: the hits equal those of `Searcher`, bad rows are kept, and a killed job continues."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.search import SearchJob, run
from ray_lir.base.config import EncoderConfig
from ray_lir.base.engine_names import ENGINE_NAMES
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines import ENGINES
from ray_lir.evaluation.runs import read_run
from ray_lir.search import bulk
from ray_lir.search.bulk import read_hits
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import WORDS
from tests.support.corpora import write_rows
from tests.support.served_index import make_index

ROWS = [{"_id": f"q{n}", "text": " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 3 + n % 5))} for n in range(1, 41)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("bulk"), num_docs=120, num_shards=3)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("queries") / "queries.jsonl", ROWS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "QUERIES_PER_BLOCK", 16)


def search(index: Path, queries: str, output: Path, **fields: object) -> dict:
    return run(SearchJob.model_validate({"index": str(index), "queries": queries, "output": str(output), **fields}))


def expected(index: Path, engine: str = "auto", k: int = 10, filters: object = None, rows: list[dict] = ROWS) -> list[tuple]:
    searcher = Searcher.open(index)
    encoder = Encoder.for_contract(searcher.manifest.contract, EncoderConfig(checkpoint=searcher.manifest.contract.checkpoint))
    embeddings = encoder.encode_queries([row["text"] for row in rows])
    found = []
    for row, top in zip(rows, searcher.search(embeddings, k, engine, filters=filters), strict=True):
        for rank, (doc_id, score) in enumerate(zip(searcher.doc_ids(top.documents), top.scores.tolist(), strict=True), 1):
            found.append((row["_id"], rank, doc_id, score))
    return found


def hits(output: Path) -> list[tuple]:
    names = ("query_id", "rank", "doc_id", "score")
    tables = [pq.read_table(output / part.name) for part in read_hits(str(output)).parts]
    return [tuple(row[name] for name in names) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("engine", [*ENGINE_NAMES, "auto"])
def test_hits_equal_those_of_searcher(index: Path, queries: str, tmp_path: Path, engine: str):
    result = search(index, queries, tmp_path / "out", engine=engine, k=7)
    assert hits(tmp_path / "out") == expected(index, engine, 7)
    assert (result["num_queries"], result["num_blocks"], result["num_skipped"]) == (40, 3, 0)


def test_hits_of_hybrid_search_have_columns_for_both_sides(index: Path, queries: str, tmp_path: Path):
    search(index, queries, tmp_path / "hits.parquet", engine="hybrid", k=5, fields="title")
    table = pq.read_table(tmp_path / "hits.parquet")
    assert table.column_names == ["query_id", "rank", "doc_id", "score", "bm25", "late_interaction", "found_by", "title"]
    one = run(SearchJob(index=str(index), query=ROWS[0]["text"], k=5, engine="hybrid"))["hits"]
    for row, hit in zip(table.slice(0, 5).to_pylist(), one, strict=True):
        assert (row["doc_id"], row["found_by"]) == (hit["doc_id"], " ".join(hit["sides"]["found_by"]))
        assert (row["bm25"], row["late_interaction"]) == pytest.approx((hit["sides"]["bm25"], hit["sides"]["late_interaction"]), abs=1e-3)
    search(index, queries, tmp_path / "scan.parquet", engine="scan", k=5)
    assert pq.read_table(tmp_path / "scan.parquet").column_names == ["query_id", "rank", "doc_id", "score"]


def test_filters_and_fields_are_those_of_a_search(index: Path, queries: str, tmp_path: Path):
    search(index, queries, tmp_path / "out", where="row < 50", fields="title,metadata")
    assert hits(tmp_path / "out") == expected(index, filters="row < 50")
    table = pq.read_table(tmp_path / "out" / read_hits(str(tmp_path / "out")).parts[0].name)
    first = table.to_pylist()[0]
    document = Searcher.open(index).documents([int(first["doc_id"].removeprefix("doc-"))])[0]
    assert first["title"] == document["title"] and json.loads(first["metadata"]) == document["metadata"]


def test_one_file_holds_all_parts(index: Path, queries: str, tmp_path: Path):
    search(index, queries, tmp_path / "hits.parquet", k=5)
    search(index, queries, tmp_path / "hits.trec", k=5)
    rows = pq.read_table(tmp_path / "hits.parquet").to_pylist()
    assert [(row["query_id"], row["rank"], row["doc_id"], row["score"]) for row in rows] == expected(index, k=5)
    ranking = read_run(str(tmp_path / "hits.trec"))
    assert [(query, doc) for query, found in ranking.items() for doc, _ in found] == [(row[0], row[2]) for row in expected(index, k=5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hits.parquet", "hits.trec"]


def test_refused_rows_are_kept_with_their_reasons(index: Path, tmp_path: Path):
    rows = [*ROWS[:3], {"_id": "q1", "text": "again"}, {"text": "no id"}, {"_id": "blank", "text": "  "}]
    result = search(index, write_rows(tmp_path / "queries.jsonl", rows), tmp_path / "out")
    assert (result["num_queries"], result["num_dead"], result["num_repeated"]) == (3, 3, 1)
    assert hits(tmp_path / "out") == expected(index, rows=ROWS[:3])
    [letter] = read_hits(str(tmp_path / "out")).dead_letters
    dead = [json.loads(line) for line in (tmp_path / "out" / letter.name).read_text().splitlines()]
    assert [row["line"] for row in dead] == [4, 5, 6]
    for row, reason in zip(dead, ("'q1' is that of an earlier row", "no id", "the text is empty"), strict=True):
        assert reason in row["reason"]


def test_a_killed_search_continues_after_its_finished_blocks(index: Path, queries: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    search(index, queries, tmp_path / "whole")
    searched: list[int] = []
    original = bulk.search_block

    def failing(chunk, *rest):
        if len(searched) == 1:
            raise KeyboardInterrupt
        searched.append(chunk.number)
        return original(chunk, *rest)

    monkeypatch.setattr(bulk, "search_block", failing)
    with pytest.raises(KeyboardInterrupt):
        search(index, queries, tmp_path / "out")
    monkeypatch.setattr(bulk, "search_block", original)
    assert search(index, queries, tmp_path / "out")["num_skipped"] == 1
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert search(index, queries, tmp_path / "out")["num_skipped"] == 3


def test_a_continued_search_counts_only_its_own_queries(index: Path, queries: str, tmp_path: Path):
    """A run on a cluster may finish any block first; here the last one of 8 queries."""
    searcher = Searcher.open(index)
    whole = bulk.in_process(Encoder.for_contract(searcher.manifest.contract), searcher)
    settings = bulk.BulkSettings(engine=ENGINES["exact"].params())
    identity = {"index": "0", "fingerprint": "0"}

    def last_block_only(worklist: bulk.Worklist):
        yield from whole(replace(worklist, done=frozenset({0, 1})))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.bulk_search(queries, str(tmp_path / "out"), settings, identity, last_block_only)
    result = bulk.bulk_search(queries, str(tmp_path / "out"), settings, identity, whole)
    assert (result.num_skipped, result.num_searched, result.manifest.num_queries) == (1, 32, 40)


def test_an_output_folder_with_hits_of_another_search_is_left_alone(index: Path, queries: str, tmp_path: Path):
    search(index, queries, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="holds the hits of another search"):
        search(index, queries, tmp_path / "out", k=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty and holds no hits"):
        search(index, queries, tmp_path / "other")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_dry_run_writes_nothing_and_predicts(index: Path, queries: str):
    result = run(SearchJob.model_validate({"index": str(index), "queries": queries, "dry_run": True}))
    assert result["num_queries"] == 40 and result["predicted_seconds"] >= 0 and result["search_ms"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give a query"),
        ({"query": "x", "queries": "y"}, "not both"),
        ({"queries": "y"}, "needs --output"),
        ({"query": "x", "output": "y"}, "are for --queries"),
    ],
)
def test_incompatible_flags_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SearchJob.model_validate({"index": "i", **fields})


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "holds no queries"), ([{"text": "no id"}], "holds no queries")],
)
def test_a_file_without_queries_is_refused(index: Path, tmp_path: Path, rows: list[dict], message: str):
    with pytest.raises(ConfigError, match=message):
        search(index, write_rows(tmp_path / "queries.jsonl", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_queries_is_named(index: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no queries at .*missing\.jsonl: no such file"):
        search(index, str(tmp_path / "missing.jsonl"), tmp_path / "out")
