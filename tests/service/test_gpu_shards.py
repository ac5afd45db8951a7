"""Shard groups on GPUs: merged searches, memory, health and settings. Kernels run on a GPU or under Triton's interpreter."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.errors import ConfigError, ShardUnavailable
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.plan import QueryPlan
from ray_lir.index.filters import Filters
from ray_lir.index.versions import read_version
from ray_lir.kernels import VARIABLE, Kernels
from ray_lir.planning.sizes import gpu_codec_bytes, gpu_groups_needed, gpu_shard_bytes, largest_gpu_group
from ray_lir.search.searcher import Searcher
from serving.app import demands_of, encoder_kernels, parse, spread_over_cards
from serving.workers import shard_server
from serving.workers.gpu import GpuShare
from serving.workers.shard_server import GroupAnswer, SearchCall, ShardServer
from serving.workers.versions import Served
from tests.support.served_index import QUERIES, make_index
from tests.support.triton_interpreter import cuda_kernels

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ray_lir[gpu]'")
NUM_DOCS = 40


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("gpu"), num_docs=NUM_DOCS, num_shards=4)


@pytest.fixture(scope="module")
def cuda() -> Iterator[Kernels]:
    with cuda_kernels() as kernels:
        yield kernels


@pytest.fixture(scope="module")
def server(index: Path, cuda: Kernels) -> ShardServer:
    return ShardServer(str(index), 1, 0, 1, 1.0, True, None, "cuda", GpuShare(1))


@pytest.fixture(scope="module")
def plans(index: Path, server: ShardServer) -> list[QueryPlan]:
    searcher = Searcher.open(str(index), kernels="cuda")
    queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
    return searcher.planner.plan(queries, 5, "exact")


def check_close(found: GroupAnswer, expected: GroupAnswer) -> None:
    for stage, expected_stage in zip(found.stages, expected.stages, strict=True):
        for top, expected_top in zip(stage, expected_stage, strict=True):
            np.testing.assert_array_equal(top.documents, expected_top.documents)
            np.testing.assert_allclose(top.scores, expected_top.scores, atol=32 * 1e-4)
    assert found.documents == expected.documents


def test_queued_searches_run_in_one_pass_with_the_answers_of_separate_searches(server, plans, monkeypatch):
    sizes = []

    def counted(batch, *arguments):
        sizes.append(len(batch))
        return run_stages(batch, *arguments)

    run_stages = shard_server.run_stages
    monkeypatch.setattr(shard_server, "run_stages", counted)
    filters = [None, Filters.of("row < 20"), None, Filters.of("row >= 10")]

    async def all_at_once() -> list[GroupAnswer]:
        searches = (server.search(Served(0, 1), [plan], each, [], ["title"]) for plan, each in zip(plans, filters, strict=True))
        return await asyncio.gather(*searches)

    together = asyncio.run(all_at_once())
    assert sizes == [4]
    for answer, plan, each in zip(together, plans, filters, strict=True):
        [alone] = shard_server._search_together(server.versions, [SearchCall(Served(0, 1), [plan], each, (), ["title"])])
        check_close(answer, alone)
    assert together[1].stages[0][0].documents.max() < 20 <= max(answer.stages[0][0].documents.max() for answer in together)


def test_calls_of_two_engines_take_two_passes_and_fail_separately(index, server, plans):
    scan = server.versions.get(Served(0, 1)).planner.plan(
        Encoder.for_contract(server.versions.get(Served(0, 1)).manifest.contract).encode_queries(QUERIES[:1]), 5, "scan"
    )
    calls = [
        SearchCall(Served(0, 1), plans[:2], None, (), None),
        SearchCall(Served(0, 1), scan, None, (40,), None),
        SearchCall(Served(0, 7), plans[:1], None, (), None),  # there is no version 7
    ]
    exact, scanned, missing = shard_server._search_together(server.versions, calls)
    assert isinstance(exact, GroupAnswer) and isinstance(scanned, GroupAnswer)
    assert (len(exact.stages[0]), len(scanned.stages)) == (2, 2)
    assert isinstance(missing, Exception) and "7" in str(missing)


def test_the_predicted_memory_of_a_shard_covers_its_device_memory(server, cuda):
    from ray_lir.kernels.cuda.memory import codec_memory, shard_memory
    from ray_lir.kernels.cuda.postings import posting_memory

    searcher = server.versions.get(Served(0, 1))
    for shard, entry in zip(searcher.shards, searcher.manifest.shards, strict=True):
        memory = shard_memory(shard)
        tiles = memory.tiles
        arrays = [memory.codes, memory.residuals, memory.scales, memory.doc_offsets, tiles.firsts, tiles.sizes, tiles.documents]
        placed = sum(each.nbytes for each in (*arrays, *posting_memory(shard)))
        scores = 2 * 4 * cuda.queries_together * entry.num_docs
        assert placed + scores <= gpu_shard_bytes(entry, searcher.manifest.num_centroids) <= 1.3 * (placed + scores)
    codec = codec_memory(searcher.planner.codec)
    assert codec.centroids.nbytes + codec.padded_centroids.nbytes <= gpu_codec_bytes(*codec.centroids.shape)


def test_a_too_large_group_is_refused_with_the_number_of_groups_that_fit(index):
    manifest = read_version(str(index))
    whole, halves, quarters = (largest_gpu_group(manifest, groups) for groups in (1, 2, 4))
    assert whole > halves > quarters
    assert [gpu_groups_needed(manifest, size) for size in (whole, halves, quarters, quarters - 1)] == [1, 2, 4, None]
    GpuShare(0.5, 2 * halves / 1e9).check_fits(manifest, 2)
    with pytest.raises(ConfigError, match="a group of 1 needs .* GB on its card .*; set num_groups to 2, or raise shard_gpus"):
        GpuShare(0.5, 2 * halves / 1e9).check_fits(manifest, 1)
    with pytest.raises(ConfigError, match="so does a group of a single shard; .* more shards .*now 4"):
        GpuShare(1, 0.5).check_fits(manifest, 4)


def test_a_replica_refuses_a_gpu_that_is_too_small(index, cuda):
    with pytest.raises(ConfigError, match="needs .* GB on its card and has 0.50"):
        ShardServer(str(index), 1, 0, 1, 1.0, True, None, "cuda", GpuShare(0.5, 1.0))


def test_a_device_that_fails_makes_the_replica_unhealthy(server, monkeypatch):
    from ray_lir.kernels.cuda import memory

    server.check_health()

    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore lines")

    monkeypatch.setattr(memory, "device", lost)
    with pytest.raises(ShardUnavailable, match="the GPU does not answer .CUDA error: unspecified launch failure.; this replica"):
        server.check_health()


def test_kernels_on_a_gpu_need_a_reserved_gpu_and_the_reverse(monkeypatch):
    with pytest.raises(ConfigError, match="kernels is cuda, but no GPU is reserved; set shard_gpus"):
        parse({"index": "I", "kernels": "cuda"})
    with pytest.raises(ConfigError, match="kernels native compute on CPUs; leave out shard_gpus"):
        parse({"index": "I", "kernels": "native", "shard_gpus": "0.5"})
    with pytest.raises(ConfigError, match="shard_gpus"):
        parse({"index": "I", "shard_gpus": "2"})
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="RAY_LIR_KERNELS is cuda, but no GPU is reserved"):
        parse({"index": "I"})
    assert parse({"index": "I", "shard_gpus": "1"}).kernels == "cuda"


def test_replicas_with_small_gpu_fractions_go_to_different_machines():
    small, large = ({"index": "I", "replicas": 2, "shard_gpus": fraction} for fraction in (0.5, 0.6))
    assert spread_over_cards(parse(small)) == {"max_replicas_per_node": 1}
    assert spread_over_cards(parse(large)) == spread_over_cards(parse({"index": "I", "replicas": 2})) == {}
    [_, shards] = demands_of(parse(small | {"num_groups": 3}))
    assert (shards.resources["GPU"], shards.count, shards.machines) == (0.5, 6, 2)


def test_plans_are_made_with_the_groups_kernels_where_the_encoder_has_a_gpu():
    assert encoder_kernels(parse({"index": "I", "shard_gpus": 1, "encoder_gpus": 0.1})) == "cuda"
    assert encoder_kernels(parse({"index": "I", "shard_gpus": 1})) in ("native", "reference")
    assert encoder_kernels(parse({"index": "I"})) == "auto"
