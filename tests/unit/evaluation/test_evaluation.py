"""Evaluation: collections, measures against golden vectors, run files, the oracle."""

import gzip
import json
import os
import shutil
import zipfile
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.evaluation import metrics, oracle
from ray_lir.evaluation.latency import percentiles_ms, time_each
from ray_lir.evaluation.runs import read_run, write_run
from tests.support.repository import GOLDEN


def make_dataset(folder: Path, queries: str, qrels: str, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / f"{split}.tsv").write_text(qrels)
    return folder


QUERIES = '{"_id": "q1", "text": "lift of a wing"}\n{"_id": "q2", "text": "heat"}\n{"_id": "q3", "text": "nobody judged me"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq2\td1\t2\nq1\td2\t1\nq1\td3\t0\n"


def test_a_dataset_has_the_judged_queries_of_its_split_only(tmp_path):
    folder = make_dataset(tmp_path / "wings", QUERIES, QRELS)
    make_dataset(tmp_path / "wings", QUERIES, "query-id\tcorpus-id\tscore\nq3\td1\t1\n", split="dev")
    dataset = load_dataset(str(folder))
    assert (dataset.name, dataset.split, dataset.corpus) == ("wings", "test", str(folder))
    assert dataset.queries == {"q2": "heat", "q1": "lift of a wing"}
    assert dataset.qrels == {"q2": {"d1": 2}, "q1": {"d2": 1, "d3": 0}}
    assert list(load_dataset(f"file://{folder}", "dev").queries) == ["q3"]


def test_a_dataset_may_be_compressed_and_have_windows_line_ends(tmp_path):
    folder = make_dataset(tmp_path, QUERIES, QRELS.replace("\n", "\r\n"))
    plain = load_dataset(str(folder))
    (folder / "queries.jsonl").unlink()
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(QUERIES.encode()))
    assert load_dataset(str(folder)) == plain


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        (QUERIES + "{nonsense\n", QRELS, "queries.jsonl line 4: expected a JSON object"),
        (QUERIES + '{"_id": 1.5, "text": "x"}\n', QRELS, "queries.jsonl line 4: expected a JSON object with an _id"),
        (QUERIES + '{"_id": "7", "text": 1}\n', QRELS, "queries.jsonl line 4: expected a JSON object whose text is a string"),
        (QUERIES + '{"_id": 7, "text": "x"}\n{"_id": "7", "text": "y"}\n', QRELS, "queries.jsonl line 5: expected each _id once"),
        (QUERIES + QUERIES, QRELS, "queries.jsonl line 4: expected each _id once, found 'q1'"),
        (QUERIES, QRELS + "q1\td4\n", "test.tsv line 5: expected query-id <tab> corpus-id <tab> whole number, found q1\td4"),
        (QUERIES, QRELS + "q1\td4\t0.5\n", "test.tsv line 5"),
        (QUERIES, "kind\twho\twhat\n" + QRELS, "test.tsv line 1: expected query-id <tab> corpus-id <tab> whole number, found kind"),
        (QUERIES, QRELS + "q1\td4\t2147483648\n", "test.tsv line 5: expected a grade from -1000000 to 1000000, found 2147483648"),
        (QUERIES, QRELS + f"q1\td4\t-{10**30}\n", "test.tsv line 5: expected a grade from -1000000"),
        (QUERIES, QRELS + "q1\td2\t3\n", "test.tsv line 5: expected one grade of document 'd2' for query 'q1', found 3 after 1"),
        (QUERIES, QRELS + "\td2\t3\n", "test.tsv line 5: expected query-id <tab>"),
        (QUERIES, QRELS + "q1\td4\tnan\n", "test.tsv line 5: expected query-id <tab>"),
        (QUERIES, "", "expected judgements, found none"),
        (QUERIES, "query-id\tcorpus-id\tscore\n", "expected judgements, found none"),
        (QUERIES, QRELS + "q9\td1\t1\n", "expected the text of query 'q9', which qrels/test.tsv judges, found no such query"),
    ],
)
def test_a_malformed_dataset_is_refused_with_file_and_line(tmp_path, queries, qrels, message):
    with pytest.raises(FormatError) as error:
        load_dataset(str(make_dataset(tmp_path, queries, qrels)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "qrels",
    [
        QRELS.replace("query-id\tcorpus-id\tscore\n", ""),
        "query_id\tdoc_id\tRelevance\n" + QRELS.partition("\n")[2],
        "\ufeff" + QRELS,
        "q2 0 d1 2\nq1 0 d2 1\nq1 Q0 d3 0\n",
        "q2\t0\td1\t2\nq1\t0\td2\t1\nq1\t0\td3\t0\n",
        "query-id\titeration\tcorpus-id\tscore\nq2\t0\td1\t2\nq1\t0\td2\t1\nq1\t0\td3\t0\n",
        QRELS.replace("\t2\n", "\t2.0\n").replace("\t1\n", "\t+1\n"),
        QRELS + "q1\td2\t1\n\n",
    ],
)
def test_judgements_are_read_with_or_without_a_header_and_in_the_columns_of_trec(tmp_path, qrels):
    assert load_dataset(str(make_dataset(tmp_path, QUERIES, qrels))).qrels == {"q2": {"d1": 2}, "q1": {"d2": 1, "d3": 0}}


def test_judgements_may_be_compressed(tmp_path):
    folder = make_dataset(tmp_path, QUERIES, QRELS)
    (folder / "qrels" / "dev.tsv.gz").write_bytes(gzip.compress(QRELS.encode()))
    assert load_dataset(str(folder), "dev").qrels == load_dataset(str(folder)).qrels
    with pytest.raises(ConfigError, match="it has dev, test"):
        load_dataset(str(folder), "train")


def test_a_negative_grade_is_irrelevant_and_a_grade_beyond_trec_eval_is_refused():
    run = {"q": [("b", 2.0), ("a", 1.0)]}
    assert metrics.means(metrics.evaluate(run, {"q": {"a": 1, "b": -2}}, ["RR@10"])) == {"RR@10": 0.5}
    with pytest.raises(ConfigError, match="grades must lie between"):
        metrics.evaluate(run, {"q": {"a": 2**31}}, ["RR@10"])


def test_a_missing_split_is_refused_with_the_existing_splits(tmp_path):
    make_dataset(tmp_path, QUERIES, QRELS, split="train")
    make_dataset(tmp_path, QUERIES, QRELS, split="dev")
    with pytest.raises(ConfigError, match="no split 'test' in .*; it has dev, train"):
        load_dataset(str(tmp_path))


def test_a_truncated_gzip_file_and_wrong_bytes_are_refused(tmp_path):
    folder = make_dataset(tmp_path, "", QRELS)
    (folder / "queries.jsonl").write_bytes(QUERIES.encode() + b'{"_id": "q4", "text": "\xff"}\n')
    with pytest.raises(FormatError, match="queries.jsonl line 4: expected UTF-8"):
        load_dataset(str(folder))
    (folder / "queries.jsonl").unlink()
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(QUERIES.encode())[:-20])
    with pytest.raises(FormatError, match="expected a whole gzip file"):
        load_dataset(str(folder))


