"""jobs.evaluate on a small real index: reports, files and errors."""

import copy
import json
from pathlib import Path

import ir_measures
import pytest

from jobs.cli import main, parse
from jobs.evaluate import EvaluateConfig, evaluate
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines import ENGINES, VECTOR_ENGINES
from ray_lir.engines.choice import engine_params
from ray_lir.evaluation.runs import read_run

DOCUMENTS = {
    "bread": "Bread dough rises because yeast turns sugar into carbon dioxide.",
    "tides": "The tides follow the pull of the moon on the oceans.",
    "volcano": "Lava is molten rock that flows out of a volcano.",
    "bees": "Honey bees dance to tell the hive where flowers are.",
    "violin": "A violin has four strings and is played with a bow.",
    "chess": "In chess the bishop moves along diagonals.",
    "glacier": "Glaciers are rivers of ice that carve valleys.",
    "vaccine": "A vaccine trains the immune system to recognise a virus.",
    "sql": "A database index makes queries faster by avoiding full scans.",
    "empty": "",
    "rome": "The Colosseum in Rome held gladiator fights.",
    "photosynthesis": "Plants make sugar from sunlight, water and carbon dioxide.",
}
QUERIES = {
    "what makes dough rise": {"bread": 2, "photosynthesis": 0},
    "why does the sea level change twice a day": {"tides": 1},
    "how do insects communicate where nectar is": {"bees": 1},
    "how do plants feed themselves": {"photosynthesis": 2, "bread": 1},
    "string instruments": {"violin": 1},
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("small")
    (folder / "qrels").mkdir()
    ids = {query: f"q{number}" for number, query in enumerate(QUERIES)}
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": ids[query], "text": query}) + "\n" for query in QUERIES))
    rows = [f"{ids[query]}\t{doc_id}\t{grade}\n" for query, grades in QUERIES.items() for doc_id, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return str(folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory, encoder) -> str:
    folder = str(tmp_path_factory.mktemp("index") / "small")
    embeddings = encoder.encode_documents(list(DOCUMENTS.values()), list(DOCUMENTS))
    config = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=16))
    build_index(embeddings, folder, config, contract=encoder.contract)
    return folder


def configure(index: str, dataset: str, **fields):
    return EvaluateConfig(index=index, dataset=dataset, latency_queries=0, **fields)


@pytest.mark.parametrize("engine", ["auto", *VECTOR_ENGINES])
def test_every_engine_answers_the_questions(index, dataset, engine):
    result = evaluate(configure(index, dataset, engine=engine))
    assert result["Success@5"] == result["R@10"] == 1.0
    assert result["nDCG@10"] > 0.9
    assert result["queries"] == 5
    assert result["engine"] in ENGINES and (engine == "auto" or result["engine"] == engine)
    assert result["index"]["version"] == 1 and result["index"]["num_shards"] == 2 and result["index"]["num_docs"] == len(DOCUMENTS)
    assert result["latency_ms"] is None
    assert json.loads(json.dumps(result)) == result


def test_the_run_file_and_the_values_of_each_query_give_the_reported_measures(index, dataset, tmp_path):
    run, per_query = tmp_path / "out" / "a.run", tmp_path / "a.json"
    result = evaluate(configure(index, dataset, engine="exact", run=str(run), per_query=str(per_query)))
    qrels = load_dataset(dataset).qrels
    measures = [ir_measures.parse_measure(name) for name in ("nDCG@10", "RR@10", "Success@5", "R@10", "R@100")]
    outside = ir_measures.calc_aggregate(measures, qrels, list(ir_measures.read_trec_run(str(run))))
    assert {str(measure): pytest.approx(value) for measure, value in outside.items()} == {
        str(measure): result[str(measure)] for measure in measures
    }
    values = json.loads(per_query.read_text())
    assert set(values) == set(qrels)
    assert sum(value["nDCG@10"] for value in values.values()) / len(values) == pytest.approx(result["nDCG@10"])
    assert all(len(ranking) == len(DOCUMENTS) for ranking in read_run(str(run)).values())


