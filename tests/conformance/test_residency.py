"""Residuals on the disk (residency=disk): equal answers to the bit, the choice of auto, and what is prefetched."""

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base import memory_limit, paging
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.clustering import default_num_centroids
from ray_lir.building.update import update_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.choice import choose
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.plan import IndexStatistics
from ray_lir.index import postings, residency
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import native
from ray_lir.planning.sizes import Collection, resident_memory
from ray_lir.search.searcher import Searcher
from tests.conformance.test_engines import EVERYTHING, TIGHT
from tests.conformance.test_weighted_engines import INPUTS
from tests.support.synthetic import collection, queries_about

ASKED = [0, 7, 41, 88, 149]
PLAIN = collection(150, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with indexes of plain vectors (with deleted documents), of token weights and relations, and of varying norms."""
    folder = tmp_path_factory.mktemp("indexes")
    config = IndexConfig(num_shards=3, clustering=ClusteringConfig(num_centroids=64), codec=CodecConfig(nbits=2))
    build_index(PLAIN, str(folder / "plain"), config, metadata=[{"even": i % 2 == 0} for i in range(150)])
    update_index(str(folder / "plain"), delete=["doc-3", "doc-41"])
    documents, relation = INPUTS["both"]
    build_index(documents, str(folder / "both"), config, relation=relation)
    norms = np.random.default_rng(0).uniform(0.5, 2, (PLAIN.num_tokens, 1)).astype(np.float16)
    build_index(TokenEmbeddings(PLAIN.values * norms, PLAIN.offsets, PLAIN.doc_ids), str(folder / "norms"), config)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in the indexes of the tests, and no warning that an earlier test has logged."""
    monkeypatch.setattr(native, "BLOCK_DOCUMENTS", 20)
    monkeypatch.setattr(postings, "BLOCK_TOKENS", 300)
    residency._warn.cache_clear()


def bits(searcher: Searcher, engine: object, **options: object) -> list[tuple[bytes, list[int]]]:
    queries = queries_about(PLAIN, ASKED)
    if searcher.manifest.contract.weighs:
        queries = TokenEmbeddings(queries.values, queries.offsets, queries.doc_ids, weights=np.ones(queries.num_tokens, np.float32))
    found = searcher.search(queries, 9, engine, **options)
    return [(top.scores.tobytes(), top.documents.tolist()) for top in found]


@pytest.mark.parametrize("name", ["plain", "both", "norms"])
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_answers_are_equal_to_the_bit(folder, name, engine):
    in_memory, on_disk = (Searcher.open(folder / name, residency=each) for each in ("memory", "disk"))
    assert (in_memory.residency, on_disk.residency) == ("memory", "disk")
    for params in (engine, TIGHT.get(engine, engine), EVERYTHING[engine]):
        assert bits(in_memory, params) == bits(on_disk, params)
        assert bits(in_memory, params, only=[1, 5, 80, 149]) == bits(on_disk, params, only=[1, 5, 80, 149])
    if name == "plain":
        assert bits(in_memory, engine, filters="even = true") == bits(on_disk, engine, filters="even = true")
    if name == "both":
        assert bits(in_memory, PlaidParams(candidate_fraction=0.1)) == bits(on_disk, PlaidParams(candidate_fraction=0.1))


def test_the_reference_kernels_give_equal_answers_too(folder):
    in_memory, on_disk = (Searcher.open(folder / "plain", kernels="reference", residency=each) for each in ("memory", "disk"))
    for engine in ("scan", "plaid", "warp"):
        assert bits(in_memory, TIGHT[engine]) == bits(on_disk, TIGHT[engine])


def test_posting_lists_and_distinct_codes_are_the_same_arrays(folder):
    for in_memory, on_disk in zip(*(Searcher.open(folder / "plain", residency=each).shards for each in ("memory", "disk")), strict=True):
        order = np.argsort(in_memory.codes, kind="stable")
        documents = np.searchsorted(in_memory.doc_offsets, order, side="right") - 1
        scales = in_memory.scales.astype(np.float32)
        for shard in (in_memory, on_disk):
            assert np.array_equal(shard.postings, order)
            assert np.array_equal(shard.posting_documents, documents)
            assert np.array_equal(shard.posting_ratios, (scales[:, 1] / scales[:, 0])[order])
            assert np.array_equal(np.diff(shard.posting_offsets), np.bincount(in_memory.codes, minlength=64))
        if native.available():
            for a, b in zip(native.distinct_codes(in_memory), native.distinct_codes(on_disk), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("engine", ["scan", "plaid", "warp"])
def test_exactly_the_rescored_documents_are_prefetched_in_the_order_of_their_numbers(folder, engine, monkeypatch):
    prefetched: list[np.ndarray] = []

    vector_pages = IndexShard.vector_pages

    def record(shard: IndexShard, numbers: np.ndarray) -> np.ndarray:
        prefetched.append(shard.first_document + numbers)
        return vector_pages(shard, numbers)

    monkeypatch.setattr(IndexShard, "vector_pages", record)
    params = TIGHT[engine]
    on_disk = Searcher.open(folder / "plain", residency="disk")
    [query] = [queries_about(PLAIN, [80])]
    on_disk.search(query, 4, params)
    numbers = np.concatenate(prefetched)
    assert len(numbers) == (4 if engine == "plaid" else 12)
    assert (np.diff(numbers) > 0).all()
    prefetched.clear()
    Searcher.open(folder / "plain", residency="memory").search(query, 4, params)
    assert not np.concatenate([np.zeros(0), *prefetched]).size


def test_ranges_of_pages_are_merged_and_ordered_by_row():
    wide, narrow = np.zeros((4096, 4096), np.uint8), np.zeros((4096, 1), np.uint8)
    ranges = paging.pages_of([wide, narrow], np.array([3, 5, 900]), np.array([5, 6, 901]))
    page = paging.mmap.PAGESIZE
    starts = [wide.ctypes.data + 3 * 4096, narrow.ctypes.data, wide.ctypes.data + 900 * 4096]
    assert ranges[:, 0].tolist() == [start // page * page for start in starts]
    needed = [starts[0] + 3 * 4096, narrow.ctypes.data + 901, starts[2] + 4096]
    assert (ranges.sum(axis=1).astype(np.int64) >= needed).all()
    assert paging.pages_of([wide], np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0, 2)


@pytest.mark.parametrize("missing", [(), ("process_madvise",), ("process_madvise", "madvise")])
def test_prefetching_works_on_every_kind_of_system(folder, missing, monkeypatch):
    class Library:
        def __getattr__(self, name: str) -> object:
            if name in missing:
                raise AttributeError(name)
            return getattr(paging.ctypes.CDLL(None), name)

    in_memory = Searcher.open(folder / "plain", residency="memory")
    library = Library()
    monkeypatch.setattr(paging, "_libc", lambda: library)
    assert bits(in_memory, "scan") == bits(Searcher.open(folder / "plain", residency="disk"), "scan")


def test_an_index_above_the_limit_leaves_residuals_on_the_disk_and_says_so_once(folder, monkeypatch, caplog):
    needed = residency.searched_bytes(Searcher.open(folder / "plain").manifest)
    for fraction, expected in ((0.74, "memory"), (0.76, "disk"), (0.76, "disk")):
        monkeypatch.setattr(residency, "memory_limit", lambda fraction=fraction: int(needed / fraction))
        with caplog.at_level(logging.WARNING):
            assert Searcher.open(folder / "plain").residency == expected
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        "the index needs 0.0 GB and the memory limit is 0.0 GB, so residuals stay on the disk (residency=disk) and 0.0 GB stay in memory; "
        "residency=memory maps everything"
    )
    assert Searcher.open(folder / "plain", residency="memory").residency == "memory"


def test_an_index_with_codes_above_the_limit_is_opened_with_a_second_warning(folder, monkeypatch, caplog):
    monkeypatch.setattr(residency, "memory_limit", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        Searcher.open(folder / "plain")
    assert "searches read them from the disk as well" in caplog.records[1].getMessage()


def test_the_environment_replaces_auto_only(folder, monkeypatch):
    monkeypatch.setenv(residency.VARIABLE, "disk")
    assert Searcher.open(folder / "plain").residency == "disk"
    assert Searcher.open(folder / "plain", residency="memory").residency == "memory"
    monkeypatch.setenv(residency.VARIABLE, "tape")
    with pytest.raises(ConfigError, match="RAY_LIR_RESIDENCY is 'tape'; choose auto, memory, disk"):
        Searcher.open(folder / "plain")
    with pytest.raises(ConfigError, match="residency is 'ram'; choose auto, memory, disk"):
        Searcher.open(folder / "plain", residency="ram")


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "a/memory.max"),
        ("0::/a/b", "unified/a/b/memory.max"),
        ("4:cpu,memory:/a/b", "memory/a/b/memory.limit_in_bytes"),
        ("4:memory:/a/b", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_memory_limit_is_the_smallest_of_all_control_groups(tmp_path, monkeypatch, line, file):
    monkeypatch.setattr(memory_limit, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory_limit, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text(f"3:cpu:/\n{line}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    unlimited = memory_limit.memory_limit()
    (tmp_path / file).write_text("max\n")
    assert memory_limit.memory_limit() == unlimited
    (tmp_path / file).write_text("123456\n")
    assert memory_limit.memory_limit() == 123456


def test_a_full_temporary_folder_is_reported_with_the_fix(monkeypatch, tmp_path):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ConfigError, match=r"needs room in the temporary folder .*No space left.*set TMPDIR"):
        paging.scratch_rows(iter([np.zeros(3)]), np.float64)


def test_a_temporary_array_is_on_the_disk_when_it_is_filled(monkeypatch):
    """Pages that are not written yet make later searches wait when memory is short."""
    written = []
    monkeypatch.setattr(paging.os, "fsync", lambda file: written.append(os.fstat(file).st_size))
    array = paging.scratch_rows([np.array([1, 2]), np.array([3])], np.int32)
    assert written == [12] and array.tolist() == [1, 2, 3]


def test_auto_never_chooses_random_reads_of_single_tokens_on_the_disk():
    def chosen(num_tokens: int, on_disk: bool) -> EngineConfig:
        num_centroids = default_num_centroids(num_tokens)
        sizes = np.full(num_centroids, num_tokens // num_centroids)
        return choose(IndexStatistics(num_tokens // 128, num_tokens, sizes, on_disk=on_disk), "native:avx2")[0]

    assert [chosen(tokens, False).engine for tokens in (10_000, 1_000_000, 100_000_000)] == ["exact", "scan", "plaid"]
    assert chosen(1_000, True).engine == "exact"
    for tokens in (1_000_000, 100_000_000, 1_000_000_000):
        assert chosen(tokens, True).engine in ("scan", "plaid")
    assert chosen(100_000_000, True) == PlaidParams(candidate_fraction=1)


def test_plaid_with_a_candidate_fraction_rescores_the_default_number_of_documents(folder):
    planner = Searcher.open(folder / "plain").planner
    query = queries_about(PLAIN, [80])
    candidates = planner.statistics.default_candidates(3, len(planner.plan(query, 3)[0].query.active), 0.1)
    [plaid] = planner.plan(query, 3, PlaidParams(candidate_fraction=0.1))
    assert plaid.stage_limits == (candidates, 3) and plaid.params.rescore == candidates
    [again] = planner.plan(query, 3, plaid.params)
    assert again.stage_limits == plaid.stage_limits and np.array_equal(again.clusters, plaid.clusters)
    [set_by_hand] = planner.plan(query, 3, PlaidParams(candidate_fraction=0.1, nprobe=2, ncandidates=40, centroid_score_threshold=0.3))
    assert (set_by_hand.params.nprobe, set_by_hand.stage_limits[0], set_by_hand.params.centroid_score_threshold) == (2, 40, 0.3)


def test_the_predicted_memory_is_that_of_the_manifest(folder):
    manifest = Searcher.open(folder / "plain").manifest
    of = Collection(150, PLAIN.num_tokens, 32, 2, 64, len(manifest.shards), 0)
    predicted, counted = resident_memory(of), residency.resident_bytes(manifest)
    assert predicted == pytest.approx(counted, abs=3 * 128 * len(manifest.shards))  # headers of the arrays


def test_plaid_in_auto_returns_all_allowed_documents_if_they_are_fewer_than_it_rescores(folder):
    searcher = Searcher.open(folder / "plain")
    query = queries_about(PLAIN, [80])
    [top] = searcher.search(query, 4, PlaidParams(nprobe=1, rescore=12), only=[3, 50, 110, 149])
    [exact] = searcher.search(query, 4, "exact", only=[3, 50, 110, 149])
    assert top.documents.tolist() == exact.documents.tolist() and np.array_equal(top.scores, exact.scores)
