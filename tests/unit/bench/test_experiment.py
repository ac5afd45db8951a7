"""bench.papers.experiment: runs continue after SIGKILL, claims get the right verdict, and the report lists what is missing."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.papers import development, measuring, training
from bench.papers.__main__ import write_collection
from bench.papers.claims import Finding, claims, verdict
from bench.papers.experiment import Experiment, locked, read_results, run, status
from bench.papers.mining import Bm25, training_rows
from bench.papers.profiles import PROFILES, UNTRAINED, models, trainings, ways, ways_of
from bench.papers.projected import project_embeddings
from bench.papers.report import BEGIN, END, Answers, compared, judged, update_document, write_report
from bench.papers.training import config_of
from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import find_corpus, load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import oracle
from ray_lir.storage.manifest import MANIFEST, read_manifest
from tests.fixtures.tiny import bert

TINY = PROFILES["tiny"]
KILLED = """
import os, signal, sys
import bench.papers.experiment as experiment
from bench.papers import measuring, mining, training

PLACES = {
    "mining": (mining.Bm25, "best", 6),
    "training": (training.Training, "run_step", 3),
    "record of the training": (experiment, "commit", 2),
    "searches": (measuring, "keep", 3),
}
target, name, calls = PLACES[sys.argv[1]]
original = getattr(target, name)

def killing(*arguments):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