def test_a_wrong_path_names_the_datasets_that_can_be_downloaded():
    with pytest.raises(ConfigError, match="no dataset /nowhere/scifact: it is neither a folder nor one of BEIR's arguana, .*scifact"):
        load_dataset("/nowhere/scifact")


@pytest.fixture
def beir_server(tmp_path, monkeypatch):
    """Serve zip archives over HTTP in place of BEIR's server; yield the served folder."""
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("ray_lir.corpus.datasets.downloads.BEIR_URL", f"http://127.0.0.1:{server.server_port}/{{}}.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_beir_name_is_downloaded_once_and_then_read_from_the_cache(beir_server, tmp_path):
    with pytest.raises(ConfigError, match="cannot download the BEIR dataset scifact from http.*; without network, give its folder"):
        load_dataset("scifact")  # the server answers 404 with a page that is not an archive
    source = make_dataset(tmp_path / "scifact", QUERIES, QRELS)
    with zipfile.ZipFile(beir_server / "scifact.zip", "w") as archive:
        for file in source.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    dataset = load_dataset("scifact")
    assert dataset.queries == load_dataset(str(source)).queries
    (beir_server / "scifact.zip").unlink()
    assert load_dataset("scifact") == dataset
    assert os.listdir(tmp_path / "cache" / "ray_lir" / "beir") == ["scifact"]


def test_measures_match_the_golden_vectors():
    golden = np.load(GOLDEN / "metrics.npz")
    run = {f"q{a}": [(f"d{b}", 0.0) for b in documents] for a, documents in enumerate(golden["run"])}
    qrels = {f"q{a}": {f"d{b}": int(grade) for b, grade in enumerate(grades)} for a, grades in enumerate(golden["rels"])}
    names = {"nDCG@10": "ndcg10", "R@10": "recall10", "R@20": "recall20", "RR@10": "mrr10", "Success@5": "success5"}
    values = metrics.evaluate(run, qrels, tuple(names))
    for name, expected in names.items():
        np.testing.assert_allclose([values[name][query_id] for query_id in run], golden[expected], atol=1e-12, err_msg=name)
    assert metrics.means(values)["nDCG@10"] == pytest.approx(golden["ndcg10"].mean())


def test_a_judged_query_without_results_counts_as_zero():
    qrels = {"q1": {"d1": 1}, "q2": {"d1": 1}}
    values = metrics.evaluate({"q1": [("d1", 1.0)], "unjudged": [("d1", 1.0)]}, qrels)
    assert values["nDCG@10"] == {"q1": 1.0, "q2": 0.0}
    assert set(metrics.means(values).values()) == {0.5}
    assert set(metrics.means(metrics.evaluate({}, qrels)).values()) == {0.0}


def test_ndcg_uses_grades_as_linear_gains():
    values = metrics.evaluate({"q": [("good", 2.0), ("best", 1.0)]}, {"q": {"good": 1, "best": 3}})
    assert values["nDCG@10"]["q"] == pytest.approx((1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3)))


