"""Readers of test collections: BEIR and its Parquet exports, CQADupStack, LoTTE, MS MARCO, ir_datasets, and downloads."""

import functools
import gzip
import http.server
import json
import tarfile
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets import all_queries, document_ids, find_corpus, load_dataset, load_datasets
from ray_lir.corpus.records import corpus_files, read_documents
from ray_lir.search.bulk import query_files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def beir(folder: Path, query: str = "1") -> Path:
    write(folder / "queries.jsonl", json.dumps({"_id": query, "text": f"question {query}"}))
    write(folder / "corpus.jsonl", json.dumps({"_id": "d1", "title": "t", "text": "x"}))
    write(folder / "qrels/test.tsv", f"query-id\tcorpus-id\tscore\n{query}\td1\t1\n")
    return folder


def lotte(folder: Path, split: str = "test") -> Path:
    """A topic of LoTTE."""
    write(folder / split / "collection.tsv", "0\tfirst passage\n1\tsecond\u2028passage\n2\tthird\n")
    write(folder / split / "metadata.jsonl", '{"dataset": "x"}\n')
    write(folder / split / "questions.search.tsv", "0\twhat is it\n1\twhy\n")
    write(folder / split / "qas.search.jsonl", '{"qid": 0, "query": "what is it", "answer_pids": [0, 2]}\n{"qid": 1, "answer_pids": [1]}\n')
    write(folder / split / "questions.forum.tsv", "0\thow do I\n")
    write(folder / split / "qas.forum.jsonl", '{"qid": 0, "query": "how do I", "answer_pids": [1]}\n')
    return folder


def marco(folder: Path) -> Path:
    write(folder / "collection.tsv", "0\ta passage\n7\tanother passage\n")
    write(folder / "queries.dev.small.tsv", "2\tandrogen receptor\n3\tunjudged\n")
    write(folder / "qrels.dev.small.tsv", "2\t0\t7\t1\n")
    write(folder / "queries.train.tsv", "121352\tdefine extreme\n")
    write(folder / "qrels.train.tsv", "121352 7 1\n")
    write(folder / "msmarco-test2019-queries.tsv.gz", "19335\tanthropological definition\n47923\taxon\n")
    write(folder / "2019qrels-pass.txt", "19335 Q0 7 0\n19335 Q0 0 3\n")
    return folder


def test_a_lotte_topic_is_two_data_sets(tmp_path):
    search, forum = load_datasets(str(lotte(tmp_path / "lifestyle")))
    assert (search.name, forum.name, search.split) == ("lifestyle.search", "lifestyle.forum", "test")
    assert search.queries == {"0": "what is it", "1": "why"} and forum.queries == {"0": "how do I"}
    assert search.qrels == {"0": {"0": 1, "2": 1}, "1": {"1": 1}}
    assert search.corpus == forum.corpus == str(tmp_path / "lifestyle/test")
    assert {each.doc_id: each.text for each in read_documents(search.corpus)} == {
        "0": "first passage",
        "1": "second\u2028passage",
        "2": "third",
    }
    assert document_ids(search) == {"0", "1", "2"}
    assert list(all_queries(search.corpus)) == [("0", "how do I"), ("0", "what is it"), ("1", "why")]


@pytest.mark.parametrize("place", ["lifestyle", "lifestyle/test"])
@pytest.mark.parametrize("split", ["search", "test.search"])
def test_one_kind_of_lottes_questions(tmp_path, place, split):
    lotte(tmp_path / "lifestyle")
    assert load_dataset(tmp_path / place, split).name == "lifestyle.search"
    with pytest.raises(
        ConfigError, match=r"holds 2 data sets \(lifestyle.search, lifestyle.forum\).*set --split test.search or test.forum"
    ):
        load_dataset(tmp_path / place)


