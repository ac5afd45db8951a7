"""Quality floors of the default encoder: on the docstring corpus, which every machine has, and on a real collection."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from ray_lir import Encoder, EncoderConfig, Searcher, TokenEmbeddings, build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.docstring_corpus import STDLIB, collect, known_items
from ray_lir.corpus.records import Document, document_text, read_documents
from ray_lir.evaluation import metrics
from ray_lir.evaluation.runs import Run

NUM_ITEMS = 150
NUM_QUERIES = 50


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(EncoderConfig(document_length=128))


@pytest.fixture(scope="module")
def docstrings(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, TokenEmbeddings]:
    """Return an index of docstrings without their first sentences, and some of those sentences as queries."""
    documents, summaries = known_items(collect(10_000, first=STDLIB, then=[]), NUM_ITEMS)
    searcher = index(encoder, documents, tmp_path_factory.mktemp("docstrings"))
    return searcher, encoder.encode_queries(list(summaries.values()), list(summaries)).slice(0, NUM_QUERIES)


def index(encoder: Encoder, documents: list[Document], folder: Path) -> Searcher:
    texts = [document_text(document.title, document.text) for document in documents]
    build_index(encoder.encode_documents(texts, [document.doc_id for document in documents]), str(folder))
    return Searcher.open(str(folder))


def measure(searcher: Searcher, queries: TokenEmbeddings, qrels: Mapping[str, Mapping[str, int]], engine: str, measure: str) -> float:
    answers = searcher.search(queries, k=10, engine=engine)
    run: Run = {
        query_id: list(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
        for query_id, answer in zip(queries.doc_ids, answers, strict=True)
    }
    return metrics.means(metrics.evaluate(run, qrels, [measure]))[measure]


@pytest.mark.parametrize("engine", ["exact", "scan", "plaid", "warp"])
def test_a_query_finds_the_docstring_that_it_was_taken_from(docstrings, engine: str):
    searcher, queries = docstrings
    own = {query_id: {query_id: 1} for query_id in queries.doc_ids}
    assert measure(searcher, queries, own, engine, "Success@5") >= 0.9


def test_a_query_does_not_find_the_docstring_of_a_neighbour(docstrings):
    searcher, queries = docstrings
    neighbour = {query_id: {other: 1} for query_id, other in zip(queries.doc_ids, [*queries.doc_ids[1:], queries.doc_ids[0]], strict=True)}
    assert measure(searcher, queries, neighbour, "exact", "Success@5") < 0.3


def test_medline_is_searched_better_than_by_bags_of_words(encoder: Encoder, data_folder: Path, tmp_path: Path):
    """BM25 has an nDCG@10 of .66 on this collection."""
    dataset = load_dataset(str(data_folder / "medline"))
    searcher = index(encoder, list(read_documents(dataset.corpus)), tmp_path)
    queries = encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
    assert measure(searcher, queries, dataset.qrels, "scan", "nDCG@10") >= 0.75
