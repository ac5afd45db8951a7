"""Encoding a corpus in one process: output, refused rows, and continuing after a kill."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_lir import storage
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.finished_chunks import PROGRESS
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.embeddings.token_embeddings import concatenate
from ray_lir.encoder.chunk_encoder import ChunkEntry
from ray_lir.encoder.corpus_encoder import Plan, encode_corpus, encode_in_process
from ray_lir.encoder.encoder import Encoder
from ray_lir.storage.manifest import check_file
from tests.support.corpora import write_rows

ROWS = [{"_id": f"d{number}", "title": f"Title {number}", "text": f"the text of document {number}", "year": number} for number in range(11)]
BAD = [{"_id": 1.5, "text": "number"}, {"text": "no id"}, {"_id": "d3", "text": "again"}, b"not json", b'{"_id": "x", "text": "\xff"}']


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write_rows(tmp_path / "corpus.jsonl", ROWS)


def encode(corpus: str, output: Path | str, checkpoint: str, docs_per_part: int = 4, spread=encode_in_process, **settings):
    return encode_corpus(corpus, str(output), EncoderConfig(checkpoint=checkpoint, **settings), docs_per_part=docs_per_part, spread=spread)


def read_all(output: Path, manifest: EmbeddingsManifest) -> tuple:
    """Return all token embeddings and text rows in the manifest's order; verify every file."""
    for entry in (*manifest.parts, *manifest.dead_letters):
        check_file(str(output), entry, content=True)
    blocks = [block for part in manifest.parts for block in read_blocks(str(output / part.name))]
    return concatenate([block.embeddings for block in blocks]), [row for block in blocks for row in block.texts.to_pylist()]


def dead_letters(output: Path, manifest: EmbeddingsManifest) -> list[dict]:
    return [json.loads(line) for letter in manifest.dead_letters for line in (output / letter.name).read_text().splitlines()]


