"""Building an index: inputs that change it, and interruptions that do not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError, FormatError, UnsupportedVersion
from ray_lir.building.build import build_index
from ray_lir.building.clustering import Assigner, default_num_centroids, sample_size
from ray_lir.building.token_clustering import centroids_per_id
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.residuals import decompress, normalize
from ray_lir.kernels import select
from ray_lir.kernels.reference import REFERENCE
from ray_lir.planning.preview import preview_build
from ray_lir.search.searcher import Searcher
from tests.support.index_files import tree
from tests.support.synthetic import collection, queries_about


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory) -> str:
    """Return a folder of three parts."""
    folder = str(tmp_path_factory.mktemp("embeddings"))
    save_embeddings(folder, collection(1200))
    return folder


def test_default_sizes_follow_colbertv2():
    assert [default_num_centroids(t) for t in (1, 1_386_000, 13_860_000)] == [16, 9424, 29776]
    assert [sample_size(n) for n in (10, 5_183, 1_000_000)] == [10, 5_183, 175_272]


def test_the_bytes_do_not_depend_on_the_map(embeddings, tmp_path):
    build_index(embeddings, str(tmp_path / "a"), map=map)
    build_index(embeddings, str(tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not list((tmp_path / "a").glob("_work*")) and not list((tmp_path / "a").rglob(".*"))


def test_codec_and_cluster_sizes_do_not_depend_on_the_shards(embeddings, tmp_path):
    one = build_index(embeddings, str(tmp_path / "one"))
    many = build_index(embeddings, str(tmp_path / "many"), IndexConfig(num_shards=5))
    assert (one.codec, one.cluster_sizes) == (many.codec, many.cluster_sizes)
    assert [shard.first_document for shard in many.shards] == list(np.cumsum([0, *(shard.num_docs for shard in many.shards[:-1])]))
    tokens = [shard.num_tokens for shard in many.shards]
    assert sum(tokens) == one.num_tokens and max(tokens) < 1.1 * min(tokens)


def test_embeddings_in_memory_and_in_a_folder_give_the_same_answers(embeddings, tmp_path):
    build_index(embeddings, str(tmp_path / "folder"))
    build_index(collection(1200), str(tmp_path / "memory"))
    assert tree(tmp_path / "folder") == tree(tmp_path / "memory")


def test_a_killed_build_that_runs_again_writes_the_same_bytes(embeddings, tmp_path):
    arguments = [sys.executable, "-m", "jobs.build_index", "--embeddings", embeddings, "--num-shards", "3", "--where", "here"]
    subprocess.run([*arguments, "--output", str(tmp_path / "undisturbed")], check=True, capture_output=True)
    killed = tmp_path / "killed"
    for sign in ("_work/*/sample/counts-00001.json", "_work/*/centroids-2.npy", "_work/*/pieces/00001-codes.npy"):
        process = subprocess.Popen([*arguments, "--output", str(killed)], stderr=subprocess.DEVNULL)
        while not list(killed.glob(sign)):
            assert process.poll() is None, "the build ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "LATEST").exists()
    subprocess.run([*arguments, "--output", str(killed)], check=True, capture_output=True)
    assert tree(killed) == tree(tmp_path / "undisturbed")


def test_two_concurrent_builds_publish_one_index(embeddings, tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "jobs.build_index",
        "--embeddings",
        embeddings,
        "--where",
        "here",
        "--output",
        str(tmp_path / "both"),
    ]
    builds = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], errors
    build_index(embeddings, str(tmp_path / "alone"))
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")


def test_files_of_killed_or_overtaken_runs_are_removed_by_the_next(embeddings, tmp_path):
    build_index(embeddings, str(tmp_path / "index"))
    undisturbed = tree(tmp_path / "index")
    (tmp_path / "index" / "_work" / "0123").mkdir(parents=True)
    (tmp_path / "index" / "_work" / "0123" / "centroids-1.npy").write_bytes(b"half a file")
    build_index(embeddings, str(tmp_path / "index"))
    assert tree(tmp_path / "index") == undisturbed


def test_an_unwritable_output_is_a_one_line_error(embeddings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        build_index(embeddings, str(tmp_path / "file" / "index"))


def test_a_finished_build_is_left_alone_and_another_configuration_refused(embeddings, tmp_path):
    manifest = build_index(embeddings, str(tmp_path / "index"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    assert build_index(embeddings, str(tmp_path / "index")) == manifest
    with pytest.raises(ConfigError, match="choose another output"):
        build_index(embeddings, str(tmp_path / "index"), IndexConfig(codec=CodecConfig(nbits=2)))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}


def test_a_folder_with_other_content_is_left_alone(embeddings, tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        build_index(embeddings, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("config", "message"),
    [(IndexConfig(num_shards=2000), "choose fewer shards"), (IndexConfig(codec=CodecConfig(nbits=1)), "multiple of 8")],
)
def test_an_invalid_configuration_is_refused_before_anything_is_written(tmp_path, config, message):
    save_embeddings(str(tmp_path / "embeddings"), collection(1200, dim=12))
    with pytest.raises(ConfigError, match=message):
        build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), config)
    assert not (tmp_path / "index").exists()


def test_an_altered_part_stops_the_build(tmp_path):
    manifest = save_embeddings(str(tmp_path / "embeddings"), collection(30))
    part = tmp_path / "embeddings" / manifest.parts[0].name
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(FormatError, match="bytes"):
        build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"))
    with pytest.raises(FormatError, match="jobs.encode"):
        build_index(str(tmp_path / "nowhere"), str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


def test_the_smallest_corpus_is_indexed(tmp_path):
    build_index(TokenEmbeddings.of([np.eye(8)[:1]]), str(tmp_path / "index"))
    top = Searcher.open(str(tmp_path / "index")).search(TokenEmbeddings.of([np.eye(8)[:1]]), 3)[0]
    np.testing.assert_allclose(top.scores, [1], atol=1e-3)
    with pytest.raises(ConfigError, match="no tokens"):
        build_index(TokenEmbeddings.of([np.zeros((0, 8))]), str(tmp_path / "empty"))


def test_assignment_over_cells_nearly_always_finds_the_nearest_centroid():
    documents = collection(1200)
    vectors = documents.values.astype(np.float32)
    centroids = normalize(vectors[np.random.default_rng(0).choice(len(vectors), 4096, replace=False)])
    assigner = Assigner.over(centroids, nprobe=8, seed=0)
    assert len(assigner.cells) == 64
    found, nearest = assigner(vectors), REFERENCE.assign(vectors, centroids)[0]
    assert (found == nearest).mean() > 0.97
    loss = (vectors * centroids[nearest]).sum(axis=1) - (vectors * centroids[found]).sum(axis=1)
    assert loss.mean() < 0.002
    np.testing.assert_array_equal(Assigner.over(centroids, nprobe=0, seed=0)(vectors[:500]), nearest[:500])


def with_token_ids(num_docs: int, topics: int = 60) -> TokenEmbeddings:
    """Return a collection in which nearby tokens share a vocabulary id; the last document has its own id."""
    documents = collection(num_docs, topics=topics)
    centres = normalize(documents.values[: 4 * topics].astype(np.float32))
    token_ids = REFERENCE.assign(documents.values, centres)[0].astype(np.int32)
    token_ids[-2:] = 5000
    return TokenEmbeddings(documents.values, documents.offsets, documents.doc_ids, token_ids=token_ids)


def test_token_aware_clustering_gives_every_token_id_its_own_centroids(tmp_path):
    documents = with_token_ids(600)
    config = IndexConfig(clustering=ClusteringConfig(method="token_aware", num_centroids=512))
    manifest = build_index(documents, str(tmp_path / "index"), config)
    assert build_index(documents, str(tmp_path / "again"), config, map=map).codec == manifest.codec
    searcher = Searcher.open(str(tmp_path / "index"))
    ids_of_centroid: dict[int, set[int]] = {}
    for code, token_id in zip(searcher.shards[0].codes.tolist(), documents.token_ids.tolist(), strict=True):
        ids_of_centroid.setdefault(code, set()).add(token_id)
    shared = [code for code, ids in ids_of_centroid.items() if len(ids - {5000}) > 1]
    assert not shared and len(ids_of_centroid) > 300
    top = searcher.search(queries_about(documents, [3, 599]), 1)
    assert [answer.documents[0] for answer in top] == [3, 599]


def test_centroids_of_a_token_id_follow_its_count_and_never_exceed_it():
    counts = np.array([0, 1, 2, 100, 10_000])
    shares = centroids_per_id(counts, 500)
    assert shares[0] == 0 and shares[1] == 1 and shares[2] in (1, 2) and (shares <= counts).all() and 480 <= shares.sum() <= 502
    assert shares[4] / shares[3] == pytest.approx(100**0.75, rel=0.1)


def test_token_aware_clustering_without_token_ids_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ConfigError, match="k_means"):
        build_index(collection(50), str(tmp_path / "index"), IndexConfig(clustering=ClusteringConfig(method="token_aware")))


@pytest.mark.parametrize("method", ["k_means", "token_aware"])
def test_the_codec_of_another_index_can_be_reused(tmp_path, method):
    documents = with_token_ids(600)
    clustering = ClusteringConfig(method=method, num_centroids=2500 if method == "k_means" else 512, num_iterations=2)
    codec = CodecConfig(nbits=2)
    built = build_index(documents, str(tmp_path / "built"), IndexConfig(clustering=clustering, codec=codec))
    again = build_index(documents, str(tmp_path / "again"), IndexConfig(num_shards=3, codec_from=str(tmp_path / "built")))
    assert (again.codec, again.cluster_sizes, again.mean_residual_norm) == (built.codec, built.cluster_sizes, built.mean_residual_norm)
    half = build_index(documents.slice(0, 300), str(tmp_path / "half"), IndexConfig(codec_from=str(tmp_path / "again")))
    assert half.codec == built.codec and half.num_docs == 300
    whole, part = (Searcher.open(str(tmp_path / name)).shards[0] for name in ("built", "half"))
    for name in ("codes", "residuals", "scales"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[: half.num_tokens])


def test_a_codec_with_other_dimensions_is_refused(tmp_path):
    built = str(tmp_path / "built")
    build_index(collection(50), built)
    for documents, config, message in (
        (collection(50, dim=16), IndexConfig(codec_from=built), "16 dimensions"),
        (collection(50), IndexConfig(codec_from=built, codec=CodecConfig(nbits=2)), "codec settings differ.*leave them out"),
        (collection(50), IndexConfig(codec_from=str(tmp_path / "nowhere")), "expected an index"),
    ):
        with pytest.raises((ConfigError, FormatError), match=message):
            build_index(documents, str(tmp_path / "index"), config)


def test_more_iterations_bring_centroids_nearer_to_the_vectors(tmp_path):
    norms = []
    for iterations in (1, 8):
        clustering = ClusteringConfig(num_centroids=64, num_iterations=iterations)
        norms.append(build_index(collection(300), str(tmp_path / str(iterations)), IndexConfig(clustering=clustering)).mean_residual_norm)
    assert norms[1] < 0.98 * norms[0]


def test_an_index_with_residual_bytes_is_found_and_refused_by_older_releases(tmp_path, monkeypatch):
    documents, root = collection(400), str(tmp_path / "index")
    codec = CodecConfig(buckets="trellis", residual_bytes=9)
    config = IndexConfig(codec=codec, clustering=ClusteringConfig(num_centroids=64))
    predicted = preview_build(documents_folder(documents, tmp_path), root, config)
    manifest = build_index(documents, root, config)
    assert (manifest.format_version, manifest.residual_bytes, manifest.nbits) == (3, 9, 2)
    assert build_index(documents, str(tmp_path / "again"), config).codec == manifest.codec
    searcher = Searcher.open(root)
    shard = searcher.shards[0]
    assert (shard.residuals.shape[1], shard.scales.dtype, shard.scales.ndim) == (9, np.uint8, 1)
    sizes = predicted["bytes_by_kind"]
    assert (sizes["residuals"], sizes["scales"]) == (shard.residuals.nbytes, shard.scales.nbytes)
    queries = list(range(0, 400, 20))
    for kernels in ("native", "reference"):
        for engine in ("exact", "plaid", "warp", "scan"):
            hits = Searcher.open(root, kernels=kernels).search(queries_about(documents, queries), 1, engine)
            assert np.mean([hit.documents[0] for hit in hits] == np.array(queries)) >= 0.9
    other = build_index(documents.slice(0, 200), str(tmp_path / "other"), IndexConfig(codec_from=root))
    assert (other.codec, other.format_version, other.residual_bytes) == (manifest.codec, 3, 9)
    monkeypatch.setattr("ray_lir.storage.manifest.NEWEST_VERSION", 2)
    with pytest.raises(UnsupportedVersion, match="format_version up to 2, found 3; upgrade ray_lir to read it"):
        Searcher.open(root)


def documents_folder(documents: TokenEmbeddings, tmp_path: Path) -> str:
    save_embeddings(str(tmp_path / "embeddings"), documents)
    return str(tmp_path / "embeddings")


def test_residual_bytes_need_unit_vectors_and_fitting_dimensions(tmp_path):
    documents = collection(100)
    config = IndexConfig(codec=CodecConfig(buckets="trellis", residual_bytes=9))
    long = TokenEmbeddings(documents.values * np.float16(3), documents.offsets, documents.doc_ids)
    with pytest.raises(ConfigError, match="not of unit length, which codec.residual_bytes needs"):
        build_index(long, str(tmp_path / "long"), config)
    with pytest.raises(ConfigError, match="residual_bytes is 30; with 32 dimensions choose 4 to 16"):
        build_index(documents, str(tmp_path / "many"), IndexConfig(codec=CodecConfig(buckets="trellis", residual_bytes=30)))


@pytest.mark.parametrize("nbits", [1, 2])
def test_an_index_with_a_trellis_is_found_updated_and_refused_by_older_releases(tmp_path, monkeypatch, nbits):
    documents = collection(400)
    config = IndexConfig(codec=CodecConfig(nbits=nbits, buckets="trellis"), clustering=ClusteringConfig(num_centroids=64))
    root = str(tmp_path / "index")
    manifest = build_index(documents, root, config)
    assert manifest.format_version == 2 and build_index(documents, str(tmp_path / "again"), config).codec == manifest.codec
    scalar = build_index(documents, str(tmp_path / "scalar"), IndexConfig(codec=CodecConfig(nbits=nbits), clustering=config.clustering))
    assert scalar.format_version == 1 and scalar.nbits == manifest.nbits

    def error(name: str) -> float:
        searcher = Searcher.open(str(tmp_path / name))
        shard, codec = searcher.shards[0], searcher.planner.codec
        vectors = codec.rotate(documents.values.astype(np.float32), select("auto"))
        return float(np.square(decompress(shard.codes, shard.residuals, shard.scales, codec) - vectors).mean())

    assert error("index") < 0.97 * error("scalar")
    queries = list(range(0, 400, 20))
    for engine in ("exact", "plaid", "warp", "scan"):
        hits = Searcher.open(root).search(queries_about(documents, queries), 1, engine)
        assert np.mean([hit.documents[0] for hit in hits] == np.array(queries)) >= 0.8
    other = build_index(documents.slice(0, 200), str(tmp_path / "other"), IndexConfig(codec_from=root))
    assert (other.codec, other.format_version) == (manifest.codec, 2)
    monkeypatch.setattr("ray_lir.storage.manifest.NEWEST_VERSION", 1)
    with pytest.raises(UnsupportedVersion, match="format_version up to 1, found 2; upgrade ray_lir to read it"):
        Searcher.open(root)
