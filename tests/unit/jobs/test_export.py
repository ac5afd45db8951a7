"""jobs.export: exported files hold the content of the index or the embeddings."""

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import jobs.export_files
from jobs.export import ExportJob, ExportManifest, run
from jobs.export_files import qdrant_collection
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError, Conflict, FormatError
from ray_lir.building.build import build_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.relation import load_relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import check_file, read_manifest
from tests.conformance.test_weighted_engines import relation_of
from tests.support.synthetic import collection, exact_scores, queries_about

DOCUMENTS = collection(600, dim=16)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "embeddings"
    save_embeddings(str(folder), DOCUMENTS, texts=[f"text of {doc_id}" for doc_id in DOCUMENTS.doc_ids])
    return folder


@pytest.fixture(scope="module", params=["lloyd_max", "quantile"])
def index(embeddings, request) -> Path:
    """Return an index with rotation and token scales, and one without."""
    folder = embeddings.parent / request.param
    codec = CodecConfig(nbits=8, buckets=request.param)
    build_index(str(embeddings), str(folder), IndexConfig(num_shards=3, clustering=ClusteringConfig(num_centroids=64), codec=codec))
    return folder


def arrays(folder: Path) -> TokenEmbeddings:
    """Return the array of the files that write_npy wrote."""
    numbers = range(len(list(folder.glob("embeddings-*.npy"))))
    values = np.concatenate([np.load(folder / f"embeddings-{number:05d}.npy") for number in numbers])
    lengths = np.concatenate([np.load(folder / f"doclens-{number:05d}.npy") for number in numbers])
    ids = [doc_id for number in numbers for doc_id in json.loads((folder / f"doc_ids-{number:05d}.json").read_text())]
    return TokenEmbeddings(values, np.concatenate([[0], np.cumsum(lengths)]), ids)


def test_exported_arrays_equal_the_vectors_to_the_bit(embeddings, tmp_path):
    run(ExportJob(source=str(embeddings), output=str(tmp_path / "out"), docs_per_file=200))
    exported = arrays(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("embeddings-*.npy"))) == 3  # row groups of 256, 256 and 88 documents
    assert np.array_equal(exported.values, DOCUMENTS.values) and np.array_equal(exported.offsets, DOCUMENTS.offsets)
    assert exported.doc_ids == list(DOCUMENTS.doc_ids)


def test_vectors_of_an_index_score_as_the_index_does(index, tmp_path):
    run(ExportJob(source=str(index), output=str(tmp_path / "out")))
    exported = arrays(tmp_path / "out")
    assert exported.doc_ids == list(DOCUMENTS.doc_ids)
    assert np.einsum("td,td->t", exported.values, DOCUMENTS.values, dtype=np.float32).min() > 0.93  # rotated back
    assert np.allclose(np.linalg.norm(exported.values.astype(np.float32), axis=1), 1, atol=2e-3)
    queries = queries_about(DOCUMENTS, [3, 200, 599])
    for number, answer in enumerate(Searcher.open(str(index), kernels="reference").search(queries, 5, "exact")):
        scores = exact_scores(queries[number], exported)
        assert np.allclose(scores[answer.documents], answer.scores, rtol=0.02)
        assert scores.max() == pytest.approx(answer.scores[0], rel=0.02)


def test_exported_parquet_has_one_list_of_equal_size_vectors_in_each_row(embeddings, tmp_path):
    run(ExportJob(source=str(embeddings), output=str(tmp_path / "out"), layout="parquet", docs_per_file=300))
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table.column("vectors").type.value_type == pa.list_(pa.float32(), 16)
    whole = pyarrow.dataset.dataset(tmp_path / "out", format="parquet", exclude_invalid_files=True).to_table()
    assert whole.column("doc_id").to_pylist() == list(DOCUMENTS.doc_ids)
    row = table.slice(7, 1).to_pylist()[0]
    assert (row["doc_id"], row["text"]) == ("doc-7", "text of doc-7")
    assert np.array_equal(np.array(row["vectors"], np.float16), DOCUMENTS[7])


def test_points_for_qdrant_keep_every_value_and_have_stable_ids(embeddings, tmp_path):
    for name in ("a", "b"):
        run(ExportJob(source=str(embeddings), output=str(tmp_path / name), layout="qdrant"))
    lines = [json.loads(line) for path in sorted((tmp_path / "a").glob("points-*.jsonl")) for line in path.read_text().splitlines()]
    assert len({uuid.UUID(point["id"]) for point in lines}) == len(DOCUMENTS)
    assert all(np.array_equal(np.array(point["vector"]["colbert"], np.float16), DOCUMENTS[i]) for i, point in enumerate(lines))
    assert lines[4]["payload"] == {"doc_id": "doc-4", "title": "", "text": "text of doc-4", "metadata": {}}
    assert (tmp_path / "a" / "points-00000.jsonl").read_bytes() == (tmp_path / "b" / "points-00000.jsonl").read_bytes()
    assert json.loads((tmp_path / "a" / "collection.json").read_text()) == qdrant_collection(16)


