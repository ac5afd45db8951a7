"""Examples of every form give the same data; wrong rows are refused by line; hard negatives are drawn evenly."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_lir.base.config import TrainingConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.training.data import TrainingData, batches, check_data
from ray_lir.training.examples import read_examples
from ray_lir.training.losses import DistillationLoss
from ray_lir.training.source import TrainingSource, load_dev_set, load_training_data
from tests.support import translated_words

TRIPLES = [
    {"query": "one", "positive": "A", "negative": "B"},
    {"query": "two", "positive": "C", "negative": ["A", "D"]},
    {"query": "one", "positive": "E", "negative": "B"},
]
TUPLES = [
    {"query": "one", "documents": ["A", "B"], "scores": [2, 0.5]},
    {"query": "two", "documents": ["C", "A", "D"], "scores": [1, 0, 0]},
    {"query": "one", "documents": ["E", "B"], "scores": [3, 1]},
]


def write(path: Path, rows: list) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(text)
    return str(path)


def words(data: TrainingData) -> dict[str, list[list[str]]]:
    return {
        query: [[data.documents[document] for document in documents] for documents in lists]
        for query, lists in zip(data.queries, data.lists_by_query(), strict=True)
    }


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("beir")
    write(folder / "queries.jsonl", [{"_id": "1", "text": "one"}, {"_id": "2", "text": "two"}])
    write(folder / "corpus.jsonl", [{"_id": name.lower(), "title": "", "text": name} for name in "ABCDE"])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n1\td\t1\n2\te\t0\n")
    return folder


@pytest.mark.parametrize("name", ["examples.jsonl", "examples.jsonl.gz", "examples.parquet"])
def test_tuples_in_every_kind_of_file_are_grouped_by_query(tmp_path, name):
    data = read_examples(write(tmp_path / name, TUPLES))
    assert words(data) == {"one": [["A", "B"], ["E", "B"]], "two": [["C", "A", "D"]]}
    assert data.scores_by_query() == [[[2.0, 0.5], [3.0, 1.0]], [[1.0, 0.0, 0.0]]]
    assert [[data.documents[number] for number in data.positives(query)] for query in (0, 1)] == [["A", "E"], ["C"]]


def test_triples_of_texts_and_of_ids_give_the_same_data(tmp_path, collection):
    by_text = read_examples(write(tmp_path / "triples.jsonl", TRIPLES))
    rows = [
        {"query_id": 1, "document_ids": ["a", "b"]},
        {"query_id": "2", "document_ids": ["c", "a", "d"]},
        {"query_id": 1, "document_ids": ["e", "b"]},
    ]
    by_id = read_examples(write(tmp_path / "ids.jsonl", rows), str(collection))
    assert words(by_text) == words(by_id) == words(read_examples(write(tmp_path / "tuples.jsonl", TUPLES)))
    assert by_text.teacher is by_id.teacher is None
    with pytest.raises(ConfigError, match="names queries and documents by id; give the collection they are in as --dataset"):
        read_examples(str(tmp_path / "ids.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "documents": ["A", "B"], "scores": [1, float("nan")]}, "finite float32 numbers, found nan"),
        ({"query": "q", "documents": ["A", "B"], "scores": [1e39, 1]}, "finite float32 numbers, found 1e[+]39"),
        ({"query": "q", "documents": ["A", "B"], "scores": [1, float("inf")]}, "found inf"),
        ({"query": "q", "documents": ["A", "B"], "scores": [1, None]}, "found None"),
        ({"query": "q", "documents": ["A", "B"], "scores": [1]}, "expected 2 scores"),
        ({"query": "q", "documents": [], "scores": []}, "leave out queries without a positive"),
        ({"query": "q", "positive": "", "negative": "B"}, "leave out queries without a positive"),
        ({"query": "", "positive": "A", "negative": "B"}, "leave out"),
        ({"query": "q", "positive": 3, "negative": "B"}, "every text must be a string"),
        ({"query": "q"}, "expected a query .*with positive"),
        ({"query": "q", "documents": ["A", "B"], "scores": [1, True]}, "found True"),
        ({"positive": "A", "negative": "B"}, "found the columns positive, negative; rename the columns"),
        ({"text": "A", "label": 1}, "or anchor, question.*found the columns text, label"),
        ({"query": "q", "anchor": "q", "positive": "A"}, "one of the columns query, anchor, question, found query and anchor"),
        ({"query": "q", "positive": "A", "negative": 7}, "negative as text or a list of texts, found 7"),
        ({"query": "q", "positive": "A", "negative": ["B", None]}, "every text must be a string"),
        ({"query_id": 1.5, "document_ids": ["a"]}, "every id must be a string or a whole number"),
        ([1], "expected \\[query id, .*found \\[1\\]"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(FormatError, match=message) as error:
        read_examples(write(tmp_path / "examples.jsonl", [TUPLES[0], row]))
    assert "examples.jsonl:2" in str(error.value) and "\n" not in str(error.value)


def test_scores_of_any_sign_are_kept(tmp_path):
    data = read_examples(write(tmp_path / "examples.jsonl", [{"query": "q", "documents": ["A", "B"], "scores": [-0.5, -11]}]))
    assert data.scores_by_query() == [[[-0.5, -11.0]]]


def test_a_constant_added_to_a_teachers_scores_changes_no_distillation_loss():
    student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[-3.0, -1.0, -9.0]])
    for normalize in (False, True):
        loss = DistillationLoss(1.0, normalize, normalize)
        assert loss(student, teacher).item() == pytest.approx(loss(student, teacher + 9.0).item(), abs=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        {"anchor": "one", "positive": "A", "negative": "B"},
        {"question": "one", "answer": "A", "negative": ["B"]},
        {"query": "one", "positive": "A", "negatives": ["B"]},
        {"anchor": "one", "positive": "A", "negative_1": "B"},
    ],
)
def test_the_column_names_of_sentence_transformers_are_understood(tmp_path, row):
    assert words(read_examples(write(tmp_path / "examples.jsonl", [row]))) == {"one": [["A", "B"]]}
    columns = {name: [value] for name, value in row.items()}
    pq.write_table(pa.table(columns), tmp_path / "examples.parquet")
    assert words(read_examples(str(tmp_path / "examples.parquet"))) == {"one": [["A", "B"]]}


def test_negative_columns_are_ordered_by_their_numbers(tmp_path):
    row = {"anchor": "one", "negative_10": "K", "positive": "A", "negative_2": "C", "negative_1": "B"}
    assert words(read_examples(write(tmp_path / "examples.jsonl", [row]))) == {"one": [["A", "B", "C", "K"]]}


def test_files_that_mix_or_hold_nothing_are_refused(tmp_path):
    with pytest.raises(FormatError, match="rows that all have scores, or none"):
        read_examples(write(tmp_path / "mixed.jsonl", [TUPLES[0], TRIPLES[0]]))
    with pytest.raises(FormatError, match="rows that all have ids, or none"):
        read_examples(write(tmp_path / "mixed.jsonl", [TRIPLES[0], {"query_id": "1", "document_ids": ["a"]}]))
    with pytest.raises(FormatError, match="expected examples, found none"):
        read_examples(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    with pytest.raises(FormatError, match="bad.jsonl:1"):
        read_examples(str(tmp_path / "bad.jsonl"))


def test_unknown_ids_are_named(tmp_path, collection):
    for row, message in (
        ({"query_id": "9", "document_ids": ["a"]}, "1 of 1 queries of the examples are not in .*for example '9'"),
        ({"query_id": "1", "document_ids": ["a", "z"]}, "1 of 2 documents that training needs are not in the corpus, for example 'z'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_examples(write(tmp_path / "ids.jsonl", [row]), str(collection))


def test_data_without_the_configured_columns_is_refused(tmp_path):
    data = read_examples(write(tmp_path / "triples.jsonl", TRIPLES))
    check_data(data, TrainingConfig(batch_size=2, num_negatives=1))
    for settings, message in (
        ({"batch_size": 3}, "--batch_size 3 is more than the 2 queries that have a positive"),
        ({"batch_size": 2, "num_negatives": 2}, "--num_negatives 2 is more than the 1 that come with the query 'one'; .*jobs.mine"),
        ({"batch_size": 2, "num_negatives": 1, "distillation_weight": 1}, "no teacher's scores; make them with jobs.mine --cross_encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_data(data, TrainingConfig(**settings))


def test_batches_order_positives_before_negatives_with_the_teachers_scores(tmp_path):
    data = read_examples(write(tmp_path / "tuples.jsonl", TUPLES))
    for epoch, batch in enumerate(islice(batches(data, 2, seed=0, num_negatives=1), 4)):
        assert batch.documents.shape == batch.teacher.shape == (2, 2) and batch.excluded.shape == (2, 4)
        for row, query in enumerate(batch.queries):
            texts = [data.documents[number] for number in batch.documents[row]]
            lists, scores = data.lists_by_query()[query], data.scores_by_query()[query]
            taken = lists[epoch % len(lists)]
            assert batch.documents[row, 0] == taken[0]
            expected = dict(zip(taken, scores[epoch % len(lists)], strict=True))
            assert batch.teacher[row].tolist() == [expected[number] for number in batch.documents[row]]
            own, known = set(range(2 * row, 2 * row + 1)), {data.documents[number] for number in data.positives(query)}
            columns = [data.documents[number] for number in batch.documents.ravel()]
            assert batch.excluded[row].tolist() == [text in known and column not in own for column, text in enumerate(columns)], texts


def test_every_hard_negative_is_used_and_the_order_can_start_at_any_step():
    data = TrainingData.of(["q", "r"], list("abcdef"), [((0, 1, 2, 3, 4),), ((5, 1, 2, 3, 4),)])
    drawn = list(islice(batches(data, 2, seed=1, num_negatives=2), 40))
    for query in (0, 1):
        taken = [batch.documents[list(batch.queries).index(query)].tolist() for batch in drawn]
        assert {documents[0] for documents in taken} == {data.lists_by_query()[query][0][0]}
        assert np.unique([documents[1:] for documents in taken]).tolist() == [1, 2, 3, 4]
        assert all(len(set(documents)) == 3 for documents in taken)
    again = list(islice(batches(data, 2, seed=1, num_negatives=2, first_batch=33), 7))
    assert [batch.documents.tolist() for batch in again] == [batch.documents.tolist() for batch in drawn[33:]]


def test_incomplete_training_sources_are_refused(tmp_path, collection):
    with pytest.raises(ConfigError, match="nothing to train on; give --dataset, --examples, or both"):
        load_training_data(TrainingSource())
    with pytest.raises(ConfigError, match="--dev_split needs the collection"):
        load_dev_set(TrainingSource(examples=write(tmp_path / "triples.jsonl", TRIPLES), dev_split="dev"))
    assert load_dev_set(TrainingSource(dataset=str(collection))) is None


def test_a_dev_set_of_another_collection_is_refused(collection):
    (collection / "qrels" / "other.tsv").write_text("query-id\tcorpus-id\tscore\n1\tnowhere\t1\n")
    with pytest.raises(ConfigError, match="none of the 1 documents that .*/other judges is in"):
        load_dev_set(TrainingSource(dataset=str(collection), dev_split="other"))
    with pytest.raises(ConfigError, match="no split 'missing' in .*; it has"):
        load_dev_set(TrainingSource(dataset=str(collection), dev_split="missing"))


def test_invalid_rows_of_the_corpus_are_counted_and_named(collection, caplog):
    with open(collection / "corpus.jsonl", "a") as file:
        file.write('{"_id": "x"}\nnot JSON\n')
    counts: dict[str, int] = {}
    load_training_data(TrainingSource(dataset=str(collection), split="dev"), counts)
    assert counts["num_dead"] == 2 and counts["queries_left_out"] > 0
    assert "2 rows of" in caplog.text and "no text" in caplog.text


def test_queries_without_a_positive_are_counted_and_left_out(collection, caplog):
    data = load_training_data(TrainingSource(dataset=str(collection), split="dev"))
    assert list(data.queries) == ["one"]
    assert "1 queries of dev have no document judged above 0 and are left out" in caplog.text


def test_training_reads_judgements_or_examples_as_configured(tmp_path, collection):
    words_folder = translated_words.write_collection(tmp_path / "words")
    pairs = load_training_data(TrainingSource(dataset=str(words_folder)))
    assert len(pairs.queries) == 96 and {len(lists) for lists in pairs.lists_by_query()} == {1}
    examples = write(tmp_path / "triples.jsonl", TRIPLES)
    assert len(load_training_data(TrainingSource(dataset=str(words_folder), examples=examples)).queries) == 2


@pytest.mark.parametrize(("limit", "expected"), [(1, "de"), (3, "ade"), (4, "abde"), (100, "abcde")])
def test_a_dev_set_has_all_judged_documents_and_a_limited_number_of_others(collection, limit, expected):
    dev = load_dev_set(TrainingSource(dataset=str(collection), dev_split="dev", dev_documents=limit))
    assert "".join(dev.documents) == expected and dev.queries == {"1": "one", "2": "two"}
    assert dev.qrels == {"1": {"d": 1}, "2": {"e": 0}} and dev.documents["d"] == "D"