def test_expected_reciprocal_rank_of_queries_whose_ids_are_words():
    if not shutil.which("perl"):
        pytest.skip("ir-measures computes ERR with perl")
    values = metrics.evaluate({"q": [("good", 2.0), ("bad", 1.0)]}, {"r": {"x": 1}, "q": {"good": 2, "bad": -1}}, ["ERR@5"])
    assert values["ERR@5"] == {"r": 0.0, "q": pytest.approx(3 / 16)}


def test_a_measure_that_fails_on_these_judgements_is_one_line():
    with pytest.raises(ConfigError, match=r"ir-measures cannot compute Accuracy here \(.*division by zero\); leave that measure out"):
        metrics.evaluate({"q": [("good", 1.0)]}, {"q": {"good": 1}}, ["Accuracy"])


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]])
def test_equal_scores_keep_our_order_in_the_measures_and_in_the_run_file(tmp_path, order):
    qrels = {"q": {order[1]: 1}}
    run = {"q": [(doc_id, 7.25) for doc_id in order]}
    assert metrics.evaluate(run, qrels, ("RR@10", "nDCG@10")) == {"RR@10": {"q": 0.5}, "nDCG@10": {"q": 1 / np.log2(3)}}
    path = tmp_path / "test.run"
    write_run(str(path), run, "ray_lir")
    with open(path) as file:  # another evaluator sees only the scores in the file
        outside = ir_measures.calc_aggregate([ir_measures.RR, ir_measures.nDCG @ 10], qrels, list(ir_measures.read_trec_run(file)))
    assert set(outside.values()) == {0.5, 1 / np.log2(3)}
    assert [doc_id for doc_id, _ in read_run(str(path))["q"]] == order


def test_a_run_survives_its_file_with_every_digit(tmp_path):
    scores = np.sort(np.random.default_rng(0).normal(20, 1e-4, 200).astype(np.float32))[::-1]
    scores = np.unique(scores)[::-1]
    run = {"q1": [(f"d{i}", float(score)) for i, score in enumerate(scores)], "q2": [("d0", -1.5e-30)]}
    path = tmp_path / "runs" / "test.run"
    write_run(str(path), run, "mine")
    assert path.read_text().splitlines()[0].split() == ["q1", "Q0", "d0", "1", f"{scores[0]:.9g}", "mine"]
    back = read_run(str(path))
    assert {query_id: [doc_id for doc_id, _ in ranking] for query_id, ranking in back.items()} == {
        query_id: [doc_id for doc_id, _ in ranking] for query_id, ranking in run.items()
    }
    np.testing.assert_array_equal(np.float32([score for _, score in back["q1"]]), scores)


def test_a_run_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="'two words', which is empty or contains white space"):
        write_run(str(tmp_path / "test.run"), {"q": [("two words", 1.0)]}, "ray_lir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"), [("q Q0 d 1 2.5", "line 2"), ("q Q0 d 1 high tag", "line 2"), ("q Q0 d1 2 0.5 tag", "twice for query q")]
)
def test_a_malformed_run_is_refused_with_the_line(tmp_path, line, message):
    (tmp_path / "test.run").write_text(f"q Q0 d1 1 1.0 tag\n{line}\n")
    with pytest.raises(FormatError, match=message):
        read_run(str(tmp_path / "test.run"))


def test_measures_deeper_than_the_run_are_left_out():
    assert metrics.measures_up_to(100) == metrics.MEASURES
    assert metrics.measures_up_to(10) == ("nDCG@10", "RR@10", "Success@5", "R@10")
    assert metrics.measures_up_to(3) == ()


def test_identical_ids_can_be_left_out_of_the_hits():
    run = {"a": [("a", 3.0), ("b", 2.0)], "c": [("b", 1.0)]}
    assert metrics.without_identical_ids(run) == {"a": [("b", 2.0)], "c": [("b", 1.0)]}


def random_texts(rng: np.random.Generator, lengths: list[int], prefix: str) -> TokenEmbeddings:
    matrices = [rng.normal(size=(length, 16)) for length in lengths]
    return TokenEmbeddings.of(matrices, [f"{prefix}{i}" for i in range(len(lengths))])


