"""Corpus and embeddings on an object store that speaks S3, found through the usual environment variables."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from ray_lir import storage
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.records import corpus_files
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.storage.manifest import MANIFEST, check_file
from tests.support.corpora import write_rows
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server

ROWS = [{"_id": f"d{number}", "text": f"the text of document {number}"} for number in range(9)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of an empty bucket of a local server."""
    with moto_server() as server, as_endpoint(server, monkeypatch):
        yield make_bucket()


def test_a_corpus_is_encoded_from_s3_to_s3_as_on_a_disk(bucket: str, checkpoint: str, tmp_path: Path):
    folder = tmp_path / "corpus"
    write_rows(folder / "a.jsonl", ROWS[:5])
    write_rows(folder / "b.jsonl", [*ROWS[5:], {"_id": "d1", "text": "again"}])
    for name in ("a.jsonl", "b.jsonl"):
        storage.write_bytes(f"{bucket}/corpus/{name}", (folder / name).read_bytes())
    config = EncoderConfig(checkpoint=checkpoint)
    encode_corpus(str(folder), str(tmp_path / "out"), config, docs_per_part=4)
    result = encode_corpus(f"{bucket}/corpus", f"{bucket}/out", config, docs_per_part=4)
    assert storage.read_bytes(f"{bucket}/out/{MANIFEST}") == (tmp_path / "out" / MANIFEST).read_bytes()
    for entry in (*result.manifest.parts, *result.manifest.dead_letters):
        check_file(f"{bucket}/out", entry, content=True)
    doc_ids = [
        doc_id
        for part in result.manifest.parts
        for block in read_blocks(f"{bucket}/out/{part.name}")
        for doc_id in block.embeddings.doc_ids
    ]
    assert doc_ids == [row["_id"] for row in ROWS]
    assert storage.list_names(f"{bucket}/out") == ["dead_letters", "embeddings", "manifest.json", "provenance.json"]
    assert encode_corpus(f"{bucket}/corpus", f"{bucket}/out", config, docs_per_part=4).num_skipped == result.num_chunks


def test_a_missing_bucket_is_a_one_line_error(bucket: str, checkpoint: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="check the path"):
        corpus_files("s3://elsewhere/corpus")
    corpus = write_rows(tmp_path / "corpus.jsonl", ROWS)
    with pytest.raises(ConfigError, match="cannot write to s3://elsewhere/out"):
        encode_corpus(corpus, "s3://elsewhere/out", EncoderConfig(checkpoint=checkpoint))


def test_an_unreachable_store_is_a_one_line_error(bucket: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="cannot list s3:") as caught:
        corpus_files(f"{bucket}/corpus")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot list s3:"):
        encode_corpus(write_rows(tmp_path / "corpus.jsonl", ROWS), f"{bucket}/out", EncoderConfig(checkpoint=checkpoint))
