"""Token embeddings, embedding shards, manifests and storage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError, IncompatibleError
from ray_lir.embeddings.contract import EncoderContract, check_same_encoder
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import Block, read_blocks, read_lengths, read_texts, texts_table, write_part
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.storage.manifest import check_file, manifest_digest, read_manifest
from tests.support.synthetic import collection

CONTRACT = EncoderContract(checkpoint="somewhere", weights_digest="abc", dim=32, query_length=32, document_length=180)


def test_a_ragged_batch_is_sliced_and_put_together_again():
    whole = collection(10)
    with_ids = TokenEmbeddings(whole.values, whole.offsets, whole.doc_ids, token_ids=np.arange(whole.num_tokens, dtype=np.int32))
    again = concatenate([with_ids.slice(0, 3), with_ids.slice(3, 3), with_ids.slice(3, 10)])
    for name in ("values", "offsets", "token_ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(with_ids, name))
    assert again.doc_ids == whole.doc_ids and again.weights is None
    np.testing.assert_array_equal(with_ids.slice(4, 6)[1], whole[5])


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.zeros((2, 4), np.float32), [0, 2], "float16"),
        (np.zeros((2, 4), np.float16), [0, 3], "offsets must run from 0 to 2"),
        (np.zeros((2, 4), np.float16), [0, 1, 2], "offsets must run"),
        (np.full((2, 4), np.nan, np.float16), [0, 2], "NaN"),
        (np.full((2, 4), np.inf, np.float16), [0, 2], "infinite"),
    ],
)
def test_a_batch_with_inconsistent_arrays_is_refused(values, offsets, message):
    with pytest.raises(ConfigError, match=message):
        TokenEmbeddings(values, np.array(offsets), ["a"])


def part(path: Path, documents: TokenEmbeddings) -> None:
    count = len(documents)
    texts = texts_table(documents.doc_ids, ["title"] * count, [f"text {i}" for i in range(count)], ['{"year": 1999}'] * count)
    write_part(path, [Block(documents, texts)], "f" * 16)


def test_a_part_is_read_block_by_block_as_it_was_written(tmp_path):
    documents = collection(600)
    documents = TokenEmbeddings(
        documents.values,
        documents.offsets,
        documents.doc_ids,
        np.arange(documents.num_tokens, dtype=np.int32),
        np.ones(documents.num_tokens, np.float32),
    )
    part(tmp_path / "part.parquet", documents)
    blocks = list(read_blocks(str(tmp_path / "part.parquet")))
    assert [len(block.embeddings) for block in blocks] == [256, 256, 88]
    again = concatenate([block.embeddings for block in blocks])
    for name in ("values", "offsets", "token_ids", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(documents, name))
    assert blocks[1].texts.column("text").to_pylist()[0] == "text 256"
    np.testing.assert_array_equal(read_lengths(str(tmp_path / "part.parquet")), documents.lengths)
    assert read_texts(str(tmp_path / "part.parquet")).column_names == ["doc_id", "title", "text", "metadata"]


def test_equal_parts_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        part(tmp_path / name, collection(20))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_part_is_named(tmp_path):
    path = tmp_path / "part.parquet"
    part(path, collection(20))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"part\.parquet.*encode the corpus again"):
        list(read_blocks(str(path)))


def test_the_manifest_lists_saved_embeddings_with_digests(tmp_path):
    documents = collection(700)
    manifest = save_embeddings(str(tmp_path / "embeddings"), documents, CONTRACT)
    assert [entry.num_docs for entry in manifest.parts] == [512, 188]
    again = read_manifest(str(tmp_path / "embeddings" / "manifest.json"), EmbeddingsManifest, "jobs.encode")
    assert again == manifest and again.contract.fingerprint == CONTRACT.fingerprint
    assert manifest_digest(manifest) == hashlib.sha256((tmp_path / "embeddings" / "manifest.json").read_bytes()).hexdigest()
    for entry in manifest.parts:
        check_file(str(tmp_path / "embeddings"), entry, content=True)


def test_embeddings_without_documents_or_with_other_texts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no documents"):
        save_embeddings(str(tmp_path), collection(3).slice(0, 0))
    with pytest.raises(ConfigError, match="2 texts for 3 documents"):
        save_embeddings(str(tmp_path), collection(3), texts=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_manifest_with_an_unknown_field_is_refused(tmp_path):
    manifest = save_embeddings(str(tmp_path), collection(3), CONTRACT)
    value = manifest.model_dump(mode="json") | {"colour": "blue"}
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FormatError, match="colour"):
        read_manifest(str(tmp_path / "manifest.json"), EmbeddingsManifest, "jobs.encode")


def test_a_moved_checkpoint_is_the_same_encoder_and_a_changed_setting_is_not():
    moved = CONTRACT.model_copy(update={"checkpoint": "elsewhere"})
    check_same_encoder(moved, CONTRACT, "the encoder", "the index")
    longer = CONTRACT.model_copy(update={"document_length": 300})
    with pytest.raises(IncompatibleError, match="document_length is 300, not 180"):
        check_same_encoder(longer, CONTRACT, "the encoder", "the index")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OSError):
        storage.write_bytes(str(tmp_path / "taken"), b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_publishing_a_folder_twice_keeps_the_first_and_leaves_no_temporary_files(tmp_path):
    for _ in range(2):
        with storage.attempt_folder(str(tmp_path)) as attempt:
            (attempt / "made").mkdir()
            (attempt / "made" / "file").write_text("content")
            storage.publish(attempt / "made", str(tmp_path / "published"))
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert (tmp_path / "published" / "file").read_text() == "content"


def test_an_unknown_kind_of_url_is_refused_with_the_fix():
    with pytest.raises(ConfigError, match="local path or a URL"):
        storage.exists("nosuchscheme://bucket/file")
