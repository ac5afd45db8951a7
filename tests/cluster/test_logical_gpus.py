"""Builds, searches and services on a cluster with GPUs that are numbers without hardware: each process has its own, and none is shared
beyond its size. Triton's interpreter runs the kernels."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_lir.encoder.encoder import Encoder
from ray_lir.index.versions import latest_version
from ray_lir.search.searcher import Searcher
from tests.support.corpora import write_rows
from tests.support.logical_gpu_cluster import ENGINES, NUM_TASKS
from tests.support.repository import REPOSITORY
from tests.support.served_index import QUERIES, make_index
from tests.support.triton_interpreter import cuda_kernels

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ray_lir[gpu]'")
pytestmark = pytest.mark.timeout(900)  # the first test waits for all parts
NUM_DOCS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logical-gpus")
    make_index(folder, num_docs=NUM_DOCS, num_shards=4)
    write_rows(folder / "queries.jsonl", [{"_id": f"q{number}", "text": query} for number, query in enumerate(QUERIES)])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{number}\tdoc-{number}\t1\n" for number in range(len(QUERIES))))
    write_rows(folder / "more.jsonl", [{"_id": "new", "title": "late", "text": "late interaction on the river"}])
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_LIR_KERNELS")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.logical_gpu_cluster", str(folder)],
        cwd=REPOSITORY,
        env=environment | {"TRITON_INTERPRET": "1", "RAY_LIR_LOGICAL_GPUS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(("part", "together"), [("whole cards", 1), ("half cards", 2)])
def test_tasks_compute_on_their_reserved_gpu_within_its_fractions(report, part, together):
    found = report[part]
    assert len(found) == NUM_TASKS and {each["kernels"] for each in found} == {"cuda"}
    assert all(each["visible"] == str(each["gpus"][0]) for each in found)
    for device in {each["visible"] for each in found}:
        times = [each["times"] for each in found if each["visible"] == device]
        for several in combinations(times, together + 1):
            assert max(begin for begin, _ in several) >= min(end for _, end in several)
    if together == 1:
        assert {each["visible"] for each in found} == {"0", "1"}


def test_an_index_that_gpu_tasks_built_and_updated_answers_on_a_cpu(report, folder):
    assert (report["build"]["num_docs"], report["update"]["num_added"], report["update"]["version"]) == (NUM_DOCS, 1, 2), report
    searcher, by_cpu = Searcher.open(str(folder / "built"), 1), Searcher.open(str(folder / "index"))
    queries = Encoder.for_contract(by_cpu.manifest.contract).encode_queries(QUERIES)
    for found, expected in zip(searcher.search(queries, 1), by_cpu.search(queries, 1), strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0.05)  # GPU builds have other centroids, so other residuals
    assert latest_version(str(folder / "built")) == 2
    assert Searcher.open(str(folder / "built")).find(["new"])


@pytest.mark.parametrize("part", ["bulk search", "bulk search in groups"])
def test_bulk_search_on_gpus_finds_what_a_searcher_finds(report, folder, part):
    assert report[part]["provenance"] == "cuda", report[part]
    with cuda_kernels():
        searcher = Searcher.open(str(folder / "built"), kernels="cuda")
        queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
        answers = searcher.search(queries, 10, "exact")
    rows = report[part]["hits"]
    for number, answer in enumerate(answers):
        found = [row for row in rows if row[0] == f"q{number}"]
        assert {row[2] for row in found} == set(searcher.doc_ids(answer.documents))
        np.testing.assert_allclose(sorted(row[3] for row in found), np.sort(answer.scores), atol=32 * 1e-4)


def test_evaluation_on_gpus_ranks_like_a_searcher_with_the_same_kernels(report, folder):
    with cuda_kernels():
        searcher = Searcher.open(str(folder / "built"), kernels="cuda")
        queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
        answers = searcher.search(queries, 100, "exact")
    lines = [line.split() for line in report["evaluate"]["run"].splitlines()]
    ranks = []
    for number, answer in enumerate(answers):
        expected = {doc_id: float(score) for doc_id, score in zip(searcher.doc_ids(answer.documents), answer.scores, strict=True)}
        found = {line[2]: float(line[4]) for line in lines if line[0] == f"q{number}"}
        assert found == pytest.approx(expected, abs=32 * 1e-4)
        ranks.append([line[2] for line in lines if line[0] == f"q{number}"].index(f"doc-{number}") + 1)
    gains = [1 / np.log2(1 + rank) for rank in ranks if rank <= 10]
    assert report["evaluate"]["nDCG@10"] == pytest.approx(sum(gains) / len(QUERIES), abs=1e-4)


def test_mining_on_gpus_takes_negatives_from_the_best_documents(report, folder):
    with cuda_kernels():
        searcher = Searcher.open(str(folder / "built"), kernels="cuda")
        queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
        best = [searcher.doc_ids(answer.documents) for answer in searcher.search(queries, 10, "exact")]
    assert [row["query_id"] for row in report["mine"]] == [f"q{number}" for number in range(len(QUERIES))], report["mine"]
    for number, row in enumerate(report["mine"]):
        positive, *negatives = row["document_ids"]
        assert positive == f"doc-{number}" and len(negatives) == 2 and set(negatives) <= set(best[number]) - {positive}


@pytest.mark.parametrize("part", ["one group", "two groups", "four groups"])
def test_served_groups_answer_like_a_searcher_with_the_same_kernels(report, folder, part):
    with cuda_kernels():
        searcher = Searcher.open(str(folder / "index"), kernels="cuda")
        encoder = Encoder.for_contract(searcher.manifest.contract)
        for engine in ENGINES:
            for query in QUERIES:
                [answer] = searcher.search(encoder.encode_queries([query]), 5, engine)
                hits = report[part]["answers"][f"{engine}: {query}"]
                assert [number for number, _ in hits] == answer.documents.tolist()
                assert np.array([score for _, score in hits], np.float32).tobytes() == answer.scores.tobytes()


def test_groups_with_a_whole_gpu_use_different_gpus(report, folder):
    found = report["two groups, a card each"]
    assert sorted(map(str, (device for [device] in found["devices"].values()))) == ["0", "1"], found
    by_halves = report["two groups"]["answers"]
    for question, hits in found["answers"].items():  # the query encoder plans on the CPU in this test
        np.testing.assert_allclose([score for _, score in hits], [score for _, score in by_halves[question]], atol=32 * 1e-3)


def test_a_missing_or_occupied_gpu_is_a_one_line_error(report, folder):
    held = "needs 1 GPUs, but the Ray cluster has 0 free; wait for the jobs and services that hold the others, or "
    assert (
        report["three cards"] == "ApplicationError: 3 GPUs are needed (3 x shard group (shard_cpus, shard_gpus) with 1), but the Ray "
        "cluster has 2; lower these settings, replicas or num_groups, or add a machine"
    )
    assert report["build without a free card"].startswith(f"ConfigError: each task {held}lower --workers.gpus_per_worker")
    assert report["search without a free card"].startswith(f"ConfigError: each encoding worker {held}")
    assert report["service without a free card"].startswith(f"ApplicationError: each shard group (shard_cpus, shard_gpus) {held}")
    assert not (folder / "refused").exists()
