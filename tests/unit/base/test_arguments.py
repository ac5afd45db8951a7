"""Lists of texts, ids or numbers that public callables accept or refuse."""

import copy
import datetime
import io
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_lir.api.client import AsyncClient, Client, _encode, _rerank, _search
from ray_lir.base.arguments import aligned_texts, id_list, id_set, number_list, number_set, text_list, whole_number
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.update import update_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation.metrics import evaluate
from ray_lir.index.filters import Filters
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from tests.support.synthetic import collection, queries_about

DOCUMENTS = TokenEmbeddings.of(list(collection(20)))  # with the ids "0" to "19"
QUERIES = queries_about(DOCUMENTS, [3, 7])


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(DOCUMENTS, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load()


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        ("a", "b"),
        (each for each in "ab"),
        map(str.strip, [" a", "b "]),
        {"a": 1, "b": 2}.keys(),
        {1: "a", 2: "b"}.values(),
        np.array(["a", "b"]),
        np.array(["a", "b"], object),
        pa.array(["a", "b"]),
        pa.chunked_array([["a"], ["b"]]),
    ],
)
def test_every_list_of_strings_is_read_once_into_plain_strings(values):
    found = text_list("texts", values)
    assert found == ["a", "b"] and {type(each) for each in found} == {str}


def test_pandas_series_and_open_files_are_lists_of_texts():
    pandas = pytest.importorskip("pandas")
    assert text_list("texts", pandas.Series(["a", "b"], index=[7, 8])) == ["a", "b"]
    assert text_list("texts", io.StringIO("a\nb\n")) == ["a\n", "b\n"]
    with pytest.raises(ConfigError, match="strip"):
        id_list("delete", io.StringIO("a\nb\n"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("ab", "not one str"),
        (b"ab", "not one bytes"),
        ({"a": "b"}, "not a dict"),
        ({"a", "b"}, "no order"),
        (7, "not int 7"),
        (None, "not None"),
        (["a", None], "text 1 is None"),
        (["a", 7], "text 1 is int 7"),
        ([b"a"], "text 0 is bytes"),
        ([["a"]], "text 0 is list"),
        (np.array([["a"], ["b"]]), r"shape \(2, 1\)"),
        (np.array("ab"), r"shape \(\)"),
    ],
)
def test_values_that_are_not_strings_are_refused_by_type_and_position(values, message):
    with pytest.raises(ConfigError, match=message):
        text_list("texts", values)


def test_text_that_cannot_be_stored_is_refused():
    with pytest.raises(ConfigError, match="text 1 holds half of a surrogate pair"):
        aligned_texts("texts", ["a", "\ud800"], 2)


def test_ids_without_an_order_may_be_a_set():
    assert id_set("delete", {"b", "a"}) == ["a", "b"]
    with pytest.raises(ConfigError, match="not one str"):
        id_set("delete", "12")


def test_document_numbers_are_accepted_as_any_sequence_of_integers_in_range():
    for values in ([1, 0], (1, 0), iter([1, 0]), np.array([1, 0], np.uint8), [np.int32(1), np.int64(0)], np.array([1, 0], object)):
        found = number_list("numbers", values, 2)
        assert found.tolist() == [1, 0] and found.dtype == np.int64
    assert number_set("only", {1, 0}, 2).tolist() == number_set("only", [1, 0, 1], 2).tolist() == [0, 1]
    assert number_list("numbers", [], 2).tolist() == number_list("numbers", np.array([]), 2).tolist() == []
    for wrong in (
        "01",
        1,
        [1.0],
        np.array([0.5]),
        [True],
        np.array([True, False]),
        ["1"],
        [2],
        [-1],
        [2**70],
        np.array([2**63], np.uint64),
    ):
        with pytest.raises(ConfigError, match="number"):
            number_list("numbers", wrong, 2)


def test_integer_arguments_accept_numpy_integers_only_in_range():
    assert whole_number("k", np.int32(5), 1, 10) == 5
    for wrong in (True, np.True_, 5.0, "5", None, 0, 11, -1):
        with pytest.raises(ConfigError, match="k must be"):
            whole_number("k", wrong, 1, 10)


def test_a_string_is_not_taken_for_a_list_of_one_letter_ids(index):
    with pytest.raises(ConfigError, match="delete must be a list"):
        update_index(index, delete="12")
    with pytest.raises(ConfigError, match="doc_ids must be a list"):
        Searcher.open(index).find("12")
    assert Searcher.open(index).manifest.num_docs == 20
    assert update_index(index, delete={"12", "13"}).change.num_deleted == 2
    assert update_index(index, delete=(each for each in ["14"])).change.num_deleted == 1


