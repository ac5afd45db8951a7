"""jobs.compare: what it reports of runs and indexes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main, parse
from jobs.compare import CompareConfig, compare, show
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.evaluation.comparisons import compare_measures
from ray_lir.evaluation.runs import write_run
from tests.support.served_index import make_index

QUERIES = 60
DOCUMENTS = [f"d{number}" for number in range(12)]


def make_dataset(folder: Path, queries: int = QUERIES) -> Path:
    """A data set in which document d0 is relevant to every query."""
    (folder / "qrels").mkdir(parents=True)
    ids = [f"q{number}" for number in range(queries)]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": each, "text": each}) + "\n" for each in ids))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": each, "text": each}) + "\n" for each in DOCUMENTS))
    (folder / "qrels/test.tsv").write_text("".join(f"{each}\td0\t1\n" for each in ids))
    return folder


def make_run(path: Path, ranks, start: int = 0) -> str:
    """A run that has d0 at the given rank (from 1) of each query."""
    run = {}
    for number, rank in enumerate(ranks, start):
        order = DOCUMENTS[1:]
        order.insert(rank - 1, "d0")
        run[f"q{number}"] = [(doc_id, -float(place)) for place, doc_id in enumerate(order)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_run(str(path), run, "tag")
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return str(make_dataset(tmp_path_factory.mktemp("data") / "made"))


def of(first: str, second: str, dataset: str, **fields):
    return compare(CompareConfig(first=first, second=second, dataset=dataset, measures="RR@10", **fields))


def test_a_clear_difference_by_hand(dataset, tmp_path):
    first, second = make_run(tmp_path / "a", [2] * QUERIES), make_run(tmp_path / "b", [1] * 50 + [2] * 10)
    result = of(first, second, dataset)
    found = result["measures"]["RR@10"]
    assert found["first"] == 0.5 and found["second"] == pytest.approx(55 / 60) and found["difference"] == pytest.approx(25 / 60)
    assert found["p"] == found["p_holm"] == pytest.approx(1 / 10_001) and found["queries_changed"] == 50
    assert found["interval"][0] < 25 / 60 < found["interval"][1]
    assert found["verdict"] == "second is better" and of(second, first, dataset)["measures"]["RR@10"]["verdict"] == "first is better"
    assert json.loads(json.dumps(result)) == result


def test_an_insignificant_difference_is_undecided_and_not_equal(dataset, tmp_path):
    ranks = [1, 3] * (QUERIES // 2)
    first, second = make_run(tmp_path / "a", ranks), make_run(tmp_path / "b", ranks[1:] + ranks[:1])
    found = of(first, second, dataset)["measures"]["RR@10"]
    assert found["p"] == 1 and found["verdict"].startswith("undecided: these queries reveal only differences above 0.2")
    wide = of(first, second, dataset, margin=0.9)["measures"]["RR@10"]
    assert wide["verdict"] == "equivalent within 0.9" and wide["equivalence_p"] < 0.05


def test_a_run_and_itself_are_identical_on_these_queries_only(dataset, tmp_path):
    run = make_run(tmp_path / "a", [1, 2, 3] * 20)
    assert of(run, run, dataset)["measures"]["RR@10"]["verdict"] == f"identical on these {QUERIES} queries"


def test_few_queries_decide_nothing(tmp_path):
    dataset = str(make_dataset(tmp_path / "few", 5))
    first, second = make_run(tmp_path / "a", [1, 1, 1, 1, 1]), make_run(tmp_path / "b", [1, 1, 1, 1, 2])
    found = of(first, second, dataset, margin=5)["measures"]["RR@10"]
    assert found["verdict"] == "undecided: 5 queries are too few to show that two runs agree"


def test_p_values_are_corrected_for_the_measures(dataset, tmp_path):
    first, second = make_run(tmp_path / "a", [2] * QUERIES), make_run(tmp_path / "b", [2] * 54 + [1] * 6)
    one = of(first, second, dataset)["measures"]["RR@10"]
    found = compare(CompareConfig(first=first, second=second, dataset=dataset, measures="RR@10 nDCG@10"))["measures"]
    assert one["p"] == one["p_holm"] == 2 / 64
    assert found["RR@10"]["p"] == 2 / 64 and found["RR@10"]["p_holm"] == 4 / 64
    assert one["verdict"] == "second is better" and found["RR@10"]["verdict"].startswith("undecided")


def test_several_data_sets_have_equal_weight(tmp_path):
    names = {"small": 2, "large": 40}
    for name, size in names.items():
        make_dataset(tmp_path / name, size)
    for run, rank in (("a", 2), ("b", 1)):
        make_run(tmp_path / run / "small.run", [rank] * 2)
        make_run(tmp_path / run / "large.run", [2] * 40)
    result = of(f"{tmp_path}/a/{{dataset}}.run", f"{tmp_path}/b/{{dataset}}.run", f"{tmp_path}/small,{tmp_path}/large")
    assert result["measures"]["RR@10"]["difference"] == 0.25 and result["queries"] == 42
    assert result["datasets"]["small"]["RR@10"] == {"first": 0.5, "second": 1.0, "difference": 0.5}
    with pytest.raises(ConfigError, match="there is no run and no index at .*/a/large.trec; check the path"):
        (tmp_path / "a/small.trec").touch()
        of(f"{tmp_path}/a/{{dataset}}.trec", f"{tmp_path}/b/{{dataset}}.run", f"{tmp_path}/small,{tmp_path}/large")


def test_queries_without_results_count_as_zero_and_are_reported(dataset, tmp_path, caplog):
    first, second = make_run(tmp_path / "a", [1] * QUERIES), make_run(tmp_path / "b", [1] * 40)
    result = of(first, second, dataset)
    assert result["second"]["queries_without_results"] == 20 and result["measures"]["RR@10"]["second"] == pytest.approx(40 / 60)
    assert "no results for 20 judged queries" in caplog.text


@pytest.mark.parametrize("kind", ["unknown documents", "other queries", "empty", "malformed", "missing", "twice"])
def test_a_wrong_run_is_a_one_line_error(dataset, tmp_path, kind):
    good, bad = make_run(tmp_path / "a", [1] * QUERIES), tmp_path / "b"
    error, message = ConfigError, "lists 1 documents that the corpus of made/test lacks .*'zz'.*or set --check_documents no"
    if kind == "unknown documents":
        bad.write_text("q0 Q0 zz 1 2.0 t\nq0 Q0 d0 2 1.0 t\n")
        assert of(good, str(bad), dataset, check_documents=False)["second"]["queries_without_results"] == QUERIES - 1
    elif kind == "other queries":
        bad.write_text("x0 Q0 d0 1 2.0 t\n")
        message = "has results for none of the 60 judged queries of made/test .*'x0'.*give the run and the data set of one collection"
    elif kind == "empty":
        bad.write_text("")
        error, message = FormatError, "expected a run with results, found none"
    elif kind == "malformed":
        bad.write_text("q0 d0 1\n")
        error, message = FormatError, "line 1: expected query Q0 document rank score tag"
    elif kind == "twice":
        bad.write_text("q0 Q0 d0 1 2.0 t\nq0 Q0 d0 2 1.0 t\n")
        error, message = FormatError, "each document once per query"
    else:
        message = "--second: there is no run and no index at"
    with pytest.raises(error, match=message) as found:
        of(good, str(bad), dataset)
    assert "\n" not in str(found.value)


def test_runs_in_parquet(dataset, tmp_path):
    trec = make_run(tmp_path / "a", [2] * QUERIES)
    rows = [(f"q{number}", doc_id, 1.0 / place) for number in range(QUERIES) for place, doc_id in enumerate(("d1", "d0"), 1)]
    table = pa.table(dict(zip(("query_id", "doc_id", "score"), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "b.parquet")
    assert of(trec, str(tmp_path / "b.parquet"), dataset)["measures"]["RR@10"]["verdict"].startswith("identical")
    pq.write_table(table.drop_columns("score"), tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="expected the columns query_id, doc_id, score, found no column score"):
        of(trec, str(tmp_path / "c.parquet"), dataset)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"query_id": ["q0"], "doc_id": [["d0"]], "score": [1.0]},
            "row 1: expected ids of a query and a document, found .* is a list",
        ),
        ({"query_id": [None], "doc_id": ["d0"], "score": [1.0]}, "row 1: expected ids of a query and a document, found an id that is null"),
        ({"query_id": ["q0"], "doc_id": ["d0"], "score": [True]}, "row 1: expected a number as score, found True"),
        ({"qid": ["q0"], "doc_id": ["d0"], "score": [1.0]}, "found no column query_id; rename the columns"),
    ],
)
def test_malformed_runs_in_parquet(dataset, tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    with pytest.raises(FormatError, match=message):
        of(make_run(tmp_path / "a", [1] * QUERIES), str(tmp_path / "b.parquet"), dataset)


def test_the_output_has_the_values_of_each_query(dataset, tmp_path):
    first, second, output = make_run(tmp_path / "a", [1] * QUERIES), make_run(tmp_path / "b", [2] * QUERIES), tmp_path / "out.json"
    result = of(first, second, dataset, output=str(output))
    written = json.loads(output.read_text())
    assert written["per_query"]["made"]["RR@10"]["q7"] == [1.0, 0.5] and written["measures"] == result["measures"]
    with pytest.raises(ConfigError, match="--output .* exists already"):
        of(first, second, dataset, output=str(output))


def test_the_command_line_takes_two_paths_and_prints_a_table(dataset, tmp_path, capsys, monkeypatch):
    config = parse(CompareConfig, ["a", "--dataset", "d,e", "b"], positional=("first", "second"))
    assert (config.first, config.second, config.dataset) == ("a", "b", "d,e")
    with pytest.raises(ConfigError, match="unexpected argument 'c'"):
        parse(CompareConfig, ["a", "b", "c", "--dataset", "d"], positional=("first", "second"))
    with pytest.raises(ConfigError, match="--second is required"):
        parse(CompareConfig, ["a", "--dataset", "d"], positional=("first", "second"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    runs = [make_run(tmp_path / "a", [2] * QUERIES), make_run(tmp_path / "b", [1] * QUERIES)]
    main(CompareConfig, compare, [*runs, "--dataset", dataset, "--measures", "RR@10"], show=show, positional=("first", "second"))
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["measure", "first", "second"] and row.split()[:4] == ["RR@10", "0.5000", "1.0000", "+0.5000"]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    return make_index(tmp_path_factory.mktemp("compare"))


def test_two_indexes_and_two_engines(index, tmp_path):
    from ray_lir.search.searcher import Searcher

    searcher = Searcher.open(str(index))
    rows = searcher.documents(np.arange(30))
    folder = tmp_path / "of_index"
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{number}", "text": f"{row['title']} {row['text']}"}) + "\n" for number, row in enumerate(rows))
    )
    (folder / "qrels/test.tsv").write_text("".join(f"q{number}\t{row['doc_id']}\t1\n" for number, row in enumerate(rows)))
    result = of(str(index), str(index), str(folder), engine="exact", second_engine="warp")
    assert result["first"]["kind"] == "index" and (result["first"]["engine"], result["second"]["engine"]) == ("exact", "warp")
    assert result["measures"]["RR@10"]["first"] > 0.5
    with pytest.raises(ConfigError, match="unknown engine 'faiss'"):
        of(str(index), str(index), str(folder), engine="faiss")
    with pytest.raises(ConfigError, match="RR@10|needs 10 hits"):
        of(str(index), str(index), str(folder), k=5)


def test_sides_with_other_queries_cannot_be_compared():
    with pytest.raises(ConfigError, match="same collections, measures and queries"):
        compare_measures([{"AP": {"q": 1.0}}], [{"AP": {"p": 1.0}}])
