"""FAISS on a GPU: xtr and the assignment of tokens find the same as on a CPU."""

from collections.abc import Iterator

import faiss
import numpy as np
import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building import clustering
from ray_lir.building.build import build_index
from ray_lir.building.clustering import Assigner
from ray_lir.engines.xtr import XtrParams
from ray_lir.index import faiss_gpu
from ray_lir.search.searcher import Searcher
from tests.support.synthetic import collection, queries_about, unit

needs_gpu = pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS sees no GPU: install faiss-gpu on a machine with one (docs/gpu.md)")


class FakeGpu:
    """Fake GPU classes of FAISS on the CPU: they count calls and have the limits of a GPU."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.searches = 0
        patch.setattr(faiss, "get_num_gpus", lambda: 1)
        patch.setattr(faiss, "StandardGpuResources", object, raising=False)
        patch.setattr(faiss, "GpuIndexFlatIP", self.index_of(faiss.IndexFlatIP), raising=False)
        patch.setattr(faiss, "GpuIndexFlatL2", self.index_of(faiss.IndexFlatL2), raising=False)

    def index_of(self, kind: type) -> type:
        """Return the fake of an index class."""
        fake = self

        class Index:
            def __init__(self, resources: object, dim: int):
                self.index = kind(dim)

            def add(self, vectors: np.ndarray) -> None:
                self.index.add(vectors)

            def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
                assert k <= faiss_gpu.MAX_RESULTS
                fake.searches += 1
                return self.index.search(queries, k)

        return Index


@pytest.fixture(params=["fake", pytest.param("real", marks=needs_gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu | None]:
    """Yield a fake GPU, and the real one if there is one."""
    yield FakeGpu(monkeypatch) if request.param == "fake" else None


def test_more_results_than_faiss_returns_are_exact_even_from_one_block(gpu, monkeypatch):
    monkeypatch.setattr(faiss_gpu, "MAX_RESULTS", 8)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 16)).astype(np.float32)
    vectors = rng.normal(size=(200, 16)).astype(np.float32)
    vectors[60:100] = queries[0] + 0.01 * rng.normal(size=(40, 16))
    found = faiss_gpu.GpuVectors(16)
    for start in range(0, 200, 50):
        found.add(vectors[start : start + 50])
    for k in (1, 8, 40, 200, 210):
        numbers, scores = found.search(queries, k)
        products = queries @ vectors.T
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(numbers[:, :200], best)
        np.testing.assert_allclose(scores[:, :200], np.take_along_axis(products, best, axis=1), rtol=1e-5, atol=1e-5)
        assert (numbers[:, 200:] == -1).all()


def test_xtr_finds_the_same_tokens_on_gpu_and_cpu(gpu, tmp_path, monkeypatch):
    documents = collection(200)
    queries = queries_about(documents, [3, 17, 90])
    build_index(documents, str(tmp_path / "index"), IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=32)))
    found = Searcher.open(str(tmp_path / "index")).search(queries, 10, XtrParams(k_prime=300))
    assert gpu is None or gpu.searches > 0
    before = gpu and gpu.searches
    filtered = Searcher.open(str(tmp_path / "index")).search(queries, 10, XtrParams(k_prime=300, nprobe=4), only=range(100))
    assert gpu is None or gpu.searches == before  # filtered searches and those of some clusters run on the CPU
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    by_cpu = Searcher.open(str(tmp_path / "index"))
    for answers, params, only in ((found, {}, None), (filtered, {"nprobe": 4}, range(100))):
        for answer, expected in zip(answers, by_cpu.search(queries, 10, XtrParams(k_prime=300, **params), only=only), strict=True):
            assert answer.documents.tolist() == expected.documents.tolist()
            assert answer.scores.tobytes() == expected.scores.tobytes()


def test_vectors_are_assigned_over_cells_found_on_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(clustering, "EXACT_CENTROIDS", 16)
    rng = np.random.default_rng(0)
    centroids, vectors = (unit(rng.normal(size=(number, 32))) for number in (100, 300))
    assigner = Assigner.over(centroids.astype(np.float32), 3, seed=0)
    vectors = vectors.astype(np.float16)
    codes = assigner(vectors)
    assert gpu is None or gpu.searches == 1
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert (codes == assigner(vectors)).mean() > 0.99  # two nearly equal distances may have either order
