"""bench: one harness measures every system, finished measurements are kept, and the report names failures."""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import compare
from bench.comparison import collection as bench_collection
from bench.comparison import environments, report
from bench.comparison.environments import NotInstallable, python_of, site_packages
from bench.comparison.systems import SYSTEMS, System, slug
from bench.peers import harness, inputs
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.engines import ENGINES
from ray_lir.evaluation import oracle
from ray_lir.storage.manifest import MANIFEST, read_manifest
from tests.support.synthetic import collection, exact_scores, queries_about

NUM_QUERIES = 5
EXACT = System("ray_lir", {"exact": {"engine": "exact"}}, index={"codec": {"nbits": 8}})
FAISS = System("faiss_flat", {"all tokens": {"tokens": 500}, "no tokens": {"tokens": -1}})


@pytest.fixture(scope="module")
def documents() -> TokenEmbeddings:
    return collection(num_docs=60, max_tokens=12)


@pytest.fixture(scope="module")
def work(documents: TokenEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work folder with a small size of synthetic documents; queries and judgements are about the first NUM_QUERIES."""
    work = tmp_path_factory.mktemp("work")
    folder = work / "small"
    queries = queries_about(documents, list(range(NUM_QUERIES)))
    inputs.save(folder, "queries", inputs.Texts(queries.values, queries.offsets))
    manifest = save_embeddings(str(work / "source"), documents)
    doc_ids = bench_collection.write_copies(documents, 1, manifest, folder)
    qrels = {f"q{number}": {doc_ids[number]: 1} for number in range(NUM_QUERIES)}
    (folder / "about.json").write_text(json.dumps({"doc_ids": doc_ids, "query_ids": list(qrels), "qrels": qrels}))
    return work


def settings(**changes: object) -> argparse.Namespace:
    arguments = {"queries": NUM_QUERIES, "batch": 4, "threads": [1], "build_threads": 1, "settings": None, "timeout": 120, "work": None}
    arguments |= {"lower_bound": None, "reference": False, "assembled": False}
    return argparse.Namespace(**{**arguments, **changes})


def test_the_first_copy_is_the_collection_itself(documents: TokenEmbeddings) -> None:
    first = concatenate(list(bench_collection.copy_of(documents, 0)))
    assert np.array_equal(first.values, documents.values)
    assert list(first.doc_ids) == list(documents.doc_ids)


def test_a_copy_of_the_collection_is_repeatable_and_has_unit_vectors(documents: TokenEmbeddings) -> None:
    copy, again, other = (concatenate(list(bench_collection.copy_of(documents, number))) for number in (1, 1, 2))
    assert (copy.num_tokens, len(copy)) == (documents.num_tokens, len(documents))
    assert np.array_equal(copy.values, again.values)
    assert not np.array_equal(copy.values, other.values)
    assert np.allclose(np.linalg.norm(copy.values.astype(np.float32), axis=1), 1, atol=2e-3)
    assert not set(copy.doc_ids) & (set(documents.doc_ids) | set(other.doc_ids))


def test_a_copied_document_begins_like_its_original_but_for_noise(documents: TokenEmbeddings) -> None:
    copy = concatenate(list(bench_collection.copy_of(documents, 1)))
    cosines = []
    for original, mixed in zip(documents, copy, strict=True):
        half = (len(original) + 1) // 2
        cosines += (original[:half].astype(np.float32) * mixed[:half].astype(np.float32)).sum(axis=1).tolist()
    assert np.mean(cosines) == pytest.approx(1 / np.sqrt(1 + bench_collection.NOISE**2), abs=0.02)


def test_peers_and_ray_lir_read_the_same_copies_of_a_collection(documents: TokenEmbeddings, tmp_path: Path) -> None:
    manifest = save_embeddings(str(tmp_path / "source"), documents)
    doc_ids = bench_collection.write_copies(documents, 3, manifest, tmp_path / "size")
    ours = read_manifest(str(tmp_path / "size" / "embeddings" / MANIFEST), EmbeddingsManifest, "the test")
    whole = concatenate(list(oracle.read_embeddings(str(tmp_path / "size" / "embeddings"), ours)))
    theirs = inputs.load(tmp_path / "size", "documents")
    assert ours.num_docs == len(theirs) == len(set(doc_ids)) == 3 * len(documents)
    assert list(whole.doc_ids) == doc_ids
    assert np.array_equal(whole.values, theirs.values)
    assert np.array_equal(whole.offsets, theirs.offsets)


def test_the_oracle_ranks_by_maxsim(work: Path, documents: TokenEmbeddings) -> None:
    best = bench_collection.open_collection(None, "small", work).oracle()
    queries = inputs.load(work / "small", "queries")
    for number, ranking in enumerate(best):
        scores = exact_scores(queries[number], documents)
        assert np.allclose(scores[ranking], np.sort(scores)[::-1][: len(ranking)], atol=1e-4)


def test_a_missing_collection_size_asks_for_its_dataset(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--dataset"):
        bench_collection.open_collection(None, "small", tmp_path)


def test_the_report_holds_measurements_and_the_reasons_of_failures(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    systems = {"ours": EXACT, "FAISS": FAISS, "absent": System("no_such_module", {"default": {}})}
    monkeypatch.setattr(report, "SYSTEMS", systems)
    for name, system in systems.items():
        compare.measure_system(name, system, work / "small", settings())
    report.write_report(work, tmp_path)
    (size,) = json.loads((tmp_path / "compare.json").read_text())["sizes"]
    builds = {row["system"]: row for row in size["builds"]}
    searches = {(row["system"], row["setting"]): row for row in size["searches"]}
    for row in (searches["ours", "exact"], searches["FAISS", "all tokens"]):
        assert row["recall@10"] == pytest.approx(1, abs=0.05)
        assert row["nDCG@10"] == 1
        assert row["latency_ms"]["p95"] >= row["latency_ms"]["p50"] > 0
        assert row["queries_per_second"]["1"] > 0
    assert builds["FAISS"]["peak_bytes"] >= builds["FAISS"]["held_bytes"] > 0
    assert builds["FAISS"]["bytes_per_token"] > 4 * 32
    assert "no_such_module" in builds["absent"]["error"]
    assert "ended with" in searches["FAISS", "no tokens"]["error"]
    table = (tmp_path / "compare.md").read_text()
    assert "no_such_module" in table
    assert "| ours | exact |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("| FAISS | ") and "tokens" in line}) == 1
    assert "FAISS" in (tmp_path / "compare.svg").read_text()


def test_finished_measurements_are_kept_and_failed_ones_repeated(tmp_path: Path) -> None:
    path = tmp_path / "size" / "system" / "build.json"
    path.parent.mkdir(parents=True)
    fails = [sys.executable, "-c", "raise SystemExit('out of luck')"]
    assert not compare.measure(path, fails, 1, {}, 60)
    assert "out of luck" in json.loads(path.read_text())["error"]
    works = [sys.executable, "-c", f"open({str(path)!r}, 'w').write('{{}}')"]
    assert compare.measure(path, works, 1, {}, 60)
    assert compare.measure(path, fails, 1, {}, 60)
    assert json.loads(path.read_text()) == {}


def test_a_measurement_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "size" / "system" / "build.json"
    path.parent.mkdir(parents=True)
    busy = [sys.executable, "-c", "while True: pass"]
    assert not compare.measure(path, busy, 1, {}, 2)
    error = json.loads(path.read_text())["error"]
    assert re.fullmatch(r"not done after 2 seconds, [012] of a processor's", error)  # 0 on a busy machine


def test_a_lower_bound_has_its_own_line_in_the_report(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "SYSTEMS", {"bounded": EXACT})
    compare.measure_system("bounded", EXACT, work / "small", settings())
    compare.measure_system("bounded", EXACT, work / "small", settings(lower_bound=0.2))
    assert not (work / "small" / "bounded" / "index-own").exists()
    report.write_report(work, tmp_path)
    whole, bound = json.loads((tmp_path / "compare.json").read_text())["sizes"][0]["builds"]
    assert whole["seconds"] > 0
    assert bound["error"].startswith("not done after 0.2 seconds")
    assert "| bounded | | not done after" in (tmp_path / "compare.md").read_text()


def test_recall_counts_what_the_oracle_ranks_highest() -> None:
    found, best = np.array([[3, 1, 9, 7], [4, 5, -1, -1]]), np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert report.recall(found, best, 2) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert report.recall(found, best, 4) == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_answers_shorter_than_k_are_padded() -> None:
    assert harness.table([[7, 8], [9]], 3).tolist() == [[7, 8, -1], [9, -1, -1]]


def test_every_setting_names_what_exists() -> None:
    for name, system in SYSTEMS.items():
        assert importlib.util.find_spec(f"bench.peers.{system.module}"), name
        for environment in {system.environment, system.base} - {None, environments.THIS}:
            assert (environments.REQUIREMENTS / f"{environment}.txt").exists()
        slugs = [slug(setting) for setting in system.settings]
        assert len(set(slugs)) == len(slugs)
    for options in SYSTEMS["ray_lir"].settings.values():
        if "engine" in options:
            ENGINES[options["engine"]].params(**{key: value for key, value in options.items() if key not in ("engine", "kernels")})


def test_environments_share_a_base_and_report_failed_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    for name, requirements in {"base": "", "peer": "", "gone": "no-such-package==1.0\n"}.items():
        (tmp_path / f"{name}.txt").write_text(requirements)
    python = python_of("peer", tmp_path, "base")
    (site_packages(tmp_path / "envs" / "base" / "bin" / "python") / "shared_by_all.py").write_text("")
    subprocess.run([python, "-c", "import shared_by_all"], check=True)
    made = python.lstat().st_mtime_ns
    assert python_of("peer", tmp_path, "base").lstat().st_mtime_ns == made
    with pytest.raises(NotInstallable, match="no-such-package"):
        python_of("gone", tmp_path)


def test_a_peer_is_compared_with_ray_lir_in_the_same_run(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    systems = {report.OURS: System("ray_lir", {"auto": {}}), "peer": System("faiss_flat", {"few": {"tokens": 50, "k": 3}})}
    monkeypatch.setattr(report, "SYSTEMS", systems)
    monkeypatch.setattr(compare, "SYSTEMS", systems)
    for name, system in systems.items():
        compare.measure_system(name, system, work / "small", settings(reference=True))
    again = work / "small" / "peer" / report.REFERENCE / f"few-t1-q{NUM_QUERIES}-b4.json"
    assert json.loads(again.read_text())["k"] == 3
    assert not (work / "small" / report.OURS / report.REFERENCE).exists()
    report.write_report(work, tmp_path, "peers")
    (size,) = json.loads((tmp_path / "peers.json").read_text())["sizes"]
    (row,) = [row for row in size["searches"] if row["system"] == "peer"]
    ratio = row["cpu_ms"]["mean"] / row["reference_cpu_ms"]["mean"]
    (line,) = [line for line in (tmp_path / "peers.md").read_text().splitlines() if line.startswith("| peer | few")]
    assert line.endswith(f"| {NUM_QUERIES} | {report.number(ratio)} |")


def test_documents_of_equal_score_keep_their_order() -> None:
    assert harness.best(np.array([0.5, 2.0, 0.5, 1.0, 2.0]), 4).tolist() == [1, 4, 3, 0]


def test_token_ids_are_written_in_document_order(documents: TokenEmbeddings, tmp_path: Path) -> None:
    ids = np.arange(documents.num_tokens, dtype=np.int32)
    named = TokenEmbeddings(documents.values, documents.offsets, documents.doc_ids, ids)
    bench_collection.write_copies(named, 2, save_embeddings(str(tmp_path / "source"), named), tmp_path / "size")
    written = np.load(tmp_path / "size" / inputs.TOKEN_IDS)
    assert written[: len(ids)].tolist() == ids.tolist()
    assert np.sort(written[len(ids) :]).tolist() == ids.tolist()


def test_sentence_transformers_scores_every_document(work: Path, documents: TokenEmbeddings, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from bench.peers import sentence_transformers as adapter

    adapter._build(work / "small", tmp_path / "index", 1)()
    queries = inputs.load(work / "small", "queries")
    search = adapter._open_index(work / "small", tmp_path / "index", 1, "float32")
    answers = search([queries[number].astype(np.float32) for number in range(NUM_QUERIES)], 5)
    for number, answer in enumerate(answers):
        scores = exact_scores(queries[number], documents)
        assert np.allclose(scores[answer], np.sort(scores)[::-1][:5], atol=1e-4)


def test_wheels_of_a_named_platform_are_installed_whatever_the_machine_is(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "python3.11" / "site-packages"
    folder.mkdir(parents=True)
    python = tmp_path / "bin" / "python"
    options = environments.platform_options("# platform: manylinux_2_39_x86_64\nx==1\n", python)
    assert options[options.index("--platform") + 1] == "manylinux_2_39_x86_64"
    assert options[options.index("--target") + 1] == str(folder)
    assert environments.platform_options("# a comment\nx==1\n", python) == []


def test_the_growth_table_has_a_column_for_each_size_and_needs_two():
    def size(tokens: int, ms: float) -> dict:
        search = {"system": "ray_lir", "setting": "scan", "cpu_ms": {"mean": ms}, "recall@10": 0.5}
        build = {"system": "ray_lir", "cpu_seconds": 2 * ms, "peak_bytes": 2**20}
        return {"num_tokens": tokens, "builds": [build], "searches": [search]}

    small, large = size(1_000_000, 7.0), size(3_000_000, 12.0)
    assert report.growth([small]) == []
    lines = report.growth([small, large])
    assert "| ray_lir | 1.0 M tokens | 3.0 M tokens |" in lines
    assert "| scan, CPU ms a query | 7 | 12 |" in lines
    assert "| exact, R@10 |  |  |" in lines