def test_parts_hold_the_encoders_vectors_of_title_and_text(corpus: str, checkpoint: str, tmp_path: Path):
    manifest = encode(corpus, tmp_path / "out", checkpoint).manifest
    embeddings, texts = read_all(tmp_path / "out", manifest)
    assert [part.num_docs for part in manifest.parts] == [4, 4, 3]
    assert list(embeddings.doc_ids) == [row["_id"] for row in ROWS]
    assert texts[2] == {"doc_id": "d2", "title": "Title 2", "text": "the text of document 2", "metadata": '{"year": 2}'}
    expected = Encoder.load(checkpoint).encode_documents([f"{row['title']} {row['text']}" for row in ROWS])
    assert np.array_equal(embeddings.token_ids, expected.token_ids)
    assert np.allclose(embeddings.values, expected.values, atol=2e-3)
    assert (manifest.num_docs, manifest.num_tokens, manifest.num_dead) == (11, embeddings.num_tokens, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["embeddings", "manifest.json", "provenance.json"]


def test_bad_rows_become_dead_letters_with_reasons_and_the_rest_is_encoded(checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus.jsonl", [BAD[0], *ROWS[:5], *BAD[1:], *ROWS[5:]])
    manifest = encode(corpus, tmp_path / "out", checkpoint).manifest
    embeddings, _ = read_all(tmp_path / "out", manifest)
    letters = dead_letters(tmp_path / "out", manifest)
    assert list(embeddings.doc_ids) == [row["_id"] for row in ROWS]
    assert manifest.num_dead == len(letters) == len(BAD)
    assert [(letter["line"], letter["reason"].split(":")[0]) for letter in letters] == [
        (1, "_id is a number with a fraction (1.5), not a string or a whole number"),
        (7, "no id"),
        (8, "the id 'd3' is that of an earlier row"),
        (9, "not JSON"),
        (10, "not UTF-8"),
    ]
    assert {letter["file"] for letter in letters} == {"corpus.jsonl"}
    assert json.loads(letters[2]["row"]) == BAD[2]
    assert base64.b64decode(letters[4]["row_base64"]) == BAD[4]


def test_a_chunk_with_only_refused_rows_has_no_part(checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus.jsonl", [*ROWS[:4], *BAD[:4], *ROWS[4:6]])
    manifest = encode(corpus, tmp_path / "out", checkpoint).manifest
    assert [part.num_docs for part in manifest.parts] == [4, 2]
    assert [letter.num_rows for letter in manifest.dead_letters] == [4]


def test_an_empty_document_keeps_its_special_tokens(checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"_id": "empty", "text": ""}, ROWS[0]])
    embeddings, _ = read_all(tmp_path / "out", encode(corpus, tmp_path / "out", checkpoint).manifest)
    assert len(embeddings[0]) == len(Encoder.load(checkpoint).tokenizer.documents([""])[0]) > 0


@pytest.mark.parametrize("rows", [[], [BAD[0], BAD[1], BAD[3]]])
def test_a_corpus_without_documents_is_refused_and_nothing_is_written(rows: list, checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    with pytest.raises(ConfigError, match="holds no documents") as caught:
        encode(corpus, tmp_path / "out", checkpoint)
    assert not rows or "line 1: _id is a number" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_corpus_is_refused_and_nothing_is_written(checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus.jsonl.gz", ROWS)
    with pytest.raises(FormatError, match="gzip"):
        encode(corpus, tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()


def test_repeating_a_finished_job_does_nothing(corpus: str, checkpoint: str, tmp_path: Path):
    first = encode(corpus, tmp_path / "out", checkpoint)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = encode(corpus, tmp_path / "out", checkpoint)
    assert again.manifest == first.manifest
    assert (first.num_skipped, again.num_skipped) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"docs_per_part": 5}, "docs_per_part is 4 there and 5 here"), ({"document_length": 9}, "document_length"), ({}, "corpus is")],
)
def test_a_different_job_on_a_finished_output_is_refused_by_name(change: dict, named: str, corpus: str, checkpoint: str, tmp_path: Path):
    encode(corpus, tmp_path / "out", checkpoint)
    if not change:
        write_rows(tmp_path / "corpus.jsonl", [*ROWS, {"_id": "new", "text": "one more"}])
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match=named):
        encode(corpus, tmp_path / "out", checkpoint, **change)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_folder_with_other_content_is_not_written_into(corpus: str, checkpoint: str, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="thesis.tex"):
        encode(corpus, tmp_path / "out", checkpoint)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_output_in_the_corpus_or_a_file_as_output_is_refused(checkpoint: str, tmp_path: Path):
    corpus = write_rows(tmp_path / "corpus" / "corpus.jsonl", ROWS)
    with pytest.raises(ConfigError, match="lies inside the corpus"):
        encode(str(tmp_path / "corpus"), tmp_path / "corpus" / ".." / "corpus" / "out", checkpoint)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        encode(corpus, tmp_path / "file", checkpoint)