setattr(target, name, killing)
experiment.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and both training collections."""
    folder = tmp_path_factory.mktemp("experiment")
    for name in ("squad", "nq_qed"):
        qrels = write_collection(folder / "data" / name) / "qrels"
        (qrels / "dev.tsv").write_text((qrels / "test.tsv").read_text())
        (qrels / "test.tsv").rename(qrels / "train.tsv")
    bert(folder / "checkpoint")
    return folder


def experiment_in(folder: Path, work: str) -> Experiment:
    return Experiment(folder / "data", folder / work, TINY, str(folder / "checkpoint"), None)


def test_a_killed_run_continues_where_it_stopped(folder: Path):
    work = folder / "work"
    flags = ["--data", str(folder / "data"), "--work", str(work), "--profile", "tiny", "--base", str(folder / "checkpoint")]
    only = ["training data", "projection", "training of maxsim, seed", "maxsim, seed 0 on nq_qed"]
    answers = work / "answers/maxsim/seed-0/nq_qed"
    model = work / "models/maxsim/seed-0"
    finished = {
        "mining": work / "pairs.attempt",
        "training": model / "state.pt",
        "record of the training": model / "checkpoint/config.json",
        "searches": answers / "scan.json",
    }
    for part, path in finished.items():
        killed = subprocess.run([sys.executable, "-c", KILLED, part, *flags, "--only", *only], capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert path.exists()
    experiment = experiment_in(folder, "work")
    assert f"| maxsim | 0 | done | 1/{len(ways_of('maxsim', TINY))} | - |" in status(experiment)
    made = finished["searches"].stat().st_mtime_ns
    run(experiment, only)
    assert finished["searches"].stat().st_mtime_ns == made and (answers / "original.json").exists()
    assert not any((answers / name).exists() for name in ("embeddings", "default", "papers"))
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    assert rows == list(training_rows(folder / "data", TINY.pairs, TINY.negatives, 0)) and len(rows) == TINY.pairs
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the runs above; the order of sums depends on it
    cost = training.train(
        work / "models/untrained/seed-0/checkpoint", work / "pairs.jsonl", models(TINY)["maxsim"], TINY, 0, folder / "uninterrupted"
    )
    torch.set_num_threads(before)
    both = (folder / "uninterrupted", model)
    digests = [Encoder.load(str(each / "checkpoint")).contract.weights_digest for each in both]
    assert digests[0] == digests[1] and cost["steps"] == TINY.steps
    assert all(len((each / training.LOG).read_text().splitlines()) == TINY.steps for each in both)


def test_models_with_a_frozen_transformer_share_the_embeddings_of_the_base(folder: Path):
    profile = replace(
        TINY, trained_layers=0, passages=12, training_candidates=4, k_train=(8,), listed=1, every_seed=("maxsim",), seeds=(0, 1)
    )
    experiment = Experiment(folder / "data", folder / "frozen", profile, str(folder / "checkpoint"), str(folder / "checkpoint"))
    names = ["maxsim", "xtr, k 8", "trial, no relations", "trial", "attention"]
    assert [each for each in trainings(profile) if each[1] == 1] == [("maxsim", 1)]
    run(experiment, ["training data", "projection", "embeddings of nq_qed", *(f"training of {name}, seed 0" for name in names)])
    corpus = find_corpus(str(folder / "data/nq_qed"))
    for name in names:
        config = experiment.encoder(name, 0)
        encoded, projected = folder / "frozen/encoded by" / name, folder / "frozen/projected" / name
        encode_corpus(corpus, str(encoded), config, map=map)
        project_embeddings(experiment.encoded("nq_qed").paths[0].parent, projected, config)
        want, have = (next(read_blocks(str(next(each.rglob("part-*.parquet"))))) for each in (encoded, projected))
        assert have.texts.equals(want.texts) and have.embeddings.doc_ids == want.embeddings.doc_ids
        cosines = (have.embeddings.values.astype(np.float32) * want.embeddings.values.astype(np.float32)).sum(1)
        assert cosines.min() > 0.998  # precision auto may compute in bfloat16
        assert (have.embeddings.weights is not None) == (name == "attention")
        if name == "attention":
            np.testing.assert_allclose(have.embeddings.weights, want.embeddings.weights, rtol=1e-3)
        manifests = [read_manifest(str(each / MANIFEST), EmbeddingsManifest, made_by="") for each in (encoded, projected)]
        assert manifests[0].contract == manifests[1].contract and manifests[0].relation == manifests[1].relation
    run(experiment, ["maxsim, seed 0 on nq_qed", "untrained, projected, seed 0 on nq_qed"])
    answers = read_results(experiment)["answers"]
    assert set(answers["untrained, projected"]["0"]["nq_qed"]) == set(ways_of("untrained", profile))
    assert set(answers["maxsim"]["0"]["nq_qed"]) == set(ways_of("maxsim", profile))
    rows = [json.loads(line) for line in (folder / "frozen/pairs.jsonl").read_text().splitlines()]
    assert len({passage for row in rows for passage in row["documents"]}) <= 12
    run(experiment, ["distillation data", "teacher's scores", "training of maxsim, distilled"])
    scored = [json.loads(line) for line in (folder / "frozen/scored.jsonl").read_text().splitlines()]
    teacher = Encoder.load(EncoderConfig(checkpoint=str(folder / "checkpoint"), query_length=12, document_length=24))
    row = scored[-1]
    want_scores = oracle.maxsim(teacher.encode_queries([row["query"]]), teacher.encode_documents(row["documents"]))[0]
    np.testing.assert_allclose(row["scores"], want_scores, atol=1e-3)
    assert experiment.training("maxsim, distilled", 0).is_made


def test_a_cell_is_left_to_the_process_that_has_it(folder: Path):
    experiment = experiment_in(folder, "shared")
    with locked(experiment.pairs.paths[0]) as free:
        assert free
        run(experiment, ["training data"])
        assert not experiment.pairs.is_made
    run(experiment, ["training data"], deadline=time.monotonic() - 1)
    assert not experiment.pairs.is_made
    run(experiment, ["training data"])
    assert experiment.pairs.is_made


def test_status_names_what_is_done_what_is_missing_and_why(folder: Path):
    experiment = experiment_in(folder, "other")
    log = experiment.model_folder("maxsim", 0) / training.LOG
    log.parent.mkdir(parents=True)
    log.write_text("{}\n{}\n")
    measuring.keep(measuring.answer(experiment.answers("trial", 0, "squad"), "papers: plaid"), {})
    lines = status(experiment).splitlines()
    assert f"| maxsim | 0 | 2/{TINY.steps} steps | - | - |" in lines
    assert f"| trial | 0 | - | - | 1/{len(ways_of('trial', TINY))} |" in lines
    assert "| maxsim, distilled | 0 | needs --teacher | - | - |" in lines


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_claims_refer_to_models_and_ways_of_the_experiment(profile):
    for model in models(profile).values():
        config_of(model, profile, 0)
    for claim in claims(profile):
        for model, way in (claim.first, claim.second):
            assert model in models(profile) and way in ways_of(model, profile)


@pytest.mark.parametrize(
    ("kind", "difference", "p", "equivalence_p", "by_seed", "expected"),
    [
        ("better", 0.02, 0.01, 1, (0.02, 0.03, 0.01), "holds"),
        ("better", 0.02, 0.01, 1, (0.02, 0.05, -0.01), "cannot be seen here"),
        ("better", -0.02, 0.01, 1, (-0.02,), "contradicted"),
        ("better", 0.001, 0.4, 0.01, (0.001, -0.001), "equivalent within .01"),
        ("better", 0.004, 0.01, 0.01, (0.004,), "holds"),
        ("better", 0.02, 0.4, 0.9, (0.02,), "cannot be seen here"),
        ("fewer", -0.2, 0.01, 1, (-0.2, -0.1), "holds"),
        ("fewer", 0.2, 0.01, 1, (0.2, 0.1), "contradicted"),
        ("same", 0.001, 0.4, 0.01, (0.001, -0.001), "holds"),
        ("same", 0.004, 0.01, 0.01, (0.004,), "holds"),
        ("same", 0.03, 0.01, 1, (0.03,), "contradicted"),
        ("same", 0.03, 0.01, 1, (0.08, -0.02), "cannot be seen here"),
        ("same", 0.03, 0.4, 0.9, (0.03,), "cannot be seen here"),
    ],
)
def test_verdicts(kind, difference, p, equivalence_p, by_seed, expected):
    assert verdict(kind, Finding(difference, p, equivalence_p, by_seed)) == expected
    assert verdict(kind, None) == "not measured"


def measured(values: np.ndarray, commit: str = "abc") -> dict[str, Any]:
    by_query = {f"q{number}": float(value) for number, value in enumerate(values)}
    names = ("nDCG@10", "R@100")
    return {"values": dict.fromkeys(names, by_query), "cpu_seconds": 1.0, "documents": 5, "tokens": 50, "commit": commit}


def made_up(changes: dict[str, float], seeds: int = 2, queries: int = 60) -> dict[str, Any]:
    """Answers of models that are better than a common base by a constant and a small noise."""
    rng = np.random.default_rng(0)
    base = {name: rng.uniform(0.3, 0.5, queries) for name in ("nq_qed", "squad")}
    return {
        model: {
            str(seed): {
                name: {way: measured(values + change + rng.normal(0, 0.003, queries)) for way in ways(TINY) if "stages" not in way}
                for name, values in base.items()
            }
            for seed in range(seeds)
        }
        for model, change in changes.items()
    }


def test_seeds_are_averaged_and_shown(tmp_path: Path):
    answers = made_up({"maxsim": 0.0, "xtr, k 8": 0.05})
    for values in answers["xtr, k 8"]["1"].values():
        values["papers: warp"] = measured(np.full(60, 0.2))
    found = compared(Answers(answers), ("xtr, k 8", "papers: warp"), ("maxsim", "papers: warp"), "nDCG@10")
    assert found is not None and len(found["by_seed"]) == 2 and found["by_seed"][0] > 0.04 and found["by_seed"][1] < -0.1
    assert found["difference"] == pytest.approx(np.mean(found["by_seed"]), abs=2e-4)
    assert found["queries"] == 120 and found["collections"] == ["nq_qed", "squad"] and found["commits"] == ["abc"]


def test_collections_that_one_side_lacks_are_left_out():
    answers = made_up({"maxsim": 0.0, "attention": 0.1}, seeds=1)
    del answers["attention"]["0"]["squad"]["papers: plaid"]
    found = compared(Answers(answers), ("attention", "papers: plaid"), ("maxsim", "papers: plaid"), "nDCG@10")
    assert found is not None and found["collections"] == ["nq_qed"] and found["difference"] == pytest.approx(0.1, abs=0.01)


def test_a_collection_alone_has_the_seeds_that_were_measured_on_it():
    answers = made_up({"maxsim": 0.0, "attention": 0.1}, seeds=2)
    del answers["attention"]["1"]["squad"]["papers: plaid"]
    cells = ("attention", "papers: plaid"), ("maxsim", "papers: plaid")
    both, squad = compared(Answers(answers), *cells, "nDCG@10"), compared(Answers(answers), *cells, "nDCG@10", ["squad"])
    assert both is not None and both["collections"] == ["nq_qed"] and len(both["by_seed"]) == 2
    assert squad is not None and squad["collections"] == ["squad"] and len(squad["by_seed"]) == 1


def test_the_report_judges_claims_and_names_missing_cells(folder: Path, tmp_path: Path):
    results = {"trainings": {}, "answers": made_up({UNTRAINED: 0.0, "maxsim": 0.1, "attention": 0.2}, seeds=1)}
    every = judged(Answers(results["answers"]), claims(TINY))
    by_text = {claim["text"]: claim for claim in every}
    assert by_text["attention weights help"]["verdict"] == "holds"
    assert by_text["PLAID loses no quality against exhaustive search"]["verdict"] == "holds"
    assert by_text["token importance helps"]["missing"] == ["trial, no relations (papers: plaid)"]
    about = {"profile": "tiny", "machine": {"cpu": "one", "cores": 1, "instructions": []}, "settings": vars(TINY), "base": "tiny"}
    write_report(about, results, tmp_path)
    text = (tmp_path / "scorers.md").read_text()
    row, split = (line for line in text.splitlines() if "| attention weights help |" in line)
    assert split.count("+0.1") == split.count("* (") == 2
    assert "+0.1" in row and row.endswith("| holds |") and "| abc |" in row
    [unknown] = [line for line in text.splitlines() if "| token importance helps |" in line]
    assert unknown.endswith("| not measured: trial, no relations (papers: plaid) |") and unknown.count("|") == row.count("|")
    assert "* training of trial, seed 0\n" in text and "* maxsim, seed 0 on squad: papers: plaid, stages" in text
    [maxsim] = [line for line in text.splitlines() if line.startswith("| maxsim |") and "(+0.1" in line]
    assert "p 0.000" in maxsim
    document = tmp_path / "papers.md"
    document.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    for _ in range(2):
        update_document(document, tmp_path / "scorers.json")
    lines = document.read_text().splitlines()
    assert lines[0] == "Before." and lines[-1] == "After." and "old" not in lines and lines.count(BEGIN) == lines.count(END) == 1
    assert any(line.startswith("| attention weights help |") and line.endswith("| holds |") for line in lines)
    nothing = read_results(experiment_in(folder, "nothing"))
    write_report(about, nothing, tmp_path, "nothing")
    assert "not measured: maxsim (papers: exact), maxsim (original)" in (tmp_path / "nothing.md").read_text()


def test_mined_negatives_are_not_positives_and_rows_do_not_depend_on_where_mining_starts(folder: Path):
    rows = list(training_rows(folder / "data", 10, 2, 0))
    assert rows[4:] == list(training_rows(folder / "data", 10, 2, 0, first=4))
    for row in rows:
        positive, *negatives = row["documents"]
        assert row["query"] == " ".join(positive.split()[:5]) and positive not in negatives and len(set(negatives)) == 2


def with_titles(folder: Path, articles: int) -> None:
    """Divide the passages of a collection among articles."""
    corpus = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    titled = [row | {"title": f"Article {number % articles}"} for number, row in enumerate(rows)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in titled))


def test_tests_leave_out_the_questions_of_the_development_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(folder / "data", tmp_path / "data")
    with_titles(tmp_path / "data/squad", development.HELD_OUT)
    dev, all_questions = development.development_set(tmp_path / "data"), load_dataset(str(tmp_path / "data/squad"), "dev")
    tested = development.without_development(all_questions)
    assert dev.queries and tested.queries and tested.qrels.keys() == tested.queries.keys()
    assert not dev.queries.keys() & tested.queries.keys()
    assert {**dev.queries, **tested.queries} == all_questions.queries
    assert len({text.split()[1] for text in dev.documents.values()}) == 1
    development.main([str(tmp_path / "data"), *[str(folder / "checkpoint")] * 2, "--document_length", "24", "--query_length", "12"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0]["difference"] == 0 and lines[0]["documents"] == len(dev.documents)


def test_an_encoded_collection_is_kept_until_all_ways_are_measured(folder: Path):
    experiment = replace(experiment_in(folder, "ways"), ways=("papers: plaid", "scan"))
    answers, only = experiment.answers(UNTRAINED, 0, "nq_qed"), ["training data", "projection", "untrained, seed 0 on nq_qed"]
    run(experiment, only)
    assert {path.stem for path in answers.glob("*.json")} == {"scan", "papers-plaid"} and (answers / "embeddings").exists()
    run(replace(experiment, ways=None), only)
    assert (answers / "original.json").exists() and not (answers / "embeddings").exists()


def test_a_part_has_the_judged_documents_and_the_queries_of_a_split(folder: Path):
    experiment = experiment_in(folder, "parts")
    part, whole = experiment.collection("squad_dev"), experiment.collection("squad")
    found, judged = (load_dataset(str(each), "dev") for each in (part, whole))
    assert found.queries == judged.queries and found.qrels == judged.qrels
    documents = {each.doc_id: each for each in read_documents(judged.corpus)}
    expected = [documents[name] for name in documents if any(name in grades for grades in judged.qrels.values())]
    assert 0 < len(expected) < len(documents) and list(read_documents(found.corpus)) == expected


def test_bm25_ranks_by_terms():
    engine = Bm25(["a river and a bridge", "a stone", "the bridge, the old bridge"])
    assert engine.best("Bridges of stone", 3).tolist() == [1, 2, 0]
    assert engine.best("energy", 3).tolist() == []


def test_a_smaller_sample_of_queries_is_part_of_a_larger_one(folder: Path):
    dataset = measuring.load_dataset(str(folder / "data/squad"), "dev")
    small, large = (measuring.sampled(dataset, number) for number in (3, 6))
    assert len(small.queries) == 3 and set(small.queries) < set(large.queries) and small.qrels.keys() == small.queries.keys()
    assert measuring.sampled(dataset, None).queries == dataset.queries