def test_the_folder_of_lotte_gives_all_topics(tmp_path):
    for topic in ("writing", "pooled"):
        lotte(tmp_path / "lotte" / topic)
        lotte(tmp_path / "lotte" / topic, "dev")
    assert [each.name for each in load_datasets(str(tmp_path / "lotte"), "dev")] == [
        "pooled.search",
        "pooled.forum",
        "writing.search",
        "writing.forum",
    ]
    assert [each.name for each in load_datasets(str(tmp_path / "lotte"), "test.forum")] == ["pooled.forum", "writing.forum"]
    with pytest.raises(ConfigError, match="no split 'train'.*it has dev, test"):
        load_datasets(str(tmp_path / "lotte"), "train")
    with pytest.raises(ConfigError, match="it is the split dev; set --split dev"):
        load_datasets(str(tmp_path / "lotte/writing/dev"))


@pytest.mark.parametrize("name", ["questions.search.tsv", "qas.search.jsonl", "qas.forum.jsonl"])
def test_a_missing_file_of_lotte_is_named(tmp_path, name):
    (lotte(tmp_path / "lifestyle") / "test" / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}.*no such file.*get the whole LoTTE archive") as error:
        load_datasets(str(tmp_path / "lifestyle"))
    assert "\n" not in str(error.value)


def test_lotte_without_its_collection_has_no_corpus(tmp_path):
    (lotte(tmp_path / "lifestyle") / "test/collection.tsv").unlink()
    with pytest.raises(ConfigError, match="LoTTE's collection.tsv is missing"):
        corpus_files(tmp_path / "lifestyle/test")


@pytest.mark.parametrize(
    "line", ["[]", '{"qid": 0}', '{"qid": 0, "answer_pids": 3}', '{"qid": [], "answer_pids": [1]}', "{", '{"qid": 5.5, "answer_pids": []}']
)
def test_a_malformed_answer_of_the_lotte_server_is_a_one_line_error(tmp_path, line):
    write(lotte(tmp_path / "l") / "test/qas.forum.jsonl", line + "\n")
    with pytest.raises(FormatError, match="qas.forum.jsonl line 1"):
        load_datasets(str(tmp_path / "l"))


@pytest.mark.parametrize(
    ("split", "name", "query", "qrels"),
    [
        ("dev", "dev.small", "androgen receptor", {"2": {"7": 1}}),
        ("dev.small", "dev.small", "androgen receptor", {"2": {"7": 1}}),
        ("train", "train", "define extreme", {"121352": {"7": 1}}),
        ("trec-dl-2019", "trec-dl-2019", "anthropological definition", {"19335": {"7": 0, "0": 3}}),
        ("dl19", "trec-dl-2019", "anthropological definition", {"19335": {"7": 0, "0": 3}}),
        ("2019", "trec-dl-2019", "anthropological definition", {"19335": {"7": 0, "0": 3}}),
    ],
)
def test_the_splits_of_ms_marco(tmp_path, split, name, query, qrels):
    dataset = load_dataset(marco(tmp_path / "msmarco"), split)
    assert (dataset.name, dataset.split, list(dataset.queries.values()), dataset.qrels) == ("msmarco", name, [query], qrels)
    assert document_ids(dataset) == {"0", "7"}


def test_ms_marco_names_what_is_missing(tmp_path):
    folder = marco(tmp_path)
    with pytest.raises(ConfigError, match="no split 'test'.*it has dev.small, train, trec-dl-2019"):
        load_dataset(folder)
    (folder / "queries.train.tsv").unlink()
    with pytest.raises(FormatError, match="queries.train.tsv.*no such file"):
        load_dataset(folder, "train")
    write(folder / "queries.train.tsv", "5\tother\n")
    with pytest.raises(FormatError, match="the text of query '121352', which qrels.train.tsv judges"):
        load_dataset(folder, "train")
    write(folder / "queries.train.tsv", "no tab\n")
    with pytest.raises(FormatError, match="queries.train.tsv line 1: expected query id <tab> text"):
        load_dataset(folder, "train")


def test_a_folder_with_queries_tsv_has_the_split_test(tmp_path):
    write(tmp_path / "queries.tsv", "1\tq\n")
    write(tmp_path / "qrels.tsv", "1 0 3 1\n")
    assert load_dataset(tmp_path).qrels == {"1": {"3": 1}}


