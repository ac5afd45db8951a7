"""Lexical postings: made by a build, kept right by updates, deletions and compaction."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.building import lexical
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.publishing import remove_versions
from ray_lir.building.update import update_index
from ray_lir.corpus.analysis import Analyzer
from ray_lir.corpus.records import document_text
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.bm25 import Bm25Params
from ray_lir.index.lexical import TermCounts, Vocabulary, add_up, read_statistics
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from tests.support.index_files import tree
from tests.support.synthetic import collection

WORDS = [f"w{number}" for number in range(120)]
VECTORS = collection(90, dim=16, topics=8, max_tokens=6)
CONFIG = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=16), lexical=True)


def texts_of(doc_ids: list[str]) -> list[str]:
    """A text for each id; every tenth document has none."""
    frequencies = 1 / np.arange(1, len(WORDS) + 1)
    texts = []
    for doc_id in doc_ids:
        rng = np.random.default_rng(int(doc_id))
        texts.append("" if int(doc_id) % 10 == 3 else " ".join(rng.choice(WORDS, rng.integers(1, 30), p=frequencies / frequencies.sum())))
    return texts


def documents(numbers) -> TokenEmbeddings:
    return TokenEmbeddings.of([VECTORS[number] for number in numbers], [str(number) for number in numbers])


def build(folder: Path, numbers, config: IndexConfig = CONFIG) -> Path:
    embeddings = documents(numbers)
    build_index(embeddings, folder, config, texts=texts_of(embeddings.doc_ids), titles=[f"t{n % 4}" for n in numbers], map=map)
    return folder


def add(index: Path, numbers) -> None:
    embeddings = documents(numbers)
    update_index(index, embeddings, texts=texts_of(embeddings.doc_ids), titles=[f"t{n % 4}" for n in numbers], map=map)


def query(*texts: str) -> TokenEmbeddings:
    return TokenEmbeddings.of([np.ones((2, 16), np.float32)] * len(texts), texts=texts)


def answers(index: Path) -> list:
    """Ids and scores by BM25 for queries of frequent and of rare words."""
    searcher = Searcher.open(str(index), verify=True)
    queries = query("w0 w1 w2", "w7 w7 t1", "w50 w80 w119", "absent", "")
    return [
        sorted(zip(top.scores.tolist(), searcher.doc_ids(top.documents), strict=True))
        for params in (Bm25Params(), Bm25Params(method="robertson", k1=0.9, b=0.4))
        for top in searcher.search(queries, 100, params)
    ]


def statistics(index: Path) -> tuple[dict[str, int], int, int]:
    found = read_statistics(str(index), read_version(index))
    terms = [term.decode() for term in found.counts.vocabulary.column().to_pylist()]
    return dict(zip(terms, found.counts.frequencies.tolist(), strict=True)), found.counts.num_terms, found.num_docs


def counted(numbers) -> tuple[dict[str, int], int, int]:
    """The statistics of documents, counted one by one."""
    lists = [
        Analyzer("english").terms(document_text(f"t{n % 4}", text)) for n, text in zip(numbers, texts_of(map(str, numbers)), strict=True)
    ]
    return dict(Counter(term for terms in lists for term in set(terms))), sum(map(len, lists)), len(lists)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("lexical") / "index", range(60))


@pytest.fixture
def index(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "index"))


def test_postings_hold_what_the_analysis_of_each_text_gives(template):
    assert statistics(template) == counted(range(60))
    searcher = Searcher.open(template)
    found = Counter()
    for shard in searcher.shards:
        vocabulary = shard.lexical.vocabulary.column().to_pylist()
        assert vocabulary == sorted(set(vocabulary))
        for term in vocabulary:
            numbers, counts = shard.lexical.of_term(term.decode())
            assert (np.diff(numbers.astype(int)) > 0).all()
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                found[shard.first_document + number, term.decode()] = count
    expected = Counter()
    for number, text in enumerate(texts_of(map(str, range(60)))):
        expected.update((number, term) for term in Analyzer("english").terms(f"t{number % 4} {text}"))
    assert found == expected


def test_scores_do_not_depend_on_the_number_of_shards_or_on_how_documents_are_read(template, tmp_path, monkeypatch):
    monkeypatch.setattr(lexical, "ROWS", 7)
    other = build(tmp_path / "other", range(60), CONFIG.model_copy(update={"num_shards": 5}))
    assert answers(other) == answers(template)
    one = build(tmp_path / "one", range(60), CONFIG.model_copy(update={"num_shards": 1}))
    assert answers(one) == answers(template)


def test_an_updated_and_a_compacted_index_equal_one_built_anew(index, tmp_path):
    update_index(index, delete=["1", "2", "3", "59", "unknown"], map=map)
    left = [number for number in range(60) if number not in (1, 2, 3, 59)]
    assert statistics(index) == counted(left)
    assert answers(index) == answers(build(tmp_path / "left", left))
    add(index, [5, 6, 70, 71, 73, 89])  # 5 and 6 are replaced
    kept = sorted({*left, 70, 71, 73, 89})
    anew = build(tmp_path / "kept", kept)
    assert statistics(index) == counted(kept) == statistics(anew)
    assert answers(index) == answers(anew)
    update_index(index, delete=["70", "5"], map=map)
    kept = [number for number in kept if number not in (70, 5)]
    assert statistics(index) == counted(kept)
    compact_index(index, num_shards=3, map=map)
    assert latest_version(index) == 5 and statistics(index) == counted(kept)
    assert answers(index) == answers(build(tmp_path / "compacted", kept))
    assert remove_versions(str(index), 1)["versions_removed"] == [1, 2, 3, 4]
    assert answers(index) == answers(tmp_path / "compacted")


def test_a_compaction_adds_postings_to_an_index_without(tmp_path):
    plain = build(tmp_path / "plain", range(60), CONFIG.model_copy(update={"lexical": False}))
    update_index(plain, delete=["8"], map=map)
    kept = [number for number in range(60) if number != 8]
    first = compact_index(plain, lexical=True, stemmer=None, map=map)
    assert first.changed and first.manifest.lexical.stemmer is None
    again = compact_index(plain, lexical=True, map=map)
    assert not again.changed and again.version == 3
    anew = build(tmp_path / "anew", kept, CONFIG.model_copy(update={"stemmer": None}))
    assert statistics(plain) == statistics(anew) and answers(plain) == answers(anew)
    add(plain, [70, 71])
    assert answers(plain) == answers(build(tmp_path / "more", [*kept, 70, 71], CONFIG.model_copy(update={"stemmer": None})))
    build_index(documents(range(4)), tmp_path / "vectors", CONFIG.model_copy(update={"lexical": False}))
    with pytest.raises(ConfigError, match="have no texts"):
        compact_index(tmp_path / "vectors", lexical=True, map=map)


def test_replacing_a_text_replaces_its_terms(index):
    embeddings = documents([4])
    update_index(index, embeddings, texts=["zebra"], map=map)
    searcher = Searcher.open(index)
    [zebra] = searcher.search(query("zebras"), 5, "bm25")
    assert searcher.doc_ids(zebra.documents) == ["4"]
    for word in set(texts_of(["4"])[0].split()):
        assert "4" not in searcher.doc_ids(searcher.search(query(word), 100, "bm25")[0].documents)


def test_builds_with_threads_and_map_write_equal_bytes_and_an_index_without_postings_is_unchanged(template, tmp_path):
    embeddings = documents(range(60))
    build_index(embeddings, tmp_path / "threads", CONFIG, texts=texts_of(embeddings.doc_ids), titles=[f"t{n % 4}" for n in range(60)])
    provenance = {"versions/1/provenance.json"}
    threads, serial = tree(tmp_path / "threads"), tree(template)
    assert {name: threads[name] for name in threads.keys() - provenance} == {name: serial[name] for name in serial.keys() - provenance}
    plain = build(tmp_path / "plain", range(60), CONFIG.model_copy(update={"lexical": False}))
    manifest = json.loads((plain / "versions" / "1" / "manifest.json").read_text())
    assert "lexical" not in manifest and not {"lexical", "stemmer"} & manifest["config"]["index"].keys()
    assert not any("lexical" in name for name in tree(plain))


def test_counts_above_255_and_65535_are_exact(tmp_path):
    embeddings = documents(range(3))
    texts = ["a", "b " * 300 + "c", "d " * 70_000]
    build_index(embeddings, tmp_path / "i", CONFIG.model_copy(update={"num_shards": 3}), texts=texts, map=map)
    found = [shard.lexical.counts for shard in Searcher.open(tmp_path / "i").shards]
    assert [(counts.dtype.name, counts.max()) for counts in found] == [("uint8", 1), ("uint16", 300), ("uint32", 70_000)]


def test_a_build_with_postings_needs_texts(tmp_path):
    with pytest.raises(ConfigError, match="have no texts, so lexical search would find nothing; give texts, or build without lexical"):
        build_index(documents(range(5)), tmp_path / "i", CONFIG)


def test_the_stemmer_is_a_setting_of_the_build(tmp_path):
    embeddings = documents([0, 1])
    for stemmer, expected in (("english", ["0", "1"]), (None, ["0"])):
        folder = tmp_path / str(stemmer)
        build_index(embeddings, folder, CONFIG.model_copy(update={"num_shards": 1, "stemmer": stemmer}), texts=["files", "filing"], map=map)
        searcher = Searcher.open(folder)
        assert sorted(searcher.doc_ids(searcher.search(query("files"), 5, "bm25")[0].documents)) == expected


@pytest.mark.parametrize("name", ["terms", "term_offsets", "posting_offsets", "documents", "counts", "lengths"])
def test_a_damaged_posting_file_is_refused(index, name):
    [path, *_] = sorted((index / "shards").glob(f"*/lexical_{name}.npy"))
    array = np.load(path)
    np.save(path, array[::-1] if name.endswith("offsets") else array.astype(np.float64 if name == "terms" else np.int16).astype(np.float32))
    with pytest.raises(FormatError):
        Searcher.open(index)


def test_document_numbers_beyond_the_shard_are_refused(index):
    [path, *_] = sorted((index / "shards").glob("*/lexical_documents.npy"))
    array = np.load(path)
    array[0] = 1 << 31
    np.save(path, array)
    with pytest.raises(FormatError, match="document numbers below 3"):
        Searcher.open(index)


def test_terms_without_documents_leave_the_sum():
    import pyarrow as pa

    def terms(**frequencies: int) -> TermCounts:
        names = pa.array([name.encode() for name in sorted(frequencies)], pa.large_binary())
        return TermCounts(Vocabulary.of(names), np.array([frequencies[name] for name in sorted(frequencies)]), sum(frequencies.values()))

    total = add_up([terms(a=2, b=1), terms(b=3, é=1)], [terms(a=2, b=1)])
    assert total.vocabulary.column().to_pylist() == [b"b", "é".encode()]
    assert (total.frequencies.tolist(), total.num_terms) == ([3, 1], 4)
    assert [total.vocabulary.find(term) for term in ("a", "b", "é", "z")] == [None, 0, 1, None]
    nothing = add_up([terms(a=1)], [terms(a=1)])
    assert len(nothing.vocabulary) == 0 and nothing.vocabulary.find("a") is None


def test_queries_keep_their_texts_when_they_are_sliced():
    queries = query("a", "b", "c")
    assert list(queries.slice(1, 3).texts) == ["b", "c"]
    with pytest.raises(ConfigError, match="2 texts for 3 token embeddings"):
        dataclasses.replace(queries, texts=["a", "b"])