def test_a_document_without_tokens_is_not_a_qdrant_point_but_stays_in_the_arrays(tmp_path):
    source = TokenEmbeddings.of([np.eye(2, 16), np.zeros((0, 16)), np.eye(1, 16)], ["a", "empty", "c"])
    save_embeddings(str(tmp_path / "in"), source)
    run(ExportJob(source=str(tmp_path / "in"), output=str(tmp_path / "points"), layout="qdrant"))
    run(ExportJob(source=str(tmp_path / "in"), output=str(tmp_path / "arrays")))
    points = (tmp_path / "points" / "points-00000.jsonl").read_text().splitlines()
    assert [json.loads(point)["payload"]["doc_id"] for point in points] == ["a", "c"]
    assert arrays(tmp_path / "arrays").lengths.tolist() == [2, 0, 1]


def test_the_manifest_lists_every_file(embeddings, tmp_path):
    result = run(ExportJob(source=str(embeddings), output=str(tmp_path / "out"), layout="qdrant"))
    manifest = read_manifest(str(tmp_path / "out" / "manifest.json"), ExportManifest, "jobs.export")
    for entry in manifest.files:
        check_file(str(tmp_path / "out"), entry, content=True)
    there = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert {entry.name for entry in manifest.files} == there and result["files"] == len(there)


def test_a_folder_that_is_in_use_is_left_alone(embeddings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        run(ExportJob(source=str(embeddings), output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_source_is_reported_before_anything_is_written(embeddings, tmp_path):
    source = TokenEmbeddings.of([np.eye(2, 16)])
    save_embeddings(str(tmp_path / "in"), source)
    (part,) = (tmp_path / "in" / "embeddings").iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated or altered"):
        run(ExportJob(source=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FormatError, match=r"jobs\.encode or jobs\.build_index"):
        run(ExportJob(source=str(tmp_path / "nowhere"), output=str(tmp_path / "out")))


@pytest.fixture(scope="module")
def attended(tmp_path_factory) -> tuple[Path, TokenEmbeddings]:
    """Return embeddings of a scorer with document token weights."""
    folder = tmp_path_factory.mktemp("attended") / "embeddings"
    weights = np.random.default_rng(0).uniform(1, 1.5, DOCUMENTS.num_tokens).astype(np.float32)
    documents = TokenEmbeddings(DOCUMENTS.values, DOCUMENTS.offsets, DOCUMENTS.doc_ids, weights=weights)
    save_embeddings(str(folder), documents)
    return folder, documents


@pytest.mark.parametrize("source", ["embeddings", "index"])
def test_token_weights_are_exported_beside_the_vectors(attended, source, tmp_path):
    folder, documents = attended
    if source == "index":
        build_index(str(folder), str(tmp_path / "index"), IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=64)))
        folder = tmp_path / "index"
    run(ExportJob(source=str(folder), output=str(tmp_path / "arrays"), docs_per_file=300))
    found = np.concatenate([np.load(path) for path in sorted((tmp_path / "arrays").glob("weights-*.npy"))])
    np.testing.assert_allclose(found, documents.weights, atol=0 if source == "embeddings" else 3e-4)  # an index stores float16
    run(ExportJob(source=str(folder), output=str(tmp_path / "parquet"), layout="parquet"))
    table = pq.read_table(tmp_path / "parquet" / "part-00000.parquet")
    first = documents.offsets[1]
    np.testing.assert_allclose(table.column("weights")[0].as_py(), documents.weights[:first], atol=3e-4)
    assert [len(each) for each in table.column("weights").to_pylist()] == documents.lengths.tolist()


def test_a_relation_encoder_is_exported_unchanged(tmp_path):
    build_index(DOCUMENTS, str(tmp_path / "index"), relation=relation_of(dim=16))
    run(ExportJob(source=str(tmp_path / "index"), output=str(tmp_path / "out")))
    assert load_relation(str(tmp_path / "out" / "relation.safetensors"), 16).to_bytes() == relation_of(dim=16).to_bytes()
    assert "relation.safetensors" in (tmp_path / "out" / "manifest.json").read_text()


def test_scorers_that_qdrant_lacks_are_refused_before_anything_is_written(attended, tmp_path):
    build_index(DOCUMENTS, str(tmp_path / "related"), relation=relation_of(dim=16))
    for source, lost in ((attended[0], "token weights"), (tmp_path / "related", "relations")):
        with pytest.raises(ConfigError, match=f"Qdrant supports MaxSim only.*needs {lost}; choose --layout npy or parquet"):
            run(ExportJob(source=str(source), output=str(tmp_path / "out"), layout="qdrant"))
        assert not (tmp_path / "out").exists()


def test_the_later_of_two_concurrent_exports_is_refused(embeddings, tmp_path, monkeypatch):
    output = tmp_path / "out"
    digest_of = jobs.export_files.manifest_digest

    def other_export_publishes(manifest):
        (output / "manifest.json").write_text("another")
        return digest_of(manifest)

    monkeypatch.setattr(jobs.export_files, "manifest_digest", other_export_publishes)
    with pytest.raises(Conflict, match="another export wrote to"):
        run(ExportJob(source=str(embeddings), output=str(output)))
    assert (output / "manifest.json").read_text() == "another"