@pytest.mark.parametrize("name", ["texts", "titles"])
def test_a_string_is_refused_where_an_index_takes_a_list_of_texts(tmp_path, name):
    for wrong in ("ab", ["a"], ["a", None], {"a", "b"}):
        with pytest.raises(ConfigError, match=f"{name} |{name[:-1]} 1"):
            build_index(collection(2), tmp_path / "out", **{name: wrong})
        with pytest.raises(ConfigError, match=f"{name} |{name[:-1]} 1"):
            save_embeddings(tmp_path / "out", collection(2), **{name: wrong})
    assert not (tmp_path / "out" / "manifest.json").exists() and not (tmp_path / "out" / "LATEST").exists()


def test_texts_from_an_iterator_are_all_encoded(encoder):
    texts = ["Zinc fingers bind DNA.", "The mitochondrion makes ATP."]
    expected = encoder.encode_documents(texts, ["a", "b"])
    for values in (iter(texts), (each for each in texts), np.array(texts)):
        found = encoder.encode_documents(values, (each for each in "ab"))
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.doc_ids == ["a", "b"]
    assert len(encoder.encode_queries(each for each in texts)) == 2
    for wrong in ("text", b"text", {"a": "b"}, ["a", None], None):
        with pytest.raises(ConfigError, match="text"):
            encoder.encode_queries(wrong)
    for ids in ("ab", [1.0, 2.0], [True, False], [None, "b"], {"a", "b"}):
        with pytest.raises(ConfigError, match="id"):
            encoder.encode_documents(texts, ids)


def test_token_embeddings_of_take_one_matrix_for_each_text():
    matrices = [np.eye(2, 8), np.eye(3, 8)]
    assert len(TokenEmbeddings.of(iter(matrices), iter(["a", "b"]))) == len(TokenEmbeddings.of(np.zeros((2, 3, 8)) + 1)) == 2
    for wrong, ids in (
        (np.eye(2, 8), None),
        ("ab", None),
        (5, None),
        ([["a"]], None),
        ([np.eye(2, 8), np.eye(2, 4)], None),
        ([[[1.0], [1.0, 2.0]]], None),
        (matrices, "ab"),
        (matrices, [1.0, 2.0]),
        (matrices, ["a"]),
        (matrices, {"a", "b"}),
    ):
        with pytest.raises(ConfigError):
            TokenEmbeddings.of(wrong, ids)
    for numbers in ([1, 2], np.array([1, 2]), range(1, 3)):
        assert TokenEmbeddings.of(matrices, numbers).doc_ids == ["1", "2"]
        assert TokenEmbeddings(np.ones((2, 8), np.float16), np.array([0, 1, 2]), numbers).doc_ids == ["1", "2"]
    with pytest.raises(ConfigError, match="doc_ids"):
        TokenEmbeddings(np.ones((2, 8), np.float16), np.array([0, 1, 2]), "ab")


def test_a_search_takes_token_embeddings_and_whole_numbers(index):
    searcher = Searcher.open(index)
    for wrong in ("text", ["text"], None, np.eye(2, 8)):
        with pytest.raises(ConfigError, match="encode_queries"):
            searcher.search(wrong)
        with pytest.raises(ConfigError, match="encode_queries"):
            explain(searcher, wrong, 0)
    for k in (True, 2.0, "2", 0, -1, None):
        with pytest.raises(ConfigError, match="k must be"):
            searcher.search(QUERIES, k)
    assert len(searcher.search(QUERIES, np.int16(2))[0].documents) == 2
    for wrong in (True, 1.0, "1", -1, 20):
        with pytest.raises(ConfigError, match="number must be|no document number 20"):
            explain(searcher, QUERIES.slice(0, 1), wrong)
    assert explain(searcher, QUERIES.slice(0, 1), np.int64(3))[0].rank == 1
    with pytest.raises(ConfigError, match="not one str"):
        searcher.documents("12")
    with pytest.raises(ConfigError, match="not int 5"):
        searcher.doc_ids(5)
    assert searcher.doc_ids(iter([5, 4])) == ["5", "4"]
    with pytest.raises(ConfigError, match="version must be"):
        Searcher.open(index, version="1")