@pytest.mark.parametrize("layout", ["qrels", "data", "beside"])
def test_parquet_exports_of_beir(tmp_path, layout):
    folder = tmp_path / "scifact"
    for name in ("corpus", "queries"):
        (folder / name).mkdir(parents=True)
    pq.write_table(pa.table({"_id": ["4", "5"], "title": ["t", ""], "text": ["a", "b"]}), folder / "corpus/corpus-00000-of-00001.parquet")
    for part in (0, 1):
        table = pa.table({"_id": [f"q{part}"], "title": [""], "text": [f"question {part}"]})
        pq.write_table(table, folder / f"queries/queries-0000{part}-of-00002.parquet")
    judged = pa.table({"query-id": ["q1", "q1"], "corpus-id": pa.array([4, 5], pa.int64()), "score": [1.0, 0.0]})
    place = {"qrels": folder / "qrels/test.parquet", "data": folder / "data/test-00000-of-00001.parquet"}.get(layout)
    if place:
        place.parent.mkdir()
        pq.write_table(judged, place)
    else:
        write(tmp_path / "scifact-qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\t4\t1\nq1\t5\t0\n")
    dataset = load_dataset(folder)
    assert dataset.queries == {"q1": "question 1"} and dataset.qrels == {"q1": {"4": 1, "5": 0}}
    assert document_ids(dataset) == {"4", "5"} and len(list(all_queries(str(folder)))) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query-id": ["a"], "corpus-id": ["b"]}, "expected the columns query-id, corpus-id and score"),
        ({"query-id": ["a"], "corpus-id": ["b"], "score": [0.5]}, "row 1: expected a whole number as grade, found 0.5"),
        ({"query-id": ["a"], "corpus-id": [None], "score": [1]}, "row 1: expected ids"),
    ],
)
def test_malformed_judgements_in_parquet(tmp_path, columns, message):
    folder = beir(tmp_path)
    (folder / "qrels/test.tsv").unlink()
    pq.write_table(pa.table(columns), folder / "qrels/test.parquet")
    with pytest.raises(FormatError, match=message):
        load_dataset(folder)


def test_columns_of_ids_count_before_columns_of_texts(tmp_path):
    folder = beir(tmp_path)
    (folder / "qrels/test.tsv").unlink()
    columns = {"query": ["a text"], "query-id": [1], "document": ["a text"], "corpus-id": ["d1"], "score": [2]}
    pq.write_table(pa.table(columns), folder / "qrels/test.parquet")
    assert load_dataset(folder).qrels == {"1": {"d1": 2}}


def test_a_beir_folder_with_a_table_of_queries_stays_a_beir_folder(tmp_path):
    folder = beir(tmp_path)
    expected = load_dataset(folder)
    write(folder / "queries.tsv", "x\tanother query\n")
    assert load_dataset(folder) == expected


def test_cqadupstack_is_its_parts(tmp_path):
    for part in ("android", "english"):
        beir(tmp_path / "cqadupstack" / part, part)
    assert [(each.name, list(each.queries)) for each in load_datasets(str(tmp_path / "cqadupstack"))] == [
        ("android", ["android"]),
        ("english", ["english"]),
    ]
    with pytest.raises(ConfigError, match=r"holds 2 data sets \(android, english\), and one is needed here; give one of them"):
        load_dataset(tmp_path / "cqadupstack")


def test_several_places_have_distinct_names(tmp_path):
    beir(tmp_path / "a/same"), beir(tmp_path / "b/same")
    found = load_datasets(f"{tmp_path}/a/same, {tmp_path}/b/same")
    assert [each.name for each in found] == ["a.same", "b.same"]
    with pytest.raises(ConfigError, match="given twice"):
        load_datasets((f"{tmp_path}/a/same", f"{tmp_path}/a/same"))
    with pytest.raises(ConfigError, match="no dataset is given"):
        load_datasets(())
    beir(tmp_path / "with, comma")
    assert [each.name for each in load_datasets(f"{tmp_path}/with, comma")] == ["with, comma"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7\tpassage\n", ("7", "", "passage")),
        ("7\tpassage\ttitle\n", ("7", "title", "passage")),
        ("7\thttp://x\ttitle\tbody\n", ("7", "title", "body")),
        ("id\ttext\ttitle\n7\tpassage\tname\n", ("7", "name", "passage")),
        ("id\ttitle\ttext\n7\tname\tpassage\n", ("7", "name", "passage")),
    ],
)
@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz"])
def test_rows_of_a_collection_in_tsv(tmp_path, text, expected, name):
    write(tmp_path / name, text)
    assert [(each.doc_id, each.title, each.text) for each in read_documents(tmp_path)] == [expected]


