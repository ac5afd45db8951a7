"""plaid and warp against the golden vectors, through their plans and stages."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_lir.base.errors import ConfigError
from ray_lir.building.clustering import default_num_centroids
from ray_lir.engines import ENGINES, choose, cost, plaid, resolve, scan, warp
from ray_lir.engines.choice import automatic_engines, estimate_ms
from ray_lir.engines.plan import IndexStatistics, Query, centroid_scores
from ray_lir.engines.scoring.trial import RELATION_COST
from ray_lir.engines.stages import run_stages
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.residuals import pack
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import select
from ray_lir.kernels.reference import REFERENCE
from tests.support.golden_files import golden

KERNELS = select("reference")


def shard_of(codes: np.ndarray, residuals: np.ndarray, doc_offsets: np.ndarray, num_centroids: int) -> IndexShard:
    scales = np.ones((len(codes), 2), np.float16)  # WARP does not scale tokens to length one, and centroid interaction needs no scales
    return IndexShard(0, doc_offsets, codes, residuals, scales, pa.table({}), num_centroids)


def run(plan, shard: IndexShard, codec: ResidualCodec, num_stages: int):
    """Return the documents that the first stages keep."""
    first = replace(plan, stage_limits=plan.stage_limits[:num_stages])
    return [best for [best] in run_stages([first], [shard], codec, KERNELS, [None]).kept]


def plaid_golden(weights: np.ndarray, **changes: bool):
    g = golden("plaid_dagger")
    codec = ResidualCodec(g["centroids"], np.zeros(1), np.zeros(2))
    shard = shard_of(g["codes"], np.zeros((len(g["codes"]), 2), np.uint8), g["doc_offsets"], len(g["centroids"]))
    ndocs = int(g["ndocs"])
    params = plaid.PlaidParams(nprobe=int(g["nprobe"]), centroid_score_threshold=float(g["t_cs"]), ncandidates=4 * ndocs, **changes)
    statistics = IndexStatistics(24, len(g["codes"]), np.bincount(g["codes"], minlength=24))
    plan = plaid.ENGINE.plan(Query(g["q"].astype(np.float32), weights.astype(np.float32)), codec, statistics, params, ndocs, KERNELS)
    return g, plan, run(plan, shard, codec, 2)


def test_plaid_dagger_probes_prunes_and_keeps_like_the_golden_vectors():
    g = golden("plaid_dagger")
    almost_zero = np.where(g["w"] == 0, 1e-9, g["w"])  # the golden vectors probe for a token of weight 0, we do not
    g, plan, (probed, interacted) = plaid_golden(almost_zero)
    np.testing.assert_array_equal(plan.clusters, g["cells"])
    order = np.argsort(-g["pruned_weighted"], kind="stable")[: len(probed.documents)]
    np.testing.assert_array_equal(probed.documents, g["candidates"][order])
    np.testing.assert_allclose(probed.scores, g["pruned_weighted"][order], atol=2e-5)
    np.testing.assert_array_equal(interacted.documents, g["stage3"])


def test_plaid_scores_candidates_without_weights_on_request():
    """The weights count in the exact scores alone (TRIAL, table 8)."""
    g, plan, (probed, _) = plaid_golden(golden("plaid_dagger")["w"], weighted_candidates=False)
    np.testing.assert_array_equal(plan.clusters, g["cells"])  # a token of weight 0 is probed too
    order = np.argsort(-g["pruned"], kind="stable")[: len(probed.documents)]
    np.testing.assert_array_equal(probed.documents, g["candidates"][order])
    np.testing.assert_allclose(probed.scores, g["pruned"][order], atol=2e-5)
    np.testing.assert_array_equal(plan.query.weights, g["w"].astype(np.float32))


def test_a_fully_pruned_document_is_not_among_the_kept():
    g, _, (probed, _) = plaid_golden(golden("plaid_dagger")["w"] + 1e-9)
    pruned = g["candidates"][np.isneginf(g["pruned_weighted"])]
    assert len(pruned) and not np.isin(pruned, probed.documents).any()


@pytest.mark.parametrize("threshold", [0.5, 9.0])
def test_plaid_ranks_fully_pruned_documents_after_all_others(threshold):
    """They are ranked by their full centroid scores, so no candidate is lost."""
    g = golden("plaid_dagger")
    codec = ResidualCodec(g["centroids"], np.zeros(1), np.zeros(2))
    shard = shard_of(g["codes"], np.zeros((len(g["codes"]), 2), np.uint8), g["doc_offsets"], len(g["centroids"]))
    statistics = IndexStatistics(24, len(g["codes"]), np.bincount(g["codes"], minlength=24))
    query = Query(g["q"].astype(np.float32), np.ones(len(g["q"]), np.float32))
    params = plaid.PlaidParams(nprobe=int(g["nprobe"]), centroid_score_threshold=threshold, ncandidates=1000)
    plan = plaid.ENGINE.plan(query, codec, statistics, params, 1000, KERNELS)
    candidates = KERNELS.candidates(plan.clusters, shard)
    table = centroid_scores(query, codec, KERNELS)
    pruned = np.isneginf(KERNELS.centroid_maxsim(table, query.weights, shard, threshold, candidates))
    full = KERNELS.centroid_maxsim(table, query.weights, shard, None, candidates)
    [probed, _] = run(plan, shard, codec, 2)
    assert pruned.any() and set(probed.documents) == set(candidates)
    last = candidates[pruned][np.argsort(-full[pruned], kind="stable")]
    np.testing.assert_array_equal(probed.documents[-len(last) :], last)


def test_a_query_token_of_weight_zero_is_not_probed():
    g = golden("plaid_dagger")
    _, plan, _ = plaid_golden(g["w"])
    silent = int(np.flatnonzero(g["w"] == 0)[0])
    nearest = np.argsort(-g["centroid_scores"], axis=0, kind="stable")[: int(g["nprobe"])]
    own = set(np.delete(nearest, silent, axis=1).ravel().tolist())
    assert set(plan.clusters.tolist()) == own


def warp_golden(**changes):
    g = golden("warp")
    codec = ResidualCodec(g["centroids"], np.zeros(15), g["bucket_weights"])
    doc_offsets = np.searchsorted(g["doc_of_token"], np.arange(g["doc_of_token"].max() + 2))
    shard = shard_of(g["codes"], g["residuals_natural"], doc_offsets, len(g["centroids"]))
    params = warp.WarpParams(**{"nprobe": int(g["nprobe"]), "t_prime": int(g["t_prime"]), "bound": int(g["bound"]), "rescore": 0} | changes)
    statistics = IndexStatistics(len(doc_offsets) - 1, len(g["codes"]), g["sizes"])
    plan = warp.ENGINE.plan(Query(g["q"].astype(np.float32), np.ones(len(g["q"]), np.float32)), codec, statistics, params, 100, KERNELS)
    return g, plan, run(plan, shard, codec, 1)[0]


def test_warp_probes_and_imputes_like_the_golden_vectors():
    g, plan, _ = warp_golden()
    live = int(g["live"])
    np.testing.assert_array_equal(plan.active, np.arange(live))  # rows of zeros are masked
    np.testing.assert_array_equal(plan.clusters, g["cells"][:live])
    np.testing.assert_allclose(plan.imputed, g["mse"][:live], atol=2e-5)


@pytest.mark.parametrize(("floor", "expected"), [(False, "scores"), (True, "scores_max_with_imputed")])
def test_warp_scores_like_the_golden_vectors(floor, expected):
    g, _, top = warp_golden(floor_at_imputed=floor)
    assert top.documents.tolist() == g["candidates"][np.lexsort((g["candidates"], -g[expected]))].tolist()
    np.testing.assert_allclose(top.scores[np.argsort(top.documents)], g[expected], atol=2e-5)


def test_probing_gives_ties_to_the_lower_number_and_imputes_what_lies_past_t_prime():
    table = np.array([0.5, 0.9, 0.5, 0.9, 0.1], np.float32)[:, None]
    cells, scores, imputed = REFERENCE.probe(table, 1, np.array([10, 10, 10, 10, 10]), nprobe=3, bound=5, t_prime=25)
    np.testing.assert_array_equal(cells, [[1, 3, 0]])
    np.testing.assert_allclose(scores, [[0.9, 0.9, 0.5]])
    np.testing.assert_allclose(imputed, [0.5])  # 20 tokens are passed after two centroids, 30 after three


def test_posting_scores_by_hand():
    codec = ResidualCodec(np.zeros((1, 8)), np.zeros(1), np.array([-0.5, 0.5], np.float32))
    packed = pack(np.array([[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]), 1)
    shard = shard_of(np.zeros(2, np.uint16), packed, np.array([0, 1, 2]), 1)
    query = np.array([[2.0, 1, 0, 0, 0, 0, 0, 0]], np.float32)
    cells, ones = np.zeros((1, 1), np.int64), np.ones(1, np.float32)
    scores, documents = REFERENCE.posting_scores(query, ones, cells, 0.25 * ones[:, None], 0 * ones, False, shard, codec)
    np.testing.assert_array_equal(documents, [0, 1])
    np.testing.assert_allclose(scores, [0.25 + 2 * 0.5 - 1 * 0.5, 0.25 - 2 * 0.5 - 1 * 0.5])


def statistics_of(num_docs: int, tokens_per_document: int = 70) -> IndexStatistics:
    num_tokens = num_docs * tokens_per_document
    return IndexStatistics(num_docs, num_tokens, np.full(default_num_centroids(num_tokens), 1))


@pytest.mark.parametrize("kernels", cost.COSTS)
def test_auto_is_exact_for_few_documents_then_scan_then_plaid(kernels):
    chosen = [resolve("auto", statistics_of(10**power), kernels).engine for power in range(1, 10)]
    changes = [engine for engine, before in zip(chosen, [None, *chosen], strict=False) if engine != before]
    assert changes == (["exact", "plaid"] if kernels == "reference" else ["exact", "scan", "plaid"])


COLLECTIONS = {"scifact": (5_183, 240), "squad": (20_958, 152), "12M": (93_750, 128), "50M": (390_625, 128), "100M": (781_250, 128)}
FASTEST = {"scifact": "scan", "squad": "scan", "50M": "plaid", "100M": "plaid"}
"""The engine that takes the least time in memory (bench/results/larger_than_memory.md). At 12 million tokens, scan and plaid are level."""


@pytest.mark.parametrize("kernels", [name for name in cost.COSTS if name.startswith("native:") and name != "native:portable"])
def test_estimates_order_engines_as_measured(kernels):
    for name, size in COLLECTIONS.items():
        statistics = statistics_of(*size)
        candidates = statistics.default_candidates(10)
        times = {engine: estimate_ms(engine, statistics, kernels, candidates) for engine in automatic_engines()}
        order = sorted(times, key=times.__getitem__)
        assert order[:2] in (["scan", "plaid"], ["plaid", "scan"]) and order[2:] == ["warp", "exact"]
        assert order[0] == FASTEST.get(name, order[0])
        assert choose(statistics, kernels)[0].engine == order[0]


def test_the_time_of_auto_on_the_disk_grows_at_most_with_the_square_root_of_the_tokens():
    times = []
    for num_docs in (93_750, 390_625, 781_250, 2_343_750):
        statistics = replace(statistics_of(num_docs, 128), on_disk=True)
        params, _ = choose(statistics, "native:avx512_vnni")
        times.append(estimate_ms(params.engine, statistics, "native:avx512_vnni", statistics.default_candidates(10)) / math.sqrt(num_docs))
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("kernels", cost.COSTS)
@pytest.mark.parametrize("num_docs", [10, 1000, 20_000, 300_000, 50_000_000])
def test_auto_chooses_the_engine_with_the_lowest_estimated_time(kernels, num_docs):
    statistics = statistics_of(num_docs)
    candidates = statistics.default_candidates(10)
    times = {estimate_ms(engine, statistics, kernels, candidates): engine for engine in automatic_engines()}
    assert resolve("auto", statistics, kernels).engine == times[min(times)]


FAR = 64_000 / (64_000 + 10_000_000)
"""Fraction of random accesses of 64,000 tokens that miss the caches."""


@pytest.mark.parametrize(
    ("engine", "plan", "stages"),
    [
        ("exact", 1_000 + 1000 * 20 * 2, [1000 * 64 * 10 * 2]),
        ("scan", 1_000 + 1000 * 20 * 2 + 1000 * 5, [64_000 * 0.5, 62.5 * (64 * 3 * 2 + 3000 * FAR), 38 * 64 * 10 * 2]),
        (
            "plaid",
            1_000 + 1000 * 20 * 2 + 1000 * 35,
            [32 * 2 * 1.7 * 64 * 5 + 1000 * (64 * 0.5 + 550 * FAR), 50 * (64 * 10 * 2 + 3000 * FAR)],
        ),
        ("warp", 1_000 + 1000 * 20 * 2 + 1000 * 30, [32 * 16 * 1.7 * 64 * (4 * 2 + 80 * FAR), 2 * 50 * (64 * 10 * 2 + 3000 * FAR)]),
    ],
)
def test_estimates_by_hand(engine, plan, stages):
    """256 dimensions are twice the 128 of the measurements, so dot products and postings take twice the nanoseconds."""
    statistics = IndexStatistics(1000, 64_000, np.full(1000, 64), dim=256)
    costs = cost.Costs(token=10, centroid=20, byte_table=5, code=0.5, probe=30, posting=4, nearest=3, query=1_000)
    estimate = ENGINES[engine].automatic.cost(statistics, costs, 50, 10)
    assert estimate.plan == pytest.approx(plan / 1e6)
    assert estimate.stages == pytest.approx([stage / 1e6 for stage in stages])


@pytest.mark.parametrize("engine", ["exact", "scan", "plaid", "warp"])
def test_an_estimate_grows_with_documents_dimensions_and_candidates(engine):
    small, wide = statistics_of(20_000), replace(statistics_of(20_000), dim=256)
    ms = estimate_ms(engine, small, "native:avx2", 200)
    assert estimate_ms(engine, statistics_of(200_000), "native:avx2", 200) > ms
    assert estimate_ms(engine, wide, "native:avx2", 200) > ms
    more = estimate_ms(engine, small, "native:avx2", 400)
    assert more == ms if engine == "exact" else more > ms


def test_auto_considers_the_cost_of_relations():
    plain, related = (replace(statistics_of(20_000), scorer_cost=cost) for cost in (0.0, RELATION_COST))
    assert estimate_ms("scan", related, "native:avx2", 200) > 4 * estimate_ms("scan", plain, "native:avx2", 200)
    assert estimate_ms("exact", related, "native:avx2", 200) < 2 * estimate_ms("exact", plain, "native:avx2", 200)
    assert resolve("auto", replace(statistics_of(1000), scorer_cost=RELATION_COST), "native:avx2").engine != "exact"


def test_auto_gives_its_reason_and_follows_the_quality():
    statistics = statistics_of(1_000_000)
    params, reason = choose(statistics, "native:avx2")
    assert reason.startswith(f"{params.engine}: ") and "exact" in reason
    assert resolve("auto", statistics, "native:avx2", "exact").engine == "exact"
    fast = resolve("auto", statistics_of(30_000), "native:avx2", "fast")
    assert fast.engine == "scan" and fast.candidate_fraction == 0.25
    with pytest.raises(ConfigError, match="fast, balanced, exact"):
        resolve("auto", statistics, "native:avx2", "best")


def test_an_unknown_engine_is_refused_with_the_known_engines():
    with pytest.raises(ConfigError, match="exact, scan, plaid, warp"):
        resolve("tfidf", IndexStatistics(1, 1, np.ones(1)))


@pytest.mark.parametrize("tokens", [4, 21, 60])
def test_quality_fast_uses_a_quarter_of_the_candidates_for_any_query_length(tokens):
    statistics, query = statistics_of(30_000), Query(np.eye(128, dtype=np.float32)[:tokens], np.ones(tokens, np.float32))
    codec, kernels = None, select("reference")
    fast, balanced = (
        scan.ENGINE.plan(query, codec, statistics, scan.ScanParams(candidate_fraction=fraction), 10, kernels).stage_limits[0]
        for fraction in (0.25, 1)
    )
    assert balanced == round(scan.MORE_CANDIDATES * statistics.default_candidates(10, tokens))
    assert fast == pytest.approx(balanced / 4, abs=1)
