"""Documents and queries truncated at the encoder's lengths are counted, and manifests and commands report the counts."""

import json
import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from jobs import inspect, search, update
from ray_lir.base.config import EncoderConfig, canonical_json
from ray_lir.building.build import build_index
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.truncation import UNKNOWN, Truncation, TruncationCounts
from ray_lir.encoder import tokenization
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.layouts import load_tokenizer
from ray_lir.index.versions import read_version
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import read_manifest
from ray_lir.training.data import TrainingData, log_truncation
from serving.http.routes import routes
from tests.support.corpora import write_rows
from tests.support.local_service import local_service

LENGTH = 16
ROWS = [{"_id": f"d{n}", "title": f"Title {n}", "text": "the cell of a protein " * (n % 4)} for n in range(40)]
ADDED = [{"_id": "long", "text": "the song of the king " * 50}, {"_id": "short", "text": "a song"}]


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory) -> Path:
    """Return a corpus, its embeddings and an index."""
    folder = tmp_path_factory.mktemp("made")
    corpus = write_rows(folder / "corpus.jsonl", ROWS)
    encode_corpus(corpus, str(folder / "embeddings"), EncoderConfig(checkpoint=checkpoint, document_length=LENGTH), docs_per_part=8)
    build_index(str(folder / "embeddings"), str(folder / "index"))
    return folder


def expected(rows: list[dict], checkpoint: str) -> dict:
    """Counts by the tokenizer without truncation."""
    tokenizer = Encoder.load(checkpoint).tokenizer
    marker, prompt = tokenizer.contract.document_marker is not None, tokenizer.contract.document_prompt
    whole = load_tokenizer(Path(checkpoint))
    lengths = [len(whole(prompt + f"{row.get('title', '')} {row['text']}".strip())["input_ids"]) + marker for row in rows]
    dropped = [max(0, length - LENGTH) for length in lengths]
    return {
        "num_truncated_docs": sum(each > 0 for each in dropped),
        "num_tokens_dropped": sum(dropped),
        "num_source_tokens": sum(lengths),
        "dropped_is_minimum": False,
    }


def test_embeddings_index_and_inspect_hold_the_counts(made, checkpoint):
    want = expected(ROWS, checkpoint)
    assert want["num_truncated_docs"] == 20
    embeddings = read_manifest(str(made / "embeddings" / "manifest.json"), EmbeddingsManifest, "jobs.encode")
    for manifest in (embeddings, read_version(str(made / "index"))):
        assert manifest.truncation.fields == want
    for folder in ("embeddings", "index"):
        found = inspect.run(inspect.InspectJob(folder=str(made / folder)))
        assert want.items() <= found.items()
        assert found["dropped_fraction"] == round(want["num_tokens_dropped"] / want["num_source_tokens"], 4)


def test_a_continued_run_counts_the_documents_encoded_before(made, checkpoint, tmp_path):
    from ray_lir.encoder.corpus_encoder import encode_in_process

    def interrupted(plan):
        for number, entry in enumerate(encode_in_process(plan)):
            if number == 2:
                raise KeyboardInterrupt
            yield entry

    def encode(**options):
        config = EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)
        return encode_corpus(str(made / "corpus.jsonl"), str(tmp_path / "out"), config, docs_per_part=8, **options)

    with pytest.raises(KeyboardInterrupt):
        encode(spread=interrupted)
    result = encode()
    assert result.num_skipped == 3  # the interruption came after the third chunk
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (made / "embeddings" / "manifest.json").read_bytes()


def test_truncation_is_reported_in_one_warning_also_when_the_job_runs_again(made, checkpoint, caplog):
    config = EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)
    with caplog.at_level(logging.WARNING, "ray_lir"):
        encode_corpus(str(made / "corpus.jsonl"), str(made / "embeddings"), config, docs_per_part=8)
    [message] = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert "20 of 40 documents are longer than document_length 16" in message and "%" in message


def test_an_update_counts_its_own_documents_and_adds_them_to_the_index(made, checkpoint, tmp_path):
    build_index(str(made / "embeddings"), str(tmp_path / "index"))
    add = write_rows(tmp_path / "new.jsonl", ADDED)
    result = update.run(update.UpdateJob(index=str(tmp_path / "index"), add=add, where="here"))
    want, before = expected(ADDED, checkpoint), expected(ROWS, checkpoint)
    assert want.items() <= result.items() and want["num_truncated_docs"] == 1
    manifest = read_version(str(tmp_path / "index"))
    assert manifest.truncation.num_truncated_docs == 21
    assert manifest.truncation.num_tokens_dropped == before["num_tokens_dropped"] + want["num_tokens_dropped"]
    update.run(update.UpdateJob(index=str(tmp_path / "index"), delete=str(write_ids(tmp_path, "d3")), where="here"))
    assert read_version(str(tmp_path / "index")).truncation.num_truncated_docs == 21


def write_ids(folder: Path, *ids: str) -> Path:
    (folder / "ids.txt").write_text("\n".join(ids))
    return folder / "ids.txt"


