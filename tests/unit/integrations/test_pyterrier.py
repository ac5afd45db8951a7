"""PyTerrier pipelines over an index: retrieval, reranking, feedback, indexing and artifacts."""

import tarfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pt = pytest.importorskip("pyterrier", reason="pyterrier is not installed; run: pip install -c constraints.txt pyterrier pyterrier-pisa")

import lz4.frame  # noqa: E402
import pandas as pd  # noqa: E402

from ray_lir import ConfigError, Index  # noqa: E402
from ray_lir.corpus.datasets import load_dataset  # noqa: E402
from ray_lir.corpus.records import read_documents  # noqa: E402
from ray_lir.integrations.pyterrier import RayLirIndex, RayLirPrf, RayLirReranker, RayLirRetriever  # noqa: E402
from ray_lir.search.feedback import expand_query  # noqa: E402
from tests.support.repository import REPOSITORY  # noqa: E402
from tests.unit.integrations.conftest import QUERY  # noqa: E402

DATA = REPOSITORY / "examples" / "data"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [{"docno": each.doc_id, "title": each.title, "text": each.text, "length": len(each.text)} for each in read_documents(DATA)]


@pytest.fixture(scope="module")
def artifact(documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RayLirIndex:
    return RayLirIndex(tmp_path_factory.mktemp("terrier") / "index").indexer().index(documents)


@pytest.fixture(scope="module")
def topics() -> pd.DataFrame:
    return pd.DataFrame([{"qid": query_id, "query": text} for query_id, text in load_dataset(DATA).queries.items()])


@pytest.fixture(scope="module")
def qrels() -> pd.DataFrame:
    judged = load_dataset(DATA).qrels
    return pd.DataFrame([{"qid": query, "docno": doc, "label": grade} for query, each in judged.items() for doc, grade in each.items()])


def test_a_retriever_finds_what_the_index_finds(artifact: RayLirIndex, topics: pd.DataFrame):
    found = artifact.retriever(num_results=3, include_fields=True, where="length > 60")(topics)
    hits = artifact.index.search(topics["query"].tolist(), k=3, where="length > 60")
    assert found["docno"].tolist() == [hit.doc_id for each in hits for hit in each]
    assert found["score"].tolist() == [hit.score for each in hits for hit in each]
    assert found["rank"].tolist() == [rank for each in hits for rank in range(len(each))]
    assert list(found.columns) == ["qid", "query", "docno", "score", "rank", "title", "text"]
    assert len(artifact.retriever()(topics.iloc[:0])) == 0


def test_a_service_gives_the_same_results(index: Index, url: str):
    here, there = (RayLirRetriever(place, num_results=4).search(QUERY) for place in (index, url))
    assert here.equals(there) and len(here) == 4
    reranked = [RayLirReranker(place)(here) for place in (index, url)]
    assert reranked[0].equals(reranked[1]) and reranked[0]["docno"].tolist() == here["docno"].tolist()
    with pytest.raises(ConfigError, match="a service cannot expand queries"):
        RayLirPrf(url)


def test_a_reranker_scores_exactly_and_leaves_out_unknown_documents(artifact: RayLirIndex):
    rows = pd.DataFrame([{"qid": "1", "query": QUERY, "docno": docno, "score": 0.0, "rank": 0} for docno in ("unknown", *ids(artifact, 5))])
    found = artifact.reranker()(rows)
    exact = {hit.doc_id: hit.score for hit in artifact.index.search(QUERY, k=100, engine="exact")}
    expected = {name: exact[name] for name in ids(artifact, 5)}
    assert dict(zip(found["docno"], found["score"], strict=True)) == expected
    assert sorted(found["rank"]) == [0, 1, 2, 3, 4]


def ids(artifact: RayLirIndex, count: int) -> list[str]:
    return artifact.index.searcher.doc_ids(range(count))


def test_pipelines_with_bm25_reach_the_quality_of_the_index(
    artifact: RayLirIndex, documents: list[dict[str, Any]], topics: pd.DataFrame, qrels: pd.DataFrame, tmp_path: Path
):
    pisa = pytest.importorskip("pyterrier_pisa").PisaIndex(str(tmp_path / "pisa"), text_field=["title", "text"])
    pisa.index(documents)
    bm25, retriever = pisa.bm25(), artifact.retriever(20)
    systems = {
        "bm25": bm25,
        "retriever": retriever,
        "bm25 >> reranker": bm25 % 20 >> artifact.reranker(),
        "retriever >> prf": retriever >> artifact.prf(fb_docs=1, num_results=20, engine="plaid"),
        "bm25 >> prf": bm25 >> artifact.prf(fb_docs=1, beta=0.1, num_results=20),
        "sum": retriever + bm25,
    }
    table = pt.Experiment(list(systems.values()), topics, qrels, ["ndcg_cut_10"], names=list(systems)).set_index("name")["ndcg_cut_10"]
    assert table["retriever"] > 0.9 and table["bm25 >> reranker"] >= table["bm25"]
    # a query has one relevant document: feedback from it finds it again
    assert table["retriever >> prf"] > 0.85 and table["bm25 >> prf"] > table["bm25"]


def test_feedback_expands_the_query_as_in_the_paper(artifact: RayLirIndex):
    searcher = artifact.index.searcher
    query = artifact.index.encoder.encode_queries([QUERY])
    expanded = expand_query(searcher, query, [0, 1, 2], num_clusters=12, num_expansions=5, beta=0.5)
    assert len(expanded.values) == len(query.values) + 5 and np.array_equal(expanded.values[: len(query.values)], query.values)
    lengths = np.linalg.norm(expanded.values[len(query.values) :].astype(np.float32), axis=1)
    sizes = searcher.planner.statistics.cluster_sizes
    rarities = np.log((sizes.sum() + 1) / (sizes + 1))
    assert (np.diff(lengths) <= 1e-3).all()  # the rarest first
    assert all(np.abs(0.5 * rarities - length).min() < 1e-2 for length in lengths)
    # an expansion vector is close to a token of a feedback document
    found = artifact.index.encoder.encode_documents([f"{each['title']} {each['text']}" for each in searcher.documents([0, 1, 2])])
    units = expanded.values[len(query.values) :].astype(np.float32) / lengths[:, None]
    assert (units @ found.values.astype(np.float32).T).max(axis=1).min() > 0.5
    for documents, options in (([], {}), ([0], {"beta": 0}), ([0], {"num_expansions": 0})):
        unchanged = expand_query(searcher, query, documents, **options)
        assert np.array_equal(unchanged.values, query.values)
    again = expand_query(searcher, query, [0, 1, 2], num_clusters=12, num_expansions=5, beta=0.5)
    assert np.array_equal(again.values, expanded.values)


def test_feedback_can_rank_the_documents_of_its_input_only(artifact: RayLirIndex, topics: pd.DataFrame):
    first = artifact.retriever(5)(topics)
    found = RayLirPrf(artifact.index, rerank_only=True)(first)
    assert {(row.qid, row.docno) for row in found.itertuples()} == {(row.qid, row.docno) for row in first.itertuples()}
    nothing = artifact.retriever(5) >> RayLirPrf(artifact.index, beta=0, num_results=5)
    assert nothing(topics)["docno"].tolist() == first["docno"].tolist()


def test_an_artifact_is_loaded_by_its_path(artifact: RayLirIndex, tmp_path: Path):
    assert [each.name for each in entry_points(group="pyterrier.artifact") if "ray_lir" in each.name] == ["late_interaction_index.ray_lir"]
    loaded = pt.Artifact.load(str(artifact.path))
    assert isinstance(loaded, RayLirIndex)
    assert loaded.retriever(3).search(QUERY).equals(artifact.retriever(3).search(QUERY))
    loaded.build_package(str(tmp_path / "package.tar.lz4"))
    with lz4.frame.open(tmp_path / "package.tar.lz4") as packed, tarfile.open(fileobj=packed) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    again = pt.Artifact.load(str(tmp_path / "unpacked"))
    assert again.retriever(3).search(QUERY).equals(artifact.retriever(3).search(QUERY))


def test_a_document_without_docno_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="document 0 has no docno"):
        RayLirIndex(tmp_path / "index").indexer().index([{"text": "no id"}])
    with pytest.raises(ConfigError, match="unknown engine 'best'"):
        RayLirPrf(Index.create(tmp_path / "one", ["a"]), engine="best")
