"""Training data in the forms that the papers' authors publish."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.training.examples import read_examples


def dataset(folder: Path) -> str:
    """MS MARCO's layout, with ids that are numbers."""
    folder.mkdir()
    (folder / "collection.tsv").write_text("10\tten\n11\televen\n12\ttwelve\n")
    (folder / "queries.train.tsv").write_text("1\tone\n2\ttwo\n")
    return str(folder)


def content(data) -> list[tuple[list[str], list[float] | None]]:
    """The documents and the scores of each list."""
    lists = [[data.documents[number] for number in numbers] for numbers in data.lists.to_pylist()]
    return list(zip(lists, data.teacher.to_pylist() if data.teacher else [None] * len(lists), strict=True))


def texts_of(data) -> list[list[str]]:
    return [texts for texts, _ in content(data)]


def test_triples_of_texts(tmp_path):
    (tmp_path / "triples.train.small.tsv").write_text("why 1\tgood\tbad\nhow\tbest\tworst\n")
    data = read_examples(str(tmp_path / "triples.train.small.tsv"))
    assert list(data.queries) == ["why 1", "how"] and texts_of(data) == [["good", "bad"], ["best", "worst"]]


def test_triples_of_ids(tmp_path):
    place = tmp_path / "qidpidtriples.train.full.tsv"
    place.write_text("1\t10\t11\n2\t12\t10\n")
    with pytest.raises(ConfigError, match="give the collection they are in as --dataset"):
        read_examples(str(place))
    data = read_examples(str(place), dataset(tmp_path / "msmarco"))
    assert list(data.queries) == ["one", "two"] and texts_of(data) == [["ten", "eleven"], ["twelve", "ten"]]


def test_a_line_with_too_few_columns_is_named(tmp_path):
    (tmp_path / "t.tsv").write_text("why\tgood\tbad\nwhy\tgood\n")
    with pytest.raises(FormatError, match="t.tsv:2: expected query <tab> positive <tab> negative"):
        read_examples(str(tmp_path / "t.tsv"))


def test_tuples_of_colbertv2_with_negative_scores(tmp_path):
    place = tmp_path / "examples.64.json"
    place.write_text("[1, [10, -1.5], [12, -9.25]]\n[2, [11, 3.0], [10, -0.5]]\n")
    data = read_examples(str(place), dataset(tmp_path / "msmarco"))
    assert content(data) == [(["ten", "twelve"], [-1.5, -9.25]), (["eleven", "ten"], [3.0, -0.5])]


def test_tuples_without_scores(tmp_path):
    place = tmp_path / "triples.jsonl"
    place.write_text("[1, 10, 11]\n[2, 12, 11]\n")
    assert texts_of(read_examples(str(place), dataset(tmp_path / "msmarco"))) == [["ten", "eleven"], ["twelve", "eleven"]]


@pytest.mark.parametrize("row", ["[]", "[1]", "[1, [10]]", "[1, [10, 2.0], 11]", "[null, 10]", '[1, [10, "high"]]'])
def test_a_malformed_tuple_is_one_line(tmp_path, row):
    (tmp_path / "examples.json").write_text(row + "\n")
    with pytest.raises(FormatError, match="examples.json:1") as error:
        read_examples(str(tmp_path / "examples.json"), dataset(tmp_path / "msmarco"))
    assert "\n" not in str(error.value)


def test_a_row_a_document_becomes_one_tuple_a_query_with_the_best_first(tmp_path):
    columns = {"query": ["q", "q", "p"], "document": ["low", "high", "only"], "score": [-7.0, -2.0, 0.5]}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    data = read_examples(str(tmp_path / "scores.parquet"))
    assert list(data.queries) == ["q", "p"] and content(data) == [(["high", "low"], [-2.0, -7.0]), (["only"], [0.5])]
    pq.write_table(pa.table({**columns, "score": [1.0, None, 2.0]}), tmp_path / "bad.parquet")
    with pytest.raises(FormatError, match="a document and a score that is a number"):
        read_examples(str(tmp_path / "bad.parquet"))


def test_rows_of_a_query_must_be_consecutive(tmp_path):
    rows = {"query": ["a", "b", "a"], "document": ["1", "2", "3"], "score": [0.5, 0.25, -1.0]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(FormatError, match="rows.parquet:3: expected consecutive rows of each query, found query 'a' again; sort the rows"):
        read_examples(str(tmp_path / "rows.parquet"))


def write_tables(folder, **changes):
    tables = {
        "train": {"query_id": [1], "document_ids": [[10, 11]], "scores": [[0.5, -1.0]]},
        "queries": {"query_id": [1], "text": ["one"]},
        "documents": {"document_id": [10, 11], "title": ["Ten", None], "text": ["ten", "eleven"]},
    } | changes
    folder.mkdir(parents=True)
    for name, columns in tables.items():
        if columns:
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return str(folder)


def test_a_title_is_a_part_of_a_documents_text(tmp_path):
    assert texts_of(read_examples(write_tables(tmp_path / "kd"))) == [["Ten ten", "eleven"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"documents": None},
            "expected a table of documents, documents[*].parquet, found none; give a folder with all tables",
        ),
        ({"queries": None}, "expected a table of queries, queries[*].parquet, found none"),
        (
            {"queries": {"query_id": [1, 1], "text": ["one", "uno"]}},
            "kd has two texts for query '1'; give a dataset with one text",
        ),
        ({"documents": {"document_id": [10, 10, 11], "text": ["ten", "dix", "eleven"]}}, "kd has two texts for document '10'"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path, changes, message):
    with pytest.raises((ConfigError, FormatError), match=message):
        read_examples(write_tables(tmp_path / "kd", **changes))


def test_equal_texts_of_a_query_are_one_text(tmp_path):
    folder = write_tables(tmp_path / "kd", queries={"query_id": [1, 1], "text": ["one", "one"]})
    assert list(read_examples(folder).queries) == ["one"]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("folders", [False, True])
def test_a_folder_of_tables(tmp_path, as_text, folders):
    tables = {
        "train": pa.table(
            {
                "query_id": [1, 2],
                "document_ids": ["[10, 11]", "[11, 12]"] if as_text else [[10, 11], [11, 12]],
                "scores": ["[0.9, -0.25]", "[0.5, 0.25]"] if as_text else [[0.9, -0.25], [0.5, 0.25]],
            }
        ),
        "queries": pa.table({"query_id": [1, 2], "text": ["one", "two"]}),
        "documents": pa.table({"document_id": [10, 11, 12], "text": ["ten", "eleven", "twelve"]}),
    }
    for name, table in tables.items():
        place = tmp_path / "kd" / name / "part.parquet" if folders else tmp_path / "kd" / f"{name}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, place)
    data = read_examples(str(tmp_path / "kd"))
    assert list(data.queries) == ["one", "two"]
    assert content(data) == [(["ten", "eleven"], [0.9, -0.25]), (["eleven", "twelve"], [0.5, 0.25])]
    if not folders:
        (tmp_path / "kd/train.parquet").unlink()
        with pytest.raises(FormatError, match="one file of scores, train"):
            read_examples(str(tmp_path / "kd"))


def test_rows_of_texts_keep_working(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "q", "positive": "p", "negative": ["n"]}) + "\n")
    assert texts_of(read_examples(str(tmp_path / "rows.jsonl"))) == [["p", "n"]]