def test_a_manifest_without_truncation_counts_is_kept_unchanged(made):
    value = json.loads((made / "embeddings" / "manifest.json").read_bytes())
    old = {name: field for name, field in value.items() if name not in TruncationCounts.model_fields}
    assert len(value) - len(old) == 3
    manifest = EmbeddingsManifest.model_validate(old)
    assert manifest.truncation == UNKNOWN
    assert canonical_json(manifest.model_dump(mode="json")) == canonical_json(old)


def test_sums_with_unknown_counts_are_unknown():
    known = TruncationCounts.of([Truncation(4, 10), Truncation(3, 3)])
    assert (known.num_truncated_docs, known.num_tokens_dropped, known.num_source_tokens) == (1, 6, 13)
    assert TruncationCounts.sum([known, UNKNOWN]) == UNKNOWN
    assert UNKNOWN.dropped_fraction is None and UNKNOWN.describe(3, 4) is None
    assert TruncationCounts.sum([]).num_truncated_docs == 0


def test_lower_bounds_are_marked_in_the_report(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "COUNTED_CHARACTERS", 1000)
    rows = [{"_id": "long", "text": "the cell " * 5000}]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    config = EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)
    counts = encode_corpus(corpus, str(tmp_path / "out"), config).manifest.truncation
    assert counts.dropped_is_minimum and 9_900 < counts.num_source_tokens <= 10_002
    assert "at least" in counts.describe(1, LENGTH)


LONG_QUERY = "the king of the city " * 30


@pytest.fixture(scope="module")
def client(made):
    with TestClient(routes(local_service(made / "index", num_groups=1)[0])) as client:
        yield client


def test_a_truncated_query_is_named_in_the_answer(client):
    reply = client.post("/search", json={"queries": ["a song", LONG_QUERY]}).json()
    [cut] = reply["truncated_queries"]
    assert (cut["position"], cut["kept_tokens"], cut["exact"]) == (1, 16, True) and cut["total_tokens"] > 150
    assert client.post("/search", json={"query": "a song"}).json()["truncated_queries"] == []
    reranked = client.post("/rerank", json={"query": LONG_QUERY, "texts": ["a", "the cell " * 30]}).json()
    assert [len(reranked[name]) for name in ("truncated_queries", "truncated_texts")] == [1, 1]
    assert reranked["truncated_texts"][0]["position"] == 1
    assert client.post("/encode", json={"texts": ["a", LONG_QUERY]}).json()["truncated_texts"][0]["position"] == 1


def test_explanations_mark_truncated_documents(client, made, checkpoint):
    reply = client.post("/explain", json={"query": LONG_QUERY, "doc_id": "d3"}).json()
    assert (reply["truncation"]["kept_tokens"], reply["truncation"]["total_tokens"]) == (LENGTH, 24)
    assert "the document was cut: only 16 of 24 tokens are indexed" in reply["reason"]
    assert reply["truncated_queries"][0]["kept_tokens"] == 16
    whole = client.post("/explain", json={"query": "king", "doc_id": "d0"}).json()
    assert "truncation" not in whole and "cut" not in whole["reason"]
    searcher = Searcher.open(str(made / "index"))
    encoder = Encoder.for_contract(searcher.manifest.contract)
    number = searcher.find(["d3"])["d3"]
    trace, _ = explain(searcher, encoder.encode_queries(["king"]), number, tokenizer=encoder.tokenizer)
    assert trace.truncation == Truncation(LENGTH, 24) and "16 of 24 tokens" in trace.reason
    assert explain(searcher, encoder.encode_queries(["king"]), number)[0].truncation is None


def test_encoding_warns_once_about_truncated_texts(checkpoint, caplog):
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, document_length=LENGTH))
    with caplog.at_level(logging.WARNING, "ray_lir"):
        encoder.encode_queries(["a song"])
        encoder.encode_documents(["a song"])
        assert not caplog.records
        for _ in range(2):
            encoder.encode_queries([LONG_QUERY])
            encoder.encode_documents([LONG_QUERY])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "query_length 16" in messages[0] and "document_length 16" in messages[1]


def test_the_command_line_warns_about_a_truncated_query(made):
    result = search.run(search.SearchJob(index=str(made / "index"), query=LONG_QUERY, k=1))
    assert result["truncated_query"]["kept_tokens"] == 16
    assert "truncated_query" not in search.run(search.SearchJob(index=str(made / "index"), query="song", k=1))


def test_truncated_training_texts_are_reported(checkpoint, caplog):
    tokenizer = Encoder.load(EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)).tokenizer
    with caplog.at_level(logging.WARNING, "ray_lir"):
        log_truncation(TrainingData.of(["a song"], ["a king"], [((0,),)]), tokenizer)
        assert not caplog.records
        log_truncation(TrainingData.of([LONG_QUERY, "a"], ["a king", "the cell " * 30, "x"], [((0, 1),), ((2,),)]), tokenizer)
    queries, documents = (record.getMessage() for record in caplog.records)
    assert "1 of 2 sampled queries are longer than 16 tokens" in queries
    assert "1 of 3 sampled documents are longer than 16 tokens" in documents