def second_dataset(folder: Path) -> str:
    """A data set with one query that the index answers wrongly: its judged document is unrelated."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text('{"_id": "a", "text": "what makes dough rise"}\n')
    (folder / "qrels/test.tsv").write_text("a\tchess\t1\n")
    return str(folder)


def test_several_data_sets_give_their_mean(index, dataset, tmp_path):
    other = second_dataset(tmp_path / "other")
    run = str(tmp_path / "{dataset}.run")
    result = evaluate(configure(index, f"{dataset},{other}", engine="exact", run=run, measures="RR@1"))
    parts = result["datasets"]
    assert list(parts) == result["dataset"] == [Path(dataset).name, "other"] and result["queries"] == 6
    for name in ("nDCG@10", "RR@1", "R@100"):
        first, second = (part[name] for part in parts.values())
        assert result[name] == pytest.approx((first + second) / 2)
        assert result["weighted_means"][name] == pytest.approx((5 * first + second) / 6)
    assert parts["other"] == evaluate(configure(index, other, engine="exact", measures="RR@1"))
    assert list(read_run(str(tmp_path / "other.run"))) == ["a"] and (tmp_path / f"{Path(dataset).name}.run").exists()
    with pytest.raises(ConfigError, match=r"--run .*one.run is one file for 2 data sets; put \{dataset\} into its name"):
        evaluate(configure(index, (dataset, other), run=str(tmp_path / "one.run")))
    (tmp_path / Path(dataset).name).symlink_to(index)
    with pytest.raises(FormatError, match="/other: expected an index"):  # before the first data set is searched
        evaluate(configure(str(tmp_path / "{dataset}"), (dataset, other), run=str(tmp_path / "late-{dataset}.run")))
    assert not list(tmp_path.glob("late-*"))


def test_each_data_set_has_its_query_length(index, dataset, tmp_path, caplog):
    other = second_dataset(tmp_path / "other")
    result = evaluate(configure(index, f"{dataset},{other}", engine="exact", query_length=12, query_lengths={"other": 3}))
    assert {name: part["query_length"] for name, part in result["datasets"].items()} == {Path(dataset).name: 12, "other": 3}
    full = evaluate(configure(index, other, engine="exact", run=str(tmp_path / "full")))
    assert full["query_length"] not in (3, 12)
    evaluate(configure(index, other, engine="exact", query_length=3, run=str(tmp_path / "cut")))
    assert read_run(str(tmp_path / "cut"))["a"] != read_run(str(tmp_path / "full"))["a"]
    with pytest.raises(ConfigError, match="query_length 5000 exceeds the 512 positions"):
        evaluate(configure(index, other, query_length=5000))
    evaluate(configure(index, other, engine="exact", query_lengths={"arguana": 300}))
    assert "query_lengths names arguana, and the data sets are ['other']" in caplog.text


def test_engine_parameters_are_used_and_reported(index, dataset):
    result = evaluate(configure(index, dataset, engine="warp", warp={"nprobe": 3, "rescore": 0}))
    assert result["params"]["nprobe"] == 3 and result["params"]["rescore"] == 0
    assert {"t_prime", "bound"} <= set(result["params"])


def test_a_shallow_run_has_no_deep_measures(index, dataset):
    result = evaluate(configure(index, dataset, k=5))
    assert "Success@5" in result and "R@100" not in result and "nDCG@10" not in result


def test_a_query_can_leave_out_the_document_with_its_own_id(index, dataset, tmp_path):
    folder = tmp_path / "own"
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "bread", "text": DOCUMENTS["bread"]}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nbread\tphotosynthesis\t1\n")
    run = tmp_path / "own.run"
    for ignore, first in ((False, "bread"), (True, "photosynthesis")):
        result = evaluate(configure(index, str(folder), engine="exact", k=10, ignore_identical_ids=ignore, run=str(run), overwrite=True))
        ranking = read_run(str(run))["bread"]
        assert result["ignore_identical_ids"] is ignore
        assert result["identical_ids_dropped"] == int(ignore)
        assert ranking[0][0] == first and len(ranking) == 10


@pytest.mark.parametrize(("name", "dropped"), [("arguana", 1), ("Quora-small", 1), ("scifact", 0), ("quoranet", 0)])
def test_arguana_and_quora_leave_out_hits_with_the_querys_id_by_default(index, dataset, tmp_path, caplog, name, dropped):
    caplog.set_level("INFO")
    folder = tmp_path / name
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "bread", "text": DOCUMENTS["bread"]}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nbread\tphotosynthesis\t1\n")
    result = evaluate(configure(index, str(folder), engine="exact", k=10))
    assert (result["ignore_identical_ids"], result["identical_ids_dropped"]) == (bool(dropped), dropped)
    assert ("left out 1 hits with the id of their query" if dropped else "set --ignore_identical_ids yes") in caplog.text
    config = parse(EvaluateConfig, ["--index", "i", "--dataset", "d", "--ignore_identical_ids"])
    assert config.ignore_identical_ids is True
    assert parse(EvaluateConfig, ["--index", "i", "--dataset", "d", "--ignore_identical_ids", "no"]).ignore_identical_ids is False


def test_judgements_of_another_collection_are_refused_or_counted(index, tmp_path, caplog):
    folder = tmp_path / "other"
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text('{"_id": "a", "text": "dough"}\n{"_id": "b", "text": "moon"}\n{"_id": "c", "text": "sea"}\n')
    (folder / "qrels" / "test.tsv").write_text("a\t17\t1\nb\t18\t1\n")
    (folder / "qrels" / "dev.tsv").write_text("a\tbread\t1\na\t17\t1\nb\t18\t1\nc\ttides\t0\n")
    with pytest.raises(ConfigError, match="none of the 2 documents that other/test judges is in .* every measure would be 0"):
        evaluate(configure(index, str(folder), run=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    result = evaluate(configure(index, str(folder), split="dev"))
    assert (result["judged_documents"], result["judged_documents_missing"]) == (4, 2)
    assert (result["queries_without_relevant"], result["queries_with_relevant_missing"]) == (1, 1)
    assert "lacks 2 of the 4 documents that other/dev judges (for example '17')" in caplog.text


def test_a_run_is_replaced_only_by_the_same_configuration_or_on_request(index, dataset, tmp_path, caplog):
    caplog.set_level("INFO")
    run, per_query = tmp_path / "a.run", tmp_path / "a.json"
    evaluate(configure(index, dataset, engine="exact", run=str(run)))
    before = run.read_bytes()
    evaluate(configure(index, dataset, engine="exact", run=str(run)))
    assert run.read_bytes() == before and "is a run of this configuration and will be replaced" in caplog.text
    for other in ({"engine": "warp"}, {"engine": "exact", "k": 3}):
        with pytest.raises(ConfigError, match="a.run exists already; give another --run, or set --overwrite true to replace it"):
            evaluate(configure(index, dataset, run=str(run), **other))
    assert run.read_bytes() == before
    evaluate(configure(index, dataset, engine="exact", k=3, run=str(run), overwrite=True))
    assert run.read_bytes() != before
    per_query.write_text("mine")
    with pytest.raises(ConfigError, match="--per_query .* exists already"):
        evaluate(configure(index, dataset, per_query=str(per_query)))
    with pytest.raises(ConfigError, match="name the same file"):
        evaluate(configure(index, dataset, run=str(tmp_path / "x"), per_query=str(tmp_path / "x")))


def test_outputs_are_checked_before_the_search(index, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("ray_lir.encoder.encoder.Encoder.for_contract", lambda *_: pytest.fail("the work has started"))
    (tmp_path / "file").write_text("")
    for output in ("run", "per_query"):
        with pytest.raises(ConfigError, match="cannot write to"):
            evaluate(configure(index, dataset, **{output: str(tmp_path / "file" / "out")}))
    spaced = tmp_path / "spaced"
    (spaced / "qrels").mkdir(parents=True)
    (spaced / "queries.jsonl").write_text('{"_id": "q 1", "text": "dough"}\n')
    (spaced / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\tbread\t1\n")
    with pytest.raises(ConfigError, match="cannot store the query id 'q 1'"):
        evaluate(configure(index, str(spaced), run=str(tmp_path / "run")))


def test_a_document_id_with_a_space_is_refused_before_the_search(dataset, encoder, tmp_path, monkeypatch):
    folder = str(tmp_path / "index")
    embeddings = encoder.encode_documents(list(DOCUMENTS.values()), [*list(DOCUMENTS)[:-1], "photo synthesis"])
    build_index(embeddings, folder, IndexConfig(clustering=ClusteringConfig(num_centroids=16)), contract=encoder.contract)
    monkeypatch.setattr("ray_lir.encoder.encoder.Encoder.for_contract", lambda *_: pytest.fail("the work has started"))
    with pytest.raises(ConfigError, match="cannot store the document id 'photo synthesis'"):
        evaluate(configure(folder, dataset, run=str(tmp_path / "run")))


def test_latency_is_reported_for_searching_and_encoding_apart(index, dataset):
    latency = evaluate(EvaluateConfig(index=index, dataset=dataset, latency_queries=3))["latency_ms"]
    assert latency["queries"] == 3
    for step in ("search", "encode"):
        assert 0 < latency[step]["p50"] <= latency[step]["p95"] <= latency[step]["p99"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "nearest"], "unknown engine 'nearest'; choose auto, exact, scan, plaid, warp"),
        (["--engine", "plaid", "--warp.nprobe", "4"], "--warp.* is set, but the engine is plaid"),
        (["--warp.nprobes", "4"], "did you mean --warp.nprobe?"),
        (["--index", "/nowhere/index"], "/nowhere/index: expected an index, found no LATEST file"),
        (["--dataset", "/nowhere/set"], "no dataset /nowhere/set"),
        (["--split", "dev"], "no split 'dev'"),
        (["--encoder.document_length", "64"], "unknown field --encoder.document_length"),
        (["--encoder.checkpoint", "/nowhere/model"], "there is no checkpoint folder /nowhere/model; check the path"),
        (["--k", "0"], "--k: "),
        (["--measures", "R@0"], "unknown measure 'R@0'"),
        (["--measures", "P(rel=0)@5"], "unknown measure 'P(rel=0)@5'"),
        (["--query_lengths", "{scifact: 2}"], "--query_lengths.scifact: input should be greater than or equal to 3, not 2"),
    ],
)
def test_an_invalid_argument_is_a_one_line_error_and_nothing_is_written(index, dataset, tmp_path, capsys, flags, message):
    argv = ["--index", index, "--dataset", dataset, "--run", str(tmp_path / "x.run"), "--per_query", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit) as end:
        main(EvaluateConfig, evaluate, argv + flags)
    captured = capsys.readouterr()
    error = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and captured.out == ""
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


def test_an_encoder_with_other_weights_is_refused(index, dataset, encoder, tmp_path, capsys):
    other = copy.deepcopy(encoder)
    next(other.model.parameters()).data[0] += 1
    other.save(tmp_path / "other")
    with pytest.raises(SystemExit) as end:
        main(EvaluateConfig, evaluate, ["--index", index, "--dataset", dataset, "--encoder.checkpoint", str(tmp_path / "other")])
    assert end.value.code == 2
    assert "error: " + str(tmp_path / "other") + " has other weights than all-MiniLM-L6-v2" in capsys.readouterr().err


def test_a_folder_in_place_of_the_run_file_is_refused(index, dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(EvaluateConfig, evaluate, ["--index", index, "--dataset", dataset, "--run", str(tmp_path)])
    assert f"error: --run {tmp_path} is a folder; give the path of a file" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_additional_measures_come_from_ir_measures(index, dataset):
    result = evaluate(configure(index, dataset, engine="exact", measures="R@1000 AP, Judged@10 P(rel=2)@1 nDCG@10"))
    assert list(result)[3:12] == ["nDCG@10", "RR@10", "Success@5", "R@10", "R@100", "R@1000", "AP", "Judged@10", "P(rel=2)@1"]
    assert result["k"] == 1000 and result["R@1000"] == 1.0
    assert result["P(rel=2)@1"] == pytest.approx(2 / 5)
    assert result["Judged@10"] == pytest.approx(7 / 5 / 10)


def test_measures_are_refused_before_anything_is_searched(dataset):
    with pytest.raises(ConfigError, match=r"^unknown measure 'nDGC@10'; give names of ir-measures .*such as nDCG@10[^\n]*$"):
        evaluate(configure("/no/index", dataset, measures="R@10 nDGC@10"))
    with pytest.raises(ConfigError, match="R@1000 needs 1000 hits a query, but --k is 100; raise --k or leave it out"):
        evaluate(configure("/no/index", dataset, measures="R@1000", k=100))


def test_measures_come_from_the_command_line(index, dataset, capsys):
    command = ["--index", index, "--dataset", dataset, "--latency_queries", "0", "--measures", "AP R@20"]
    main(EvaluateConfig, evaluate, command)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"AP", "R@20", "nDCG@10"} <= result.keys() and result["k"] == 100


@pytest.mark.parametrize("flag", ["--scan.candidate_fraction", "--scan.share", "--warp.share"])
def test_candidate_fraction_keeps_its_old_name(flag):
    job = parse(EvaluateConfig, ["--index", "i", "--dataset", "d", flag, ".5"])
    engine = flag[2:].partition(".")[0]
    assert getattr(job, engine).candidate_fraction == 0.5
    assert engine_params(engine, {"share": 0.5}) == engine_params(engine, {"candidate_fraction": 0.5}) == getattr(job, engine)