def test_malformed_rows_of_a_tsv_collection_are_refused(tmp_path, caplog):
    (tmp_path / "collection.tsv").write_bytes(b"no tab\n3\tx\xff\n\tno id\n4\tgood\n4\tagain\n1\t2\t3\t4\t5\n")
    assert [each.doc_id for each in read_documents(tmp_path)] == ["4"]
    for reason in ("5 rows", "no text", "not UTF-8", "_id is empty"):
        assert reason in caplog.text


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local web server in place of the sources of collections; yields the folder that it serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    for name, pattern in (("BEIR_URL", "{}.zip"), ("LOTTE_URL", "{}"), ("MSMARCO_URL", "{}"), ("TREC_URL", "{}")):
        monkeypatch.setattr(f"ray_lir.corpus.datasets.downloads.{name}", f"http://127.0.0.1:{httpd.server_port}/{pattern}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_lotte_is_downloaded_once(tmp_path, server):
    lotte(tmp_path / "lotte/writing")
    with tarfile.open(server / "lotte.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "lotte", "lotte")
    assert [each.name for each in load_datasets("lotte")] == ["writing.search", "writing.forum"]
    (server / "lotte.tar.gz").unlink()
    assert load_dataset("lotte/writing", "search").queries == {"0": "what is it", "1": "why"}
    assert len(list(read_documents(find_corpus("lotte/writing/test")))) == 3
    with pytest.raises(ConfigError, match="no dataset lotte/nothing: there is no folder"):
        load_datasets("lotte/nothing")


def test_ms_marco_is_downloaded_with_its_single_files(tmp_path, server):
    folder = marco(tmp_path / "files")
    with tarfile.open(server / "collectionandqueries.tar.gz", "w:gz") as archive:
        write(folder / "queries.dev.tsv", "2\tandrogen receptor\n")
        for name in ("collection.tsv", "queries.dev.tsv", "qrels.dev.small.tsv"):
            archive.add(folder / name, name)
    with pytest.raises(ConfigError, match="cannot download the dataset msmarco-passage from http://127.0.0.1:.*/qrels.dev.tsv"):
        load_dataset("msmarco-passage", "dev")  # the server lacks the other files
    assert not list((tmp_path / "cache/ray_lir/msmarco").iterdir())
    write(server / "qrels.dev.tsv", "2\t0\t0\t1\n")
    for year in (2019, 2020):
        write(server / f"msmarco-test{year}-queries.tsv.gz", "19335\tanthropological definition\n")
        write(server / f"{year}qrels-pass.txt", "19335 Q0 0 3\n")
    assert load_dataset("msmarco-passage", "dev").qrels == {"2": {"0": 1}}
    assert load_dataset("msmarco-passage", "dl20").queries == {"19335": "anthropological definition"}


def test_a_folder_of_collections_is_no_corpus_but_names_one(tmp_path):
    lotte(tmp_path / "lotte/writing")
    with pytest.raises(ConfigError, match=r"no corpus at .*/lotte: .*; give one of its folders, such as .*/lotte/writing$"):
        corpus_files(tmp_path / "lotte")
    with pytest.raises(ConfigError, match=r"; give one of its folders, such as .*/writing/test$"):
        corpus_files(tmp_path / "lotte/writing")
    (tmp_path / "judgements/qrels").mkdir(parents=True)
    with pytest.raises(ConfigError, match="; convert it or check the path"):
        corpus_files(tmp_path / "judgements")


def test_documents_of_a_collection_are_never_taken_for_queries(tmp_path):
    with pytest.raises(ConfigError, match=r"has 2 sets of queries; give one of the files questions.forum.tsv, questions.search.tsv"):
        query_files(lotte(tmp_path / "writing") / "test")
    with pytest.raises(ConfigError, match=r"has 3 sets of queries; give one of the files msmarco-test2019-queries.tsv.gz, "):
        query_files(marco(tmp_path / "marco"))
    (tmp_path / "writing/test/questions.forum.tsv").unlink()
    assert query_files(tmp_path / "writing/test") == [str(tmp_path / "writing/test/questions.search.tsv")]
    (beir(tmp_path / "beir") / "queries.jsonl").unlink()
    with pytest.raises(FormatError, match="expected queries.jsonl or queries.jsonl.gz, found neither"):
        query_files(tmp_path / "beir")
    write(tmp_path / "plain/part-1.jsonl", "{}")
    assert query_files(tmp_path / "plain") == [str(tmp_path / "plain/part-1.jsonl")]


def test_a_part_of_cqadupstack_is_downloaded_by_name(tmp_path, server):
    beir(tmp_path / "cqadupstack/android")
    with zipfile.ZipFile(server / "cqadupstack.zip", "w") as archive:
        for file in (tmp_path / "cqadupstack").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    assert load_dataset("cqadupstack/android").name == "android"
    assert len(load_datasets("cqadupstack")) == 1


@pytest.mark.parametrize("content", [b"", b"no archive", "cut"])
def test_a_damaged_archive_is_a_one_line_error_and_leaves_nothing(tmp_path, server, content):
    if content == "cut":
        lotte(tmp_path / "lotte/writing")
        with tarfile.open(server / "lotte.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "lotte", "lotte")
        content = (server / "lotte.tar.gz").read_bytes()[:-40]
    (server / "lotte.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot download the dataset lotte"):
        load_datasets("lotte")
    assert not list((tmp_path / "cache/ray_lir/colbert").iterdir())


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A collection of the package ir_datasets, made of local files; yields its identifier."""
    ir_datasets = pytest.importorskip("ir_datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = ir_datasets.create_dataset(
        docs_tsv=str(write(tmp_path / "docs.tsv", "d1\tfirst\nd2\tsecond\n")),
        queries_tsv=str(write(tmp_path / "queries.tsv", "1\twhy\n2\tunjudged\n")),
        qrels_trec=str(write(tmp_path / "qrels.txt", "1 0 d2 2\n")),
    )
    known = ir_datasets.load
    monkeypatch.setattr(ir_datasets, "load", lambda name: local if name == "local/tiny/test" else known(name))
    return "ir_datasets:local/tiny/test"


def test_an_identifier_of_ir_datasets(tmp_path, registered):
    dataset = load_dataset(registered)
    assert (dataset.name, dataset.split, dataset.corpus) == ("local.tiny.test", "test", registered)
    assert dataset.queries == {"1": "why"} and dataset.qrels == {"1": {"d2": 2}}
    assert document_ids(dataset) == {"d1", "d2"} and list(all_queries(registered)) == [("1", "why"), ("2", "unjudged")]
    corpus = find_corpus(registered)
    assert [(each.doc_id, each.text) for each in read_documents(corpus)] == [("d1", "first"), ("d2", "second")]
    assert find_corpus(registered) == corpus == str(tmp_path / "cache/ray_lir/ir_datasets/local.tiny.test/corpus.jsonl")


def test_a_failing_download_of_ir_datasets_is_one_line(registered, monkeypatch):
    import ir_datasets

    def fail(*_):
        raise OSError("no\nnetwork")

    known = ir_datasets.load("local/tiny/test")
    for name in ("docs_iter", "queries_iter", "qrels_iter"):
        monkeypatch.setattr(known, name, fail, raising=False)
    for read in (load_dataset, find_corpus, lambda place: list(all_queries(place))):
        with pytest.raises(ConfigError, match=r"^ir_datasets cannot read ir_datasets:local/tiny/test \(no network\); without network"):
            read(registered)


def test_unknown_identifiers_and_a_missing_package_are_one_line_errors(monkeypatch):
    pytest.importorskip("ir_datasets")
    with pytest.raises(ConfigError, match="ir_datasets has no collection 'nowhere/at-all'"):
        load_dataset("ir_datasets:nowhere/at-all")
    monkeypatch.setattr("ray_lir.base.extras.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=r"needs the package ir-datasets, which is not installed; run: pip install 'ray_lir\[datasets\]'"):
        load_dataset("ir_datasets:beir/scifact/test")
