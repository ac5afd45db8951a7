"""The executor: one loop over stages for a whole index and for groups of its shards."""

from dataclasses import replace

import numpy as np
import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.engines import ENGINES, SERVED, VECTOR_ENGINES
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.plan import IndexStatistics, Query
from ray_lir.engines.registry import stages_of
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.stages import StageLoop, run_stage, run_stages, score
from ray_lir.engines.warp import WarpParams
from ray_lir.kernels import select
from ray_lir.search.searcher import Searcher
from tests.support.hits import assert_same_hits
from tests.support.synthetic import collection, queries_about

DOCUMENTS = collection(200, seed=8)
CUTTING = {
    "exact": "exact",
    "scan": ScanParams(ncandidates=12),
    "plaid": PlaidParams(nprobe=2, ncandidates=16),
    "warp": WarpParams(nprobe=2, rescore=12),
}


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("stages") / "index")
    build_index(DOCUMENTS, path, IndexConfig(num_shards=5, clustering=ClusteringConfig(num_centroids=64)))
    return Searcher.open(path)


@pytest.mark.parametrize("engine", [name for name in SERVED if name in VECTOR_ENGINES])
def test_groups_of_shards_cut_like_the_whole_index(searcher, engine):
    plans = searcher.planner.plan(queries_about(DOCUMENTS, [3, 77, 150]), 4, CUTTING[engine])
    codec, kernels, allowed = searcher.planner.codec, searcher.kernels, [None] * len(plans)
    whole = run_stages(plans, searcher.shards, codec, kernels, allowed)
    loop = StageLoop(plans, allowed)
    for call in loop:
        groups = [run_stage(call, shards, codec, kernels) for shards in (searcher.shards[:2], searcher.shards[2:])]
        loop.cut([[group[plan] for group in groups] for plan in range(len(plans))], kernels)
    assert len(loop.kept) == len(whole.kept) == len(plans[0].stage_limits)
    for kept, expected in zip(loop.kept, whole.kept, strict=True):
        assert_same_hits(kept, expected)


def test_refined_candidates_are_cut_over_all_shards(searcher):
    queries, codec, kernels = queries_about(DOCUMENTS, [3, 77]), searcher.planner.codec, searcher.kernels
    plans = searcher.planner.plan(queries, 4, ScanParams(ncandidates=40, rescore=9))
    assert [plan.stage_limits for plan in plans] == [(40, 9, 4)] * 2
    assert [stage.name for stage in stages_of(plans)][: len(plans[0].stage_limits)] == ["score_codes", "refine", "rescore"]
    whole = run_stages(plans, searcher.shards, codec, kernels, [None] * 2)
    loop = StageLoop(plans, [None] * 2)
    for call in loop:
        groups = [run_stage(call, shards, codec, kernels) for shards in (searcher.shards[:2], searcher.shards[2:])]
        loop.cut([[group[plan] for group in groups] for plan in range(2)], kernels)
    for kept, expected in zip(loop.kept, whole.kept, strict=True):
        assert_same_hits(kept, expected)


def test_scan_refines_candidates_by_default_and_answers_with_parameters_that_repeat_the_search(searcher):
    queries = queries_about(DOCUMENTS, [3, 77, 150])
    found, exact = searcher.search(queries, 4, "scan"), searcher.search(queries, 4, "exact")
    assert 22 <= found[0].params.rescore < found[0].params.ncandidates
    assert_same_hits(found, exact)
    repeated = [searcher.search(queries.slice(row, row + 1), 4, top.params)[0] for row, top in enumerate(found)]
    assert_same_hits(repeated, found)
    [chosen] = searcher.planner.plan(queries.slice(0, 1), 4, ScanParams(ncandidates=30))
    assert chosen.stage_limits == (30, 4) and chosen.params.rescore is None
    [all_rescored] = searcher.planner.plan(queries.slice(0, 1), 4, ScanParams(ncandidates=30, rescore=99))
    assert all_rescored.stage_limits == (30, 30, 4)


@pytest.mark.parametrize(("num_tokens", "k", "limits"), [(21, 10, (161, 32, 10)), (21, 100, (509, 248, 100)), (5, 10, (675, 90, 10))])
def test_more_documents_are_rescored_for_short_queries(num_tokens, k, limits):
    statistics = IndexStatistics(5000, 500_000, np.full(1000, 500))
    query = Query(np.eye(128, dtype=np.float32)[:num_tokens], np.ones(num_tokens, np.float32))
    assert ENGINES["scan"].plan(query, None, statistics, ScanParams(), k, select("reference")).stage_limits == limits


def test_candidates_grow_with_the_documents_and_faster_for_short_queries():
    small, large = (IndexStatistics(num_docs, 128 * num_docs, np.full(1000, num_docs)) for num_docs in (5000, 500_000))
    growth = [large.default_candidates(10, tokens) / small.default_candidates(10, tokens) for tokens in (8, 20, 32, 80)]
    assert growth == pytest.approx([100**0.4, 100**0.4, 100**0.25, 100**0.1], rel=0.01)


@pytest.mark.parametrize("reason", [{"scorer_cost": 1.0}, {"unit_norms": False}])
def test_scan_rescores_all_candidates_where_refined_scores_would_mislead(searcher, reason):
    statistics = replace(searcher.planner.statistics, **reason)
    [plan] = replace(searcher.planner, statistics=statistics).plan(queries_about(DOCUMENTS, [3]), 4, "scan")
    assert plan.params.rescore is None and len(plan.stage_limits) == 2


def test_a_group_that_runs_ahead_keeps_all_documents_of_its_later_stages(searcher):
    [plan] = searcher.planner.plan(queries_about(DOCUMENTS, [3]), 2, ScanParams(ncandidates=30))
    loop = run_stages([plan], searcher.shards[:2], searcher.planner.codec, searcher.kernels, [None], ahead=[9])
    [[first], [later]] = loop.kept
    assert len(first.documents) == 30 and len(later.documents) == 9 > plan.stage_limits[-1]
    np.testing.assert_array_equal(np.sort(later.documents), np.sort(first.documents[:9]))
    alone = run_stages([plan], searcher.shards[:2], searcher.planner.codec, searcher.kernels, [None], ahead=[])
    assert len(alone.kept) == 1 and len(alone.seconds) == 1
    assert_same_hits(alone.kept[0], [first])


def test_parts_name_documents_of_the_index_and_come_in_the_order_of_shards(searcher):
    loop = StageLoop(searcher.planner.plan(queries_about(DOCUMENTS, [3]), 200, "exact"), [None])
    call = next(iter(loop))
    [parts] = score(call, searcher.shards, searcher.planner.codec, searcher.kernels)
    for part, shard in zip(parts, searcher.shards, strict=True):
        assert ((part.documents >= shard.first_document) & (part.documents < shard.first_document + shard.num_docs)).all()


def test_every_stage_has_a_name_of_its_own_and_one_sentence():
    for engine in ENGINES.values():
        names = [stage.name for stage in engine.stages]
        assert len(set(names)) == len(names)
        assert all(stage.description.endswith(".") and "\n" not in stage.description for stage in engine.stages)