def naive_scores(queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
    def score(query: np.ndarray, document: np.ndarray) -> float:
        if not len(document):
            return -np.inf
        return sum(max(float(q.astype(np.float64) @ d.astype(np.float64)) for d in document) for q in query)

    return np.array([[score(query, document) for document in documents] for query in queries])


def test_the_oracle_is_maxsim(monkeypatch):
    rng = np.random.default_rng(1)
    queries = random_texts(rng, [3, 1, 9, 2, 4], "q")
    documents = random_texts(rng, [5, 0, 2, 1, 0, 7, 0], "d")
    expected = naive_scores(queries, documents)
    for query_tokens in (1, 5, 1024):
        monkeypatch.setattr(oracle, "QUERY_TOKENS", query_tokens)
        np.testing.assert_allclose(oracle.maxsim(queries, documents), expected, rtol=1e-5)


def test_the_oracle_does_not_depend_on_block_sizes():
    rng = np.random.default_rng(2)
    queries = random_texts(rng, [3, 5], "q")
    documents = random_texts(rng, [4, 0, 2, 6, 1, 3, 3, 0, 5, 2], "d")
    scores = naive_scores(queries, documents)
    whole = oracle.exact_run([documents], queries, k=4)
    for q, ranking in enumerate(whole.values()):
        best = np.argsort(-scores[q], kind="stable")[:4]
        assert [doc_id for doc_id, _ in ranking] == [f"d{i}" for i in best]
    blocks = [documents.slice(0, 2), documents.slice(2, 2), documents.slice(2, 9), documents.slice(9, 10)]
    in_blocks = oracle.exact_run(blocks, queries, k=4)
    assert {q: [d for d, _ in r] for q, r in in_blocks.items()} == {q: [d for d, _ in r] for q, r in whole.items()}
    assert len(oracle.exact_run([documents], queries, k=100)["q0"]) == 8, "empty documents are no answers"


def test_the_oracle_puts_equal_scores_in_document_order():
    rng = np.random.default_rng(3)
    queries, one = random_texts(rng, [3], "q"), rng.normal(size=(2, 16))
    documents = TokenEmbeddings.of([one] * 6, list("fbdace"))
    run = oracle.exact_run([documents.slice(0, 3), documents.slice(3, 6)], queries, k=5)
    assert [doc_id for doc_id, _ in run["q0"]] == list("fbdac")


def test_overlap_is_the_fraction_of_the_oracles_best():
    best = {"q1": [("a", 2.0), ("b", 1.0), ("c", 0.5)], "q2": [("a", 1.0)]}
    run = {"q1": [("b", 9.0), ("z", 8.0), ("a", 7.0)]}
    assert oracle.overlap(best, best, 2) == 1.0
    assert oracle.overlap(run, best, 2) == 0.25


def test_latency_is_measured_call_by_call_in_milliseconds():
    calls: list[int] = []
    seconds = time_each(calls.append, [1, 2, 3])
    assert calls == [1, 1, 2, 3] and len(seconds) == 3 and min(seconds) >= 0
    assert percentiles_ms([0.001] * 50 + [0.003] * 50) == {"p50": 2.0, "p95": 3.0, "p99": 3.0}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\xa0", "\u3000"])
def test_ids_with_odd_separators_are_read_from_queries_judgements_and_runs(tmp_path, separator):
    query, document = f"q{separator}1", f"d{separator}1{separator}"
    run = {query: [(document, 2.0), ("d2", 1.0)]}
    write_run(str(tmp_path / "test.run"), run, "tag")
    assert read_run(str(tmp_path / "test.run")) == run
    (tmp_path / "test.run").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "test.run").read_bytes().replace(b"\n", b"\r\n"))
    assert read_run(str(tmp_path / "test.run")) == run
    if separator != "\x1c":  # a control character
        queries = json.dumps({"_id": query, "text": f"two{separator}words"}, ensure_ascii=False) + '\n{"_id": 7, "text": "seven"}\n'
        folder = make_dataset(
            tmp_path / "set", "\ufeff" + queries, f"\ufeffquery-id\tcorpus-id\tscore\r\n{query}\t{document}\t1\r\n7\t8\t1\r\n"
        )
        dataset = load_dataset(str(folder))
        assert dataset.queries == {query: f"two{separator}words", "7": "seven"} and dataset.qrels == {query: {document: 1}, "7": {"8": 1}}


@pytest.mark.parametrize("doc_id", ["", " d", "d ", "a b", "a\tb", "a\nb", "a\x0cb"])
def test_an_id_that_a_run_file_cannot_hold_is_refused(tmp_path, doc_id):
    with pytest.raises(ConfigError, match="cannot store the document id"):
        write_run(str(tmp_path / "test.run"), {"q": [(doc_id, 1.0)]}, "tag")