def test_an_unwritable_output_is_a_one_line_error(corpus: str, checkpoint: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to") as caught:
        encode(corpus, tmp_path / "file" / "out", checkpoint)
    assert "\n" not in str(caught.value)


def test_parts_too_large_for_parquet_are_refused_with_the_largest_size(corpus: str, checkpoint: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"set docs_per_part to \d+ or less"):
        encode(corpus, tmp_path / "out", checkpoint, docs_per_part=10**8)


class Killed(BaseException):
    """A stand-in for SIGKILL that the library does not catch."""


def stop_after(number: int, seen: list[int]):
    def spread(plan: Plan) -> Iterator[ChunkEntry]:
        for entry in encode_in_process(plan):
            seen.append(entry.number)
            if len(seen) > number:
                raise Killed
            yield entry

    return spread


def test_a_stopped_run_continues_and_writes_the_same_manifest(corpus: str, checkpoint: str, tmp_path: Path):
    encode(corpus, tmp_path / "undisturbed", checkpoint)
    with pytest.raises(Killed):
        encode(corpus, tmp_path / "out", checkpoint, spread=stop_after(1, []))
    assert not (tmp_path / "out" / "manifest.json").exists()
    seen: list[int] = []
    result = encode(corpus, tmp_path / "out", checkpoint, spread=stop_after(10, seen))
    assert (seen, result.num_skipped) == ([2], 2)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "undisturbed" / "manifest.json").read_bytes()
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_a_chunk_with_a_lost_part_is_encoded_again(corpus: str, checkpoint: str, tmp_path: Path):
    with pytest.raises(Killed):
        encode(corpus, tmp_path / "out", checkpoint, spread=stop_after(1, []))
    next((tmp_path / "out" / "embeddings").glob("part-00000-*")).unlink()
    result = encode(corpus, tmp_path / "out", checkpoint)
    assert result.num_skipped == 1
    read_all(tmp_path / "out", result.manifest)


def test_an_unfinished_output_of_another_configuration_is_not_overwritten(corpus: str, checkpoint: str, tmp_path: Path):
    with pytest.raises(Killed):
        encode(corpus, tmp_path / "out", checkpoint, spread=stop_after(1, []))
    with pytest.raises(ConfigError, match="unfinished work of another"):
        encode(corpus, tmp_path / "out", checkpoint, docs_per_part=5)


def test_two_concurrent_runs_publish_one_complete_output(corpus: str, checkpoint: str, tmp_path: Path):
    def overtaken(plan: Plan) -> Iterator[ChunkEntry]:
        yield next(iter(encode_in_process(plan)))
        encode(corpus, tmp_path / "out", checkpoint)
        yield from encode_in_process(plan)

    result = encode(corpus, tmp_path / "out", checkpoint, spread=overtaken)
    embeddings, _ = read_all(tmp_path / "out", result.manifest)
    assert list(embeddings.doc_ids) == [row["_id"] for row in ROWS]
    assert result.manifest == encode(corpus, tmp_path / "undisturbed", checkpoint).manifest
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_a_run_overtaken_by_another_returns_its_result(corpus: str, checkpoint: str, tmp_path: Path):
    def robbed(plan: Plan) -> Iterator[ChunkEntry]:
        yield next(iter(encode_in_process(plan)))
        encode(corpus, tmp_path / "out", checkpoint)
        raise FileNotFoundError(plan.destination.progress)

    result = encode(corpus, tmp_path / "out", checkpoint, spread=robbed)
    assert list(read_all(tmp_path / "out", result.manifest)[0].doc_ids) == [row["_id"] for row in ROWS]
    assert result.manifest == encode(corpus, tmp_path / "undisturbed", checkpoint).manifest


def test_a_projection_is_fitted_to_the_corpus_and_saved_as_a_checkpoint(corpus: str, checkpoint: str, tmp_path: Path):
    dim = Encoder.load(checkpoint).contract.dim // 2
    manifest = encode(corpus, tmp_path / "out", checkpoint, projection=f"pca:{dim}").manifest
    embeddings, _ = read_all(tmp_path / "out", manifest)
    assert embeddings.dim == manifest.dim == dim
    assert manifest.contract.checkpoint == str(tmp_path / "out" / "checkpoint")
    again = Encoder.load(manifest.contract.checkpoint)
    assert again.contract.fingerprint == manifest.contract.fingerprint
    assert np.allclose(again.encode_documents(["Title 0 the text of document 0"])[0], embeddings[0], atol=2e-3)
    assert encode(corpus, tmp_path / "out", checkpoint, projection=f"pca:{dim}").num_skipped == 3


def test_a_wrong_projection_is_refused_before_anything_is_written(corpus: str, checkpoint: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="pca:DIM"):
        encode(corpus, tmp_path / "out", checkpoint, projection="pca:100000")
    assert not storage.exists(str(tmp_path / "out"))