def test_allowed_documents_are_found_once_and_deleted_ones_never(index):
    update_index(index, delete=["5"])
    searcher = Searcher.open(index)
    for only in ([7, 3, 3, 7, 5], {3, 5, 7}, np.array([7, 5, 3], np.uint8)):
        [top, _] = searcher.search(QUERIES, 10, "exact", only=only)
        assert sorted(top.documents.tolist()) == [3, 7]
    for wrong in ("3", [3.0], [True], [99], 3):
        with pytest.raises(ConfigError, match="only"):
            searcher.search(QUERIES, only=wrong)


def test_clients_and_measures_are_lists_on_the_command_line():
    assert _search(iter(["a", "b"]), {}).body.queries == ["a", "b"]
    assert _encode(np.array(["a"]), "query").body.texts == ["a"]
    assert _rerank("q", {"doc_ids": iter(["a"])}).body.doc_ids == ["a"]
    for call in (lambda: _encode("ab", "query"), lambda: _rerank("q", {"texts": "ab"}), lambda: _search(b"ab", {})):
        with pytest.raises(ConfigError, match="must be a list"):
            call()
    with pytest.raises(ConfigError, match="measures"):
        evaluate({}, {"q": {"d": 1}}, "nDCG@10")


def test_titles_and_metadata_go_in_and_come_out_as_dicts(tmp_path):
    metadata: list[Any] = [
        {"year": np.int64(1999), "rate": np.float32(0.1), "price": Decimal("1.50"), "day": datetime.date(2024, 5, 31)},
        None,
        {"nested": {"list": (1, np.bool_(True))}, "none": float("nan")},
    ]
    build_index(
        TokenEmbeddings.of(list(DOCUMENTS)[:3]), tmp_path / "index", titles=["a", "b", "c"], texts=iter("xyz"), metadata=iter(metadata)
    )
    found = Searcher.open(tmp_path / "index").documents([2, 0, 1])
    assert found[0] == {"doc_id": "2", "title": "c", "text": "z", "metadata": {"nested": {"list": [1, True]}, "none": None}}
    assert found[1]["metadata"] == {"year": 1999, "rate": 0.1, "price": 1.5, "day": "2024-05-31"}
    assert found[2]["metadata"] == {}
    more = TokenEmbeddings.of(list(DOCUMENTS)[3:5], ["3", "0"])
    update_index(tmp_path / "index", more, titles=["d", "e"], metadata=[{"year": 1}, {"year": 2}])
    searcher = Searcher.open(tmp_path / "index")
    [row] = searcher.documents([searcher.find(["0"])["0"]])
    assert (row["title"], row["metadata"]) == ("e", {"year": 2})


@pytest.mark.parametrize("wrong", ["ab", [{}], [{}, "{}"], [{}, {1: 2}], [{}, {"a": {1, 2}}], {"a": 1}, [{}, {"a": "\ud800"}]])
def test_metadata_that_is_not_a_list_of_dicts_is_refused(tmp_path, index, wrong):
    with pytest.raises(ConfigError, match="metadata"):
        build_index(collection(2), tmp_path / "out", metadata=wrong)
    with pytest.raises(ConfigError, match="metadata"):
        update_index(index, collection(2), metadata=wrong)


def test_a_folder_of_embeddings_has_its_own_texts(tmp_path, index):
    save_embeddings(tmp_path / "embeddings", collection(2))
    with pytest.raises(ConfigError, match="takes titles only with TokenEmbeddings"):
        build_index(tmp_path / "embeddings", tmp_path / "out", titles=["a", "b"])
    with pytest.raises(ConfigError, match="takes texts only with TokenEmbeddings"):
        update_index(index, tmp_path / "embeddings", texts=["a", "b"])


def test_objects_can_be_pickled_and_copied_at_any_time(index, encoder):
    searcher = Searcher.open(index)
    searcher.search(QUERIES, 3, "plaid")
    searcher.search(QUERIES, 3, filters=Filters.model_validate({"where": {"op": "exists", "field": "a"}}))
    searcher.find(["1"])
    encoder.encode_queries(["text"])
    expected = searcher.search(QUERIES, 3, "warp")
    for clone in (pickle.loads(pickle.dumps(searcher)), copy.deepcopy(searcher)):
        for found, want in zip(clone.search(QUERIES, 3, "warp"), expected, strict=True):
            assert found.documents.tolist() == want.documents.tolist() and found.scores.tolist() == want.scores.tolist()
    for each in (searcher.planner, searcher.shards[0], encoder, encoder.tokenizer, Client("http://h:1", "t"), AsyncClient()):
        pickle.loads(pickle.dumps(each))
        copy.deepcopy(each)
    assert pickle.loads(pickle.dumps(Client("http://h:1", "t")))._settings == ("http://h:1", "t", 60.0, None)
