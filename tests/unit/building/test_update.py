"""Updating and compacting an index: it answers like a new build, and interruptions do no harm."""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_lir import storage
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError, Conflict, FormatError, IncompatibleError
from ray_lir.building import replace_shards as replacing
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.publishing import remove_versions
from ray_lir.building.replace_shards import replace_shards, shards_to_replace
from ray_lir.building.update import advice, drift_of
from ray_lir.building.update import update_index as update_checked
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.folder import external_contract, save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.index.manifest import listed_names
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import create_bytes
from ray_lir.storage.manifest import LATEST
from tests.support.index_files import tree
from tests.support.synthetic import collection, queries_about, unit
from tests.unit.storage.test_s3 import bucket  # noqa: F401

DOCUMENTS = collection(300)
QUERIES = queries_about(DOCUMENTS, [0, 41, 99, 150, 222, 299])
TIGHT = {"scan": ScanParams(ncandidates=12), "plaid": PlaidParams(nprobe=2, ncandidates=16), "warp": WarpParams(nprobe=2, rescore=12)}
update_index = partial(update_checked, allow_empty_texts=True)
"""Most of these tests are about vectors: the index has texts, and added documents have none."""
CONFIG = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=64))


def some(numbers, suffix: str = "", source: TokenEmbeddings = DOCUMENTS) -> TokenEmbeddings:
    """Return documents of the collection with new ids."""
    return TokenEmbeddings.of([source[number] for number in numbers], [f"doc-{number}{suffix}" for number in numbers])


def answers(index: Path | str, k: int = 8) -> list:
    """Return ids and scores of every engine, at its defaults and with tight cuts."""
    searcher = Searcher.open(str(index), verify=True)
    found = []
    for engine in VECTOR_ENGINES:
        for params in (engine, TIGHT.get(engine, engine)):
            tops = searcher.search(QUERIES, k, params)
            found.append([list(zip(searcher.doc_ids(top.documents), top.scores.tolist(), strict=True)) for top in tops])
    return found


