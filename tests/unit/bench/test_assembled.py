"""bench.peers.assembled: buckets, packing and files of the peers' indexes follow their definitions."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.comparison import report
from bench.peers import assembled
from bench.peers.inputs import Texts
from ray_lir.base.config import IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.folder import save_embeddings
from tests.support.synthetic import collection

NUM_CENTROIDS = 5


@pytest.fixture(scope="module")
def clustered() -> assembled.Clustered:
    """Return 30 documents, five centroids, and each token's nearest centroid."""
    documents = collection(num_docs=30, max_tokens=12)
    centroids = documents.values[:NUM_CENTROIDS].astype(np.float16)
    codes = (documents.values.astype(np.float32) @ centroids.astype(np.float32).T).argmax(axis=1)
    return assembled.Clustered(Texts(documents.values, documents.offsets), centroids, codes)


def numbers_of(packed: np.ndarray) -> np.ndarray:
    """Return the [T, D] bucket of each dimension: four bits each, the lowest first."""
    bits = np.unpackbits(packed, axis=1).reshape(len(packed), -1, assembled.NBITS)
    return bits @ (1 << np.arange(assembled.NBITS))


def test_buckets_are_quantiles_of_the_residuals() -> None:
    residuals = np.arange(-320, 321, dtype=np.float16).reshape(-1, 1)
    buckets = assembled.Buckets.fit(residuals)
    assert buckets.cutoffs.tolist() == [-320 + 40 * number for number in range(1, 16)]
    assert buckets.weights.tolist() == [-300 + 40 * number for number in range(16)]
    assert buckets.mean.tolist() == [np.abs(residuals.astype(np.float64)).mean().astype(np.float32)]


def test_a_residual_on_a_cutoff_is_in_the_lower_bucket(clustered: assembled.Clustered) -> None:
    residuals = clustered.residuals(slice(None)).astype(np.float32)
    cutoffs = np.sort(np.random.default_rng(0).choice(residuals.ravel(), 15, replace=False))
    expected = (residuals[:, :, None] > cutoffs).sum(axis=2)
    assert np.array_equal(numbers_of(assembled.pack(clustered, cutoffs)), expected)


def test_buckets_are_trained_on_the_last_twentieth_of_the_sample() -> None:
    offsets = np.array([0, 40, 60, 100])
    assert assembled.held_out(np.array([2, 0, 1]), offsets).tolist() == [55, 56, 57, 58, 59]
    assert assembled.held_out(np.array([0]), np.array([0, 1])).tolist() == [0]
    assert len(assembled.held_out(np.array([0]), np.array([0, 2_000_000]))) == assembled.HELD_OUT_TOKENS


def test_xtr_warp_keeps_tokens_by_centroid(clustered: assembled.Clustered, tmp_path: Path) -> None:
    assembled.write_xtr_warp(clustered, tmp_path, np.arange(30))
    by_document = np.load(tmp_path / "0.residuals.npy")
    offsets, found = np.load(tmp_path / "offsets.compacted.npy"), np.load(tmp_path / "codes.compacted.npy")
    for centroid in range(NUM_CENTROIDS):
        entries, rows = slice(*offsets[centroid : centroid + 2]), np.flatnonzero(clustered.codes == centroid)
        assert found[entries].tolist() == clustered.document_of[rows].tolist()
        assert np.array_equal(np.load(tmp_path / "residuals.compacted.npy")[entries], by_document[rows])
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert (metadata["num_passages"], metadata["num_embeddings"]) == (30, len(clustered.codes))


def test_fast_plaid_lists_the_documents_of_each_centroid(
    clustered: assembled.Clustered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembled, "FAST_PLAID_CHUNK_DOCS", 20)
    assembled.write_fast_plaid(clustered, tmp_path, np.arange(30))
    lists = np.split(np.load(tmp_path / "ivf.npy"), np.cumsum(np.load(tmp_path / "ivf_lengths.npy"))[:-1])
    expected = [sorted(set(clustered.document_of[clustered.codes == centroid].tolist())) for centroid in range(NUM_CENTROIDS)]
    assert [documents.tolist() for documents in lists] == expected
    codes, padding = np.load(tmp_path / "merged_codes.npy"), clustered.lengths.max() - clustered.lengths[-1]
    assert codes.tolist() == [*clustered.codes, *[0] * padding]
    lengths = [json.loads((tmp_path / f"doclens.{chunk}.json").read_text()) for chunk in range(2)]
    assert [len(chunk) for chunk in lengths] == [20, 10]
    assert sum(lengths, []) == clustered.lengths.tolist()


def test_exported_centroids_are_rotated_back(tmp_path: Path) -> None:
    documents = collection(num_docs=60, max_tokens=12)
    save_embeddings(str(tmp_path / "embeddings"), documents)
    build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), IndexConfig())
    found = assembled.read_clustered(tmp_path / "index", Texts(documents.values, documents.offsets))
    similarities = documents.values.astype(np.float32) @ found.centroids.astype(np.float32).T
    own = similarities[np.arange(len(found.codes)), found.codes]
    assert np.allclose(own, similarities.max(axis=1), atol=5e-3)


def test_the_report_has_no_build_time_for_assembled_indexes() -> None:
    row = report.build_row({"assembled": assembled.BY, "disk_bytes": 250}, num_tokens=100)
    line = report.build_line({"system": "peer", **row})
    assert line == "| peer | | assembled (k-means and assignment by ray_lir) | | | 2.5 |"
