"""jobs.plan: bytes against a real index, simulation against queueing theory, and reports."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from jobs.plan import PlanJob, run, show
from ray_lir.base.config import DEFAULT_CHECKPOINT, DEFAULT_DIM, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.choice import estimate_ms
from ray_lir.engines.cost import COSTS
from ray_lir.index.documents import FILE
from ray_lir.index.versions import read_version
from ray_lir.planning.capacity import Load, Machine, smallest
from ray_lir.planning.latency_simulation import Service, simulate
from ray_lir.planning.sizes import Collection, build_memory, predict_bytes
from ray_lir.planning.workload import BUILD, build_seconds, query_work
from ray_lir.storage.manifest import files_of
from tests.fixtures.tiny import WORDS, bert
from tests.support.corpora import write_rows
from tests.support.repository import REPOSITORY
from tests.support.synthetic import collection

RESULTS = REPOSITORY / "bench" / "results" / "planning.json"
BILLION = Collection.of(1e9, 70, 128, 2, None, 600)
ONE_STAGE = Service(groups=1, replicas=1, stages=(10.0,), sigma=0, straggler=0)


@pytest.mark.parametrize(("nbits", "shards"), [(2, 1), (4, 3), (8, 2)])
def test_predicted_bytes_equal_a_real_index_except_for_headers(nbits, shards, tmp_path):
    documents = collection(700)
    save_embeddings(str(tmp_path / "embeddings"), documents)
    config = IndexConfig(num_shards=shards, codec={"nbits": nbits})
    manifest = build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), config)
    of = Collection(len(documents), documents.num_tokens, 32, nbits, manifest.num_centroids, shards, 0)
    files = [file for shard in manifest.shards for file in shard.files if not file.name.endswith(FILE)]
    predicted = predict_bytes(of)
    header = 128
    assert sum(file.size for file in files) - header * len(files) == predicted.arrays
    assert manifest.codec.size + manifest.cluster_sizes.size == pytest.approx(predicted.codec, rel=0.05)
    assert predicted.embeddings == documents.values.nbytes


def test_centroids_and_shards_are_those_that_build_index_would_make():
    assert (BILLION.num_centroids, BILLION.num_shards) == (2_116_608, 1400)
    assert Collection.of(1e9, 70, 128, 2, 262_144, 600).num_centroids == 262_144


@pytest.mark.parametrize("engine", ["exact", "scan", "plaid", "warp"])
@pytest.mark.parametrize("kernels", COSTS)
def test_the_predicted_parts_of_a_query_sum_to_the_engines_estimate(engine, kernels):
    of = Collection.of(1e6, 70, 128, 4, None, 0)
    candidates = of.statistics.default_candidates(10)
    assert query_work(engine, of, kernels, 10).total == pytest.approx(estimate_ms(engine, of.statistics, kernels, candidates))


def test_measured_builds_and_searches_are_near_their_predictions():
    results = json.loads(RESULTS.read_text())
    assert results["nanoseconds"] == asdict(BUILD)  # the constants equal the measurements
    for build in results["builds"]:
        assert build["predicted_bytes"] == pytest.approx(build["bytes"], rel=0.015)
        of = Collection.of(build["num_docs"], 70, 128, 2, build["num_centroids"], 600)
        assert sum(build_seconds(of).values()) == pytest.approx(sum(build["cpu_seconds"].values()), rel=0.06)
        for engine, milliseconds in build["query_cpu_ms"].items():
            assert 0.4 < query_work(engine, of, results["kernels"], 10).total / milliseconds < 2.5


def test_work_grows_faster_than_the_number_of_tokens():
    small, large = (sum(build_seconds(Collection.of(docs, 70, 128, 4, None, 0)).values()) for docs in (1e6, 1e8))
    assert 100 < large / small < 1000


@pytest.mark.parametrize(
    ("docs", "tokens_per_doc", "dim", "part_tokens", "cores", "measured"),
    [(5183, 240, 128, 113_000, 2, 710e6), (23_400, 128, 128, 131_000, 2, 653e6), (128_741, 64, 32, 32_768, 1, 286e6)],
)
def test_predicted_memory_of_a_build_is_that_of_real_builds(docs, tokens_per_doc, dim, part_tokens, cores, measured):
    """docs/operations.md and bench/results/volume.json."""
    of = Collection.of(docs, tokens_per_doc, dim, 2, None, 600)
    assert build_memory(of, part_tokens, cores) == pytest.approx(measured, rel=0.2)


def test_a_trellis_takes_longer_to_compress():
    """12 to 15 microseconds a token instead of 0.7 to 0.9 (bench/results/codec.json)."""
    plain = Collection.of(1e6, 70, 128, 1, None, 0)
    seconds = [build_seconds(of) for of in (plain, replace(plain, trellis=True), replace(plain, residual_bytes=19))]
    assert seconds[1] == seconds[2] == seconds[0] | {"compress": pytest.approx(seconds[0]["compress"] + 7e7 * 12.5e-6)}


def test_simulated_latency_without_load_is_the_sum_of_its_parts():
    service = Service(groups=7, replicas=1, stages=(10.0, 5.0), before=3, hop=1, sigma=0, straggler=0)
    assert simulate(service, qps=0.01, num_requests=50) == pytest.approx(3 + 10 + 1 + 5 + 1)


def test_a_queue_waits_as_long_as_the_pollaczek_khinchine_formula_says():
    latencies = simulate(ONE_STAGE, qps=60, num_requests=40_000)
    assert np.mean(latencies) == pytest.approx(10 + 0.6 * 10 / (2 * 0.4), rel=0.01)  # M/D/1: s + rho s / 2(1 - rho)


def test_simulated_latency_is_that_of_the_slowest_group():
    """The median of the largest of n lognormal times is their 0.5^(1/n) quantile."""
    rng = np.random.default_rng(1)
    times = 10 * np.exp(rng.normal(-(0.5**2) / 2, 0.5, 400_000))
    for groups in (1, 10, 100):
        service = Service(groups=groups, replicas=1, stages=(10.0,), sigma=0.5, straggler=0)
        found = np.median(simulate(service, qps=0.01, num_requests=1500))
        assert found == pytest.approx(np.quantile(times, 0.5 ** (1 / groups)), rel=0.06)


def test_simulated_hedging_shortens_the_latency_tail():
    service = Service(groups=40, replicas=2, stages=(5.0,), sigma=0.1, straggler=0.005, slowdown=20)
    hedged = Service(**{**vars(service), "hedge": 10.0})
    plain, better = (np.percentile(simulate(each, qps=20, num_requests=1500), 95) for each in (service, hedged))
    assert plain > 80 and better < 25  # a fifth of the requests meet a straggler among 40 calls; two copies are rarely both late


def test_every_simulated_request_is_answered_and_times_depend_on_the_seed():
    service = Service(groups=3, replicas=2, stages=(5.0, 5.0), hedge=6.0)
    times = simulate(service, qps=200, num_requests=500, seed=3)
    assert len(times) == 500 and (times > 0).all() and np.array_equal(times, simulate(service, qps=200, num_requests=500, seed=3))


def test_more_load_or_a_shorter_deadline_never_needs_fewer_machines():
    of, machine = Collection.of(2e7, 70, 128, 4, None, 600), Machine(8, 64e9, "native:avx2")
    nodes = [smallest(of, Load(qps, p95, 5, 1), machine).nodes for qps, p95 in ((5, 200), (50, 200), (200, 200), (200, 90))]
    assert nodes == sorted(nodes) and nodes[0] < nodes[-1]


def test_the_numbers_of_a_plan_are_consistent():
    result = run(PlanJob(docs=2e6, tokens_per_doc=70, dim=128, qps=40, p95_ms=120))
    search, sizes = result["search"], result["bytes"]
    assert search["in_time"] and search["ms_simulated"]["p95"] <= 120 and search["utilisation"] <= 0.6
    assert search["nodes"] == search["groups"] * search["replicas"]
    assert result["cost"]["search_dollars_a_month"] == pytest.approx(search["nodes"] * 0.8064 * 730, rel=0.01)
    assert sizes["index"] == sum(size for name, size in sizes.items() if not name.startswith("index") and name != "embeddings")
    json.dumps(result)


def test_an_impossible_plan_is_reported_with_alternatives():
    result = run(PlanJob(docs=1e8, tokens_per_doc=70, dim=128, qps=500, p95_ms=12))
    assert not result["search"]["in_time"]
    assert any("raise --p95_ms" in line for line in result["warnings"])
    assert any("has one gateway" in line for line in result["warnings"])
    for wrong, message in (
        ({"kernels": "native:mmx"}, "choose reference"),
        ({"node_memory_gb": 1, "docs": 1e9}, "--num_centroids"),
        ({"dim": 33, "nbits": 2}, "whole bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(PlanJob(**{"docs": 1e6, "tokens_per_doc": 70, "dim": 128, **wrong}))


def test_capacity_chooses_fewer_centroids_if_planning_queries_would_take_too_long():
    result = run(PlanJob(docs=1e8, nbits=2, tokens_per_doc=70, dim=128, qps=1, p95_ms=22))
    centroids = result["collection"]["centroids"]
    assert result["search"]["in_time"] and centroids < Collection.of(1e8, 70, 128, 2, None, 600).num_centroids
    assert any(f"--clustering.num_centroids {centroids}" in line for line in result["warnings"])


def test_the_command_line_takes_numbers_like_2e7():
    command = [sys.executable, "-m", "jobs", "plan", "--docs", "1e5", "--tokens-per-doc", "70", "--nbits", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["collection"]["tokens"] == 7_000_000


@pytest.fixture(scope="module")
def small_collection(tmp_path_factory) -> Path:
    """Return a corpus of 1,500 documents of many lengths, its embeddings and an index."""
    folder = tmp_path_factory.mktemp("small")
    bert(folder / "checkpoint")
    rng = np.random.default_rng(0)
    rows = [
        {"_id": f"doc-{i}", "title": "A title", "text": " ".join(rng.choice(WORDS, rng.integers(5, 120))), "year": i} for i in range(1500)
    ]
    write_rows(folder / "corpus.jsonl", rows)
    encode_corpus(str(folder / "corpus.jsonl"), str(folder / "embeddings"), EncoderConfig(checkpoint=str(folder / "checkpoint")))
    build_index(str(folder / "embeddings"), str(folder / "index"), IndexConfig())
    return folder


@pytest.mark.parametrize("source", ["corpus", "embeddings", "index"])
def test_a_plan_from_a_sample_predicts_the_bytes_of_the_index(small_collection, source):
    folder = small_collection
    path = folder / ("corpus.jsonl" if source == "corpus" else source)
    encoder = EncoderConfig(checkpoint=str(folder / "checkpoint"))
    result = run(PlanJob(**{source: str(path)}, encoder=encoder))
    manifest = read_version(str(folder / "index"))
    built = sum(file.size for file in files_of(manifest))
    assert result["collection"]["documents"] == manifest.num_docs
    assert result["collection"]["tokens"] == pytest.approx(manifest.num_tokens, rel=0.02 if source == "corpus" else 1e-6)
    assert result["bytes"]["index"] == pytest.approx(built, rel=0.02)
    assert result["bytes"]["index_a_token"] == pytest.approx(built / manifest.num_tokens, rel=0.01)
    more = run(PlanJob(**{source: str(path)}, encoder=encoder, docs=1.5e6))
    assert more["collection"]["documents"] == 1_500_000


def test_assumptions_of_a_plan_are_printed_first(capsys):
    result = run(PlanJob(docs=1e5))
    show(result)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["assumptions"] * 3
    assert "assumed 160 tokens a document" in lines[0] and "384 dimensions" in lines[2]
    assert Encoder.load(DEFAULT_CHECKPOINT).contract.dim == DEFAULT_DIM == 384
    assert result["collection"]["tokens"] == 16_000_000
    assert run(PlanJob(docs=1e5, tokens_per_doc=70, dim=64, text_bytes_per_doc=1))["assumptions"] == []


def test_a_plan_needs_exactly_one_source_of_its_numbers(tmp_path):
    with pytest.raises(ConfigError, match="give --docs, --corpus"):
        run(PlanJob())
    with pytest.raises(ConfigError, match="both set"):
        run(PlanJob(corpus="a", index="b"))


def test_machines_that_only_plan_are_in_the_price():
    job = PlanJob(docs=1e9, tokens_per_doc=70, dim=128, nbits=2, qps=500, p95_ms=100)
    result = run(job)
    search = result["search"]
    assert search["planning_nodes"] > 1 and search["total_nodes"] == search["nodes"] + search["planning_nodes"]
    assert result["cost"]["search_dollars_a_month"] == pytest.approx(search["total_nodes"] * job.node_price * 730, rel=0.01)


def test_a_service_on_gpus_needs_groups_by_memory_and_cards_by_fraction():
    job = PlanJob(docs=1e6, tokens_per_doc=100, dim=128, num_centroids=1 << 15, shard_gpus=0.5, gpu_memory_gb=16)
    found = run(job)["gpu_search"]
    tokens, docs = 100_000_000, 1_000_000
    whole = tokens * (2 + 64 + 4) + 8 * docs + 16 * (tokens // 32 + docs) + 8 * (tokens + 2 * (1 << 15)) + 512 * docs
    fixed = (1 << 30) + (1 << 15) * 128 * 8
    assert found["groups"] == -(-whole // (8_000_000_000 - fixed)) == 2
    assert found["cards"] == 1
    assert found["memory_gb_a_group"] == pytest.approx((fixed + whole / 2) / 1e9, rel=0.01)
    assert "gpu_search" not in run(job.model_copy(update={"shard_gpus": 0}))
    with pytest.raises(ConfigError, match="beside the shards and has 1.00; raise --shard_gpus or --gpu_memory_gb"):
        run(job.model_copy(update={"gpu_memory_gb": 2}))