def fresh(folder: Path, documents: TokenEmbeddings, codec_from: Path) -> Path:
    """Build a new index of these documents with the codec of another."""
    build_index(documents, str(folder), IndexConfig(codec_from=str(codec_from)))
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Return an index of the first 200 documents."""
    folder = tmp_path_factory.mktemp("template") / "index"
    build_index(some(range(200)), str(folder), CONFIG, texts=[f"text {number}" for number in range(200)])
    return folder


@pytest.fixture
def index(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "index"))


@pytest.fixture(scope="module")
def trellis_template(tmp_path_factory) -> Path:
    """Return an index of the first 200 documents, whose residuals are in a trellis."""
    folder = tmp_path_factory.mktemp("trellis") / "index"
    config = CONFIG.model_copy(update={"codec": CodecConfig(nbits=2, buckets="trellis")})
    build_index(some(range(200)), str(folder), config, texts=[f"text {number}" for number in range(200)])
    return folder


@pytest.fixture(scope="module")
def residual_bytes_template(tmp_path_factory) -> Path:
    """Return an index of the first 200 documents with 9 bytes for the residual of each token."""
    folder = tmp_path_factory.mktemp("residual_bytes") / "index"
    config = CONFIG.model_copy(update={"codec": CodecConfig(buckets="trellis", residual_bytes=9)})
    build_index(some(range(200)), str(folder), config, texts=[f"text {number}" for number in range(200)])
    return folder


@pytest.fixture(params=["template", "trellis_template", "residual_bytes_template"])
def each_index(request, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "index"))


def test_updated_and_compacted_indexes_answer_like_a_new_build(each_index, tmp_path):
    index = each_index
    changed = some([5, 60], source=collection(300, seed=9))
    added = TokenEmbeddings.of([*some(range(200, 260)), *changed], [*some(range(200, 260)).doc_ids, *changed.doc_ids])
    deleted = [f"doc-{number}" for number in range(0, 200, 7)]
    update = update_index(str(index), added, [*deleted, "doc-60", "nobody"])
    assert (update.version, update.change.num_added, update.change.num_replaced) == (2, 62, 2)
    assert (update.change.num_deleted, update.change.num_unknown) == (len(deleted), 1)
    kept = [number for number in range(200) if number % 7 and number not in (5, 60)]
    documents = TokenEmbeddings.of([*some(kept), *added], [*some(kept).doc_ids, *added.doc_ids])
    expected = answers(fresh(tmp_path / "fresh", documents, index))
    manifest = read_version(str(index))
    assert (manifest.num_docs, manifest.num_tokens) == (len(documents), documents.num_tokens)
    assert answers(index) == expected
    compacted = compact_index(str(index))
    assert (compacted.version, len(compacted.manifest.shards), compacted.manifest.num_numbers) == (3, 2, len(documents))
    assert answers(index) == expected
    new, old = compacted.manifest, read_version(str(tmp_path / "fresh"))
    assert [getattr(new, name) for name in ("num_docs", "num_tokens", "codec")] == [
        getattr(old, name) for name in ("num_docs", "num_tokens", "codec")
    ]
    assert new.cluster_sizes.sha256 == old.cluster_sizes.sha256
    assert not list(index.glob("_work*"))


def test_texts_stay_with_their_documents_after_changes(index):
    update_index(str(index), some([250, 3]), ["doc-0", "doc-199"], texts=["new text", "other text"])
    for searcher in (Searcher.open(str(index)), (compact_index(str(index), 3), Searcher.open(str(index)))[1]):
        found = searcher.find(["doc-1", "doc-3", "doc-250", "doc-0"])
        texts = {row["doc_id"]: row["text"] for row in searcher.documents(list(found.values()))}
        assert texts == {"doc-1": "text 1", "doc-3": "other text", "doc-250": "new text"}


@st.composite
def changes(draw) -> list[tuple]:
    """A sequence of changes: ("add", numbers, variant), ("delete", numbers) or ("compact", number of shards)."""
    numbers = st.lists(st.integers(0, 59), min_size=1, max_size=25, unique=True)
    add = st.tuples(st.just("add"), numbers, st.integers(0, 1))
    delete = st.tuples(st.just("delete"), numbers)
    compact = st.tuples(st.just("compact"), st.sampled_from([None, 1, 3]))
    return draw(st.lists(st.one_of(add, delete, add, delete, compact), min_size=1, max_size=6))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=changes())
def test_any_sequence_of_changes_answers_like_a_new_build(small, tmp_path_factory, sequence):
    folder = tmp_path_factory.mktemp("property")
    index = Path(shutil.copytree(small, folder / "index"))
    variants = [DOCUMENTS, collection(300, seed=3)]
    model: dict[str, np.ndarray] = {f"doc-{number}": DOCUMENTS[number] for number in range(40)}
    for kind, argument, *variant in sequence:
        if kind == "add":
            added = some(argument, source=variants[variant[0]])
            update_index(str(index), added)
            for doc_id, tokens in zip(added.doc_ids, added, strict=True):
                model.pop(doc_id, None)
                model[doc_id] = tokens
        elif kind == "delete":
            update_index(str(index), delete=[f"doc-{number}" for number in argument])
            model = {doc_id: tokens for doc_id, tokens in model.items() if doc_id not in {f"doc-{number}" for number in argument}}
        elif len(model) >= 3:
            compact_index(str(index), argument)
    if model:
        assert answers(index) == answers(fresh(folder / "fresh", TokenEmbeddings.of(list(model.values()), list(model)), small))
    else:
        assert not any(ranking for rankings in answers(index) for ranking in rankings)
    remove_versions(str(index), 1)
    assert len(Searcher.open(str(index), verify=True).find(list(model))) == len(model)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "index"
    build_index(some(range(40)), str(folder), IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=16)))
    return folder


def test_a_fully_deleted_index_answers_nothing_and_can_be_filled_again(index, tmp_path):
    everything = [f"doc-{number}" for number in range(200)]
    assert update_index(str(index), delete=everything).manifest.num_docs == 0
    assert not any(ranking for rankings in answers(index) for ranking in rankings)
    with pytest.raises(ConfigError, match="every document of the index is deleted"):
        compact_index(str(index))
    update_index(str(index), some(range(200, 230)))
    expected = answers(fresh(tmp_path / "fresh", some(range(200, 230)), index))
    assert answers(index) == expected
    assert compact_index(str(index)).manifest.num_numbers == 30
    assert answers(index) == expected


def test_repeating_the_latest_update_does_nothing(index):
    first = update_index(str(index), some(range(200, 210)), ["doc-1"])
    before = tree(index)
    again = update_index(str(index), some(range(200, 210)), ["doc-1"])
    assert again == first and tree(index) == before
    assert not compact_index(str(index), 2).changed or latest_version(str(index)) == 3
    assert not compact_index(str(index)).changed and latest_version(str(index)) == 3
    assert update_index(str(index), some(range(200, 210)), ["doc-1"]).version == 4  # all are replaced by the compaction


def test_deleting_unknown_ids_changes_nothing(index):
    before = tree(index)
    update = update_index(str(index), delete=["nobody", "doc-200"])
    assert (update.version, update.change.num_unknown, update.change.num_deleted) == (1, 2, 0)
    assert tree(index) == before


@pytest.mark.parametrize(
    ("add", "delete", "error", "message"),
    [
        (None, [], ConfigError, "nothing to add and nothing to delete"),
        (TokenEmbeddings.of([np.eye(2, 16)]), [], IncompatibleError, "have 16 dimensions and the index 32"),
    ],
)
def test_an_invalid_update_changes_nothing(index, tmp_path, add, delete, error, message):
    before = tree(index)
    if add is not None:
        save_embeddings(str(tmp_path / "add"), add)
    for added in (None,) if add is None else (str(tmp_path / "add"), add):
        with pytest.raises(error, match=message):
            update_index(str(index), added, delete)
        assert tree(index) == before and not list(index.glob("_work*"))


def test_embeddings_of_another_encoder_are_refused(index, tmp_path):
    contract = EncoderContract(checkpoint="other", weights_digest="abc", dim=32, query_length=32, document_length=180)
    save_embeddings(str(tmp_path / "add"), some([1]), contract)
    with pytest.raises(IncompatibleError, match="the encoder of the added embeddings .* does not fit the index"):
        update_index(str(index), str(tmp_path / "add"))
    with pytest.raises(FormatError, match="expected an index"):
        update_index(str(tmp_path / "nowhere"), delete=["doc-1"])


def stopping_after(calls: int):
    """A map that stops with an error."""
    left = [calls]

    def broken(function, items):
        for item in items:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield function(item)

    return broken


def change_much(index: Path, folder: Path, map=map) -> None:
    update_index(str(index), str(folder), ["doc-1", "doc-150"], map=map)


def test_an_interrupted_change_that_runs_again_writes_the_same_bytes(template, tmp_path):
    save_embeddings(str(tmp_path / "add"), some(range(190, 300)))
    undisturbed, broken = (Path(shutil.copytree(template, tmp_path / name)) for name in ("undisturbed", "broken"))
    change_much(undisturbed, tmp_path / "add")
    before = answers(broken)
    for calls in range(4):  # two shards to delete from, one part to compress, one shard to assemble
        with pytest.raises(KeyboardInterrupt):
            change_much(broken, tmp_path / "add", stopping_after(calls))
        assert latest_version(str(broken)) == 1 and answers(broken) == before
    change_much(broken, tmp_path / "add")
    assert tree(broken) == tree(undisturbed)
    compact_index(str(undisturbed), 3)
    for calls in range(3):
        with pytest.raises(KeyboardInterrupt):
            compact_index(str(broken), 3, map=stopping_after(calls))
        assert latest_version(str(broken)) == 2
    compact_index(str(broken), 3)
    assert tree(broken) == tree(undisturbed)


def test_a_change_killed_while_publishing_is_finished_by_the_same_change_and_refused_to_others(index):
    update_index(str(index), delete=["doc-1"])
    after = tree(index)
    (index / LATEST).write_text("1\n")
    with pytest.raises(Conflict, match="write 2 into LATEST, or remove that folder"):
        update_index(str(index), delete=["doc-2"])
    assert latest_version(str(index)) == 1
    assert update_index(str(index), delete=["doc-1"]).version == 2
    assert tree(index) == after


def test_the_later_of_two_concurrent_changes_is_refused(index):
    def overtaken(function, items):
        update_index(str(index), delete=["doc-2"])
        return map(function, items)

    with pytest.raises(Conflict, match="published meanwhile, and this one was not; run it again"):
        update_index(str(index), some(range(200, 210)), ["doc-1"], map=overtaken)
    searcher = Searcher.open(str(index), verify=True)
    assert latest_version(str(index)) == 2 and set(searcher.find(["doc-1", "doc-2", "doc-200"])) == {"doc-1"}
    with pytest.raises(Conflict, match="run it again"):
        compact_index(str(index), map=lambda function, items: (update_index(str(index), delete=["doc-3"]), map(function, items))[1])
    update_index(str(index), some(range(200, 210)), ["doc-1"])
    assert set(Searcher.open(str(index)).find(["doc-1", "doc-2", "doc-3", "doc-200"])) == {"doc-200"}


def test_two_concurrent_equal_changes_are_made_once(index):
    def twin(function, items):
        update_index(str(index), delete=["doc-1"])
        return map(function, items)

    assert update_index(str(index), delete=["doc-1"], map=twin).version == 2
    assert latest_version(str(index)) == 2 and read_version(str(index)).num_docs == 199


def test_only_one_writer_creates_a_version(tmp_path, monkeypatch):
    target = str(tmp_path / "versions" / "2" / "manifest.json")
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda number: created(target, f"writer {number}".encode()), range(8)))
    assert outcomes.count(True) == 1 and Path(target).read_text() == f"writer {outcomes.index(True)}"
    create_bytes(target, Path(target).read_bytes())  # its own version: the reply to an earlier attempt was lost
    assert [path.name for path in Path(target).parent.iterdir()] == ["manifest.json"]


def test_a_store_without_conditional_writes_is_checked_before_writing(bucket, monkeypatch):  # noqa: F811
    fs, _ = storage.filesystem(bucket)
    put = fs.pipe_file

    def refusing(path, data, mode="overwrite", **options):
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        put(path, data, **options)

    monkeypatch.setattr(fs, "pipe_file", refusing)
    assert created(f"{bucket}/manifest.json", b"one") and not created(f"{bucket}/manifest.json", b"two")
    assert storage.read_bytes(f"{bucket}/manifest.json") == b"one"
    with pytest.raises(OSError):
        create_bytes("s3://no-such-bucket-here/manifest.json", b"one")


def created(target: str, data: bytes) -> bool:
    try:
        create_bytes(target, data)
    except FileExistsError:
        return False
    return True


def test_open_searchers_keep_their_version(index):
    searcher = Searcher.open(str(index))
    before = [searcher.search(QUERIES, 8, engine) for engine in VECTOR_ENGINES]
    update_index(str(index), some(range(200, 210)), [f"doc-{number}" for number in range(100)])
    compact_index(str(index))
    remove_versions(str(index), 1)
    for engine, tops in zip(VECTOR_ENGINES, before, strict=True):
        for top, again in zip(tops, searcher.search(QUERIES, 8, engine), strict=True):
            np.testing.assert_array_equal(top.documents, again.documents)
            np.testing.assert_array_equal(top.scores, again.scores)
            assert searcher.doc_ids(again.documents) == [f"doc-{number}" for number in again.documents]


def test_old_versions_are_removed_with_their_own_files(index):
    update_index(str(index), some(range(200, 210)), ["doc-1"])
    compact_index(str(index))
    update_index(str(index), delete=["doc-2"])
    expected = answers(index)
    kept = tree(index)
    assert remove_versions(str(index), 4)["versions_removed"] == [] and tree(index) == kept
    assert remove_versions(str(index), 2) == {"versions_removed": [1, 2], "removed": 5}  # 2 shards, a delta, tombstones, cluster sizes
    assert sorted(path.name for path in (index / "versions").iterdir()) == ["3", "4"]
    for version in (3, 4):
        Searcher.open(str(index), version, verify=True)
    assert answers(index) == expected
    listed = listed_names(read_version(str(index))) | listed_names(read_version(str(index), 3))
    there = {
        f"{part.name}/{path.name}" for part in index.iterdir() if part.name in ("codec", "shards", "tombstones") for path in part.iterdir()
    }
    assert there == listed
    with pytest.raises(ConfigError, match="at least the latest"):
        remove_versions(str(index), 0)


def test_a_killed_removal_is_finished_by_the_next(index, monkeypatch):
    compact_index(str(index), 3)
    removed = []

    def dies(url):
        if removed:
            raise KeyboardInterrupt
        removed.append(url)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("ray_lir.storage.remove", dies)
        remove_versions(str(index), 1)
    assert not (index / "versions" / "1").exists() and len(list((index / "shards").iterdir())) == 5
    assert remove_versions(str(index), 1)["versions_removed"] == []
    assert len(list((index / "shards").iterdir())) == 3 and not list(index.glob("_work*"))


def test_tuned_choices_carry_over_to_the_next_version(index):
    (index / "versions" / "1" / "tuning.json").write_text('{"k": 10, "choices": {"balanced": {"engine": "scan", "ncandidates": 33}}}')
    update_index(str(index), delete=["doc-1"])
    assert Searcher.open(str(index)).planner.tuning.choices["balanced"] == ScanParams(ncandidates=33)


def test_an_update_with_large_drift_is_reported(index):
    update = update_index(str(index), some(range(200, 300)))
    assert drift_of(update.manifest) == pytest.approx(1, abs=0.05) and advice(update.manifest) is None
    others = collection(300, seed=77)
    update = update_index(str(index), TokenEmbeddings.of(list(others), [f"other-{number}" for number in range(300)]))
    own, before = update.change.mean_residual_norm, read_version(str(index), 1).held_out_residual_norm
    assert own > 1.2 * before and 1 < drift_of(update.manifest) < own / before
    assert "build the index anew" in advice(update.manifest)
    assert drift_of(compact_index(str(index)).manifest) == drift_of(update.manifest)


def random_documents(seed: int, num_docs: int) -> TokenEmbeddings:
    """Return random documents without any clusters, the hardest case for centroids."""
    rng = np.random.default_rng(seed)
    return TokenEmbeddings.of([unit(rng.normal(size=(rng.integers(5, 20), 32))) for _ in range(num_docs)])


@pytest.mark.parametrize("method", ["k_means", "token_aware"])
@pytest.mark.parametrize("make", [lambda seed, num_docs: collection(num_docs, seed=seed), random_documents], ids=["topics", "random"])
@pytest.mark.parametrize(("num_docs", "seeds"), [(50, 4), (200, 2), (450, 1), (1000, 1)])
def test_more_documents_of_the_same_collection_fit_the_codec(tmp_path, num_docs, seeds, make, method):
    config = IndexConfig(clustering=ClusteringConfig(method=method))
    for seed in range(seeds):
        documents, root = make(seed, num_docs + 50), str(tmp_path / str(seed))
        ids = np.random.default_rng(seed).integers(0, 40, documents.num_tokens).astype(np.int32) if method == "token_aware" else None
        documents = TokenEmbeddings(documents.values, documents.offsets, [str(i) for i in range(len(documents))], token_ids=ids)
        build_index(documents.slice(0, num_docs), root, config)
        manifest = update_index(root, documents.slice(num_docs, num_docs + 50)).manifest
        assert advice(manifest) is None and 0.85 < drift_of(manifest) < 1.15


@pytest.mark.parametrize("num_docs", [50, 1000])
def test_documents_of_another_domain_have_a_large_drift(tmp_path, num_docs):
    root = str(tmp_path / "index")
    build_index(collection(num_docs), root)
    others = collection(60, seed=9)
    manifest = update_index(root, TokenEmbeddings.of(list(others), [f"other-{i}" for i in range(60)])).manifest
    assert "build the index anew" in advice(manifest)


def test_drift_needs_a_minimum_number_of_documents(tmp_path):
    others = collection(60, seed=9)
    few, many = (TokenEmbeddings.of(list(others)[:count], [f"other-{i}" for i in range(count)]) for count in (3, 60))
    build_index(collection(100), str(tmp_path / "large"))
    assert few.num_tokens < 500 and drift_of(update_index(str(tmp_path / "large"), few).manifest) is None
    assert read_version(str(tmp_path / "large"), 1).held_out_residual_norm is not None
    build_index(collection(5), str(tmp_path / "small"))
    assert read_version(str(tmp_path / "small")).held_out_residual_norm is None
    assert advice(update_index(str(tmp_path / "small"), many).manifest) is None


def test_an_index_on_s3_is_updated_and_compacted_as_on_a_disk(index, bucket, tmp_path):  # noqa: F811
    for name, content in tree(index).items():
        storage.write_bytes(f"{bucket}/index/{name}", content)
    for root in (str(index), f"{bucket}/index"):
        update_index(root, some(range(190, 240)), ["doc-1"])
        compact_index(root, 3)
    copy = tmp_path / "copy"
    fsspec.filesystem("s3").get(f"{bucket}/index", str(copy), recursive=True)
    assert tree(copy) == tree(index)
    for root in (str(index), f"{bucket}/index"):
        assert remove_versions(root, 1)["versions_removed"] == [1, 2]
    assert storage.list_names(f"{bucket}/index/shards") == storage.list_names(str(index / "shards"))
    storage.write_bytes(f"{bucket}/index/versions/4/manifest.json", storage.read_bytes(f"{bucket}/index/versions/3/manifest.json"))
    with pytest.raises(Conflict, match="write 4 into LATEST"):
        update_index(f"{bucket}/index", delete=["doc-9"])
    with pytest.raises(FileExistsError):
        create_bytes(f"{bucket}/index/versions/4/manifest.json", b"another")


def test_adding_documents_without_texts_to_an_index_with_texts_needs_a_flag(index, tmp_path):
    before = tree(index)
    save_embeddings(tmp_path / "add", some([250]))
    for added in (some([250]), tmp_path / "add"):
        with pytest.raises(ConfigError, match="allow_empty_texts=True"):
            update_checked(index, added)
        assert tree(index) == before and not list(index.glob("_work*"))
    save_embeddings(tmp_path / "with_texts", some([251]), texts=["a text"])
    assert update_checked(index, tmp_path / "with_texts").version == 2
    assert update_checked(index, some([252]), texts=[""]).version == 3  # the message says that it is empty
    assert update_checked(index, tmp_path / "add", allow_empty_texts=True).version == 4
    build_index(some(range(50)), tmp_path / "vectors", CONFIG)
    assert update_checked(tmp_path / "vectors", some([250])).version == 2  # neither has texts


def test_embeddings_of_unknown_origin_are_not_added_to_an_index_of_an_encoder(tmp_path):
    contract = external_contract(32).model_copy(update={"checkpoint": "known", "weights_digest": "0" * 64})
    build_index(some(range(50)), tmp_path / "index", CONFIG, contract=contract)
    before = tree(tmp_path / "index")
    with pytest.raises(ConfigError, match="of the encoder known.*give contract=encoder.contract"):
        update_checked(tmp_path / "index", some([60]))
    assert tree(tmp_path / "index") == before
    other = contract.model_copy(update={"weights_digest": "1" * 64})
    with pytest.raises(IncompatibleError):
        update_checked(tmp_path / "index", some([60]), contract=other)
    assert update_checked(tmp_path / "index", some([60]), contract=contract).version == 2


def test_ids_in_memory_follow_the_rule_of_corpora(index, tmp_path):
    vectors = [np.eye(2, 32)] * 2
    for ids, message in (
        (["a", "a"], "give each document its own id"),
        (["a", ""], "doc_id 1 is empty"),
        (["a", "b\n"], "control character U\\+000A"),
        (["a", "x" * 1025], "1,025 characters"),
    ):
        embeddings = TokenEmbeddings.of(vectors, ids)
        for attempt in (
            lambda embeddings: save_embeddings(tmp_path / "add", embeddings),
            lambda embeddings: build_index(embeddings, tmp_path / "new"),
            lambda embeddings: update_index(index, embeddings),
        ):
            with pytest.raises(ConfigError, match=message):
                attempt(embeddings)
    assert not (tmp_path / "add").exists() and not (tmp_path / "new").exists()
    update_index(index, TokenEmbeddings.of(vectors, np.array([7, 8])))
    assert sorted(Searcher.open(index).find([7, "8"])) == ["7", "8"]
    assert update_index(index, delete=[7, np.int64(8), "nobody"]).change.num_deleted == 2


def test_shards_are_replaced_while_other_changes_are_published(each_index, tmp_path, monkeypatch):
    """The merged shards are put in place of the old ones after documents were added, replaced and deleted meanwhile."""
    index = each_index
    for number in range(200, 206):
        update_index(str(index), some([number]), [f"doc-{number - 150}"])
    manifest = read_version(str(index))
    deltas = shards_to_replace(manifest, 4, 0.9)
    assert [shard.name for shard in deltas] == [shard.name for shard in manifest.shards[2:]]
    merge_shards = replacing.merge_shards

    def interrupted(*args):
        merged = merge_shards(*args)
        update_index(str(index), some([201, 210]), ["doc-203", "doc-7"])
        return merged

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "merge_shards", interrupted)
        assert replace_shards(str(index), deltas) == 9
    manifest = read_version(str(index))
    assert [shard.is_delta for shard in manifest.shards] == [False, False, True, True]
    kept = [number for number in range(200) if number not in (*range(50, 56), 7)]
    documents = some([*kept, 200, 202, 204, 205, 201, 210])
    assert answers(index) == answers(fresh(tmp_path / "fresh", documents, index))
    assert replace_shards(str(index), manifest.shards) == 10
    assert [shard.is_delta for shard in read_version(str(index)).shards] == [False, False]
    assert answers(index) == answers(tmp_path / "fresh")
    with pytest.raises(Conflict, match="another compaction"):
        replace_shards(str(index), deltas)
    assert shards_to_replace(read_version(str(index)), 4, 0.9) == ()


def test_versions_that_a_service_needs_stay(index):
    for number in (1, 2, 3):
        update_index(str(index), delete=[f"doc-{number}"])
    before = Searcher.open(str(index), 2, verify=True)
    assert remove_versions(str(index), 1, needed=[2])["versions_removed"] == [1, 3]
    assert Searcher.open(str(index), 2, verify=True).manifest == before.manifest and latest_version(str(index)) == 4
