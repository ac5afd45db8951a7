"""Documents and queries that are cut at the encoder's lengths are counted, and the counts are told wherever they are asked for."""

import json
import logging
from pathlib import Path

import pytest

from jobs import inspect, update
from ray_lir.build import build_index
from ray_lir.config import EncoderConfig, canonical_json
from ray_lir.encode import encode_corpus
from ray_lir.formats.manifest import EmbeddingsManifest, read_manifest
from ray_lir.formats.truncation import UNKNOWN, Truncation, TruncationCounts
from ray_lir.models import tokenization
from ray_lir.models.encoder import Encoder
from ray_lir.search import read_version
from tests.checkpoints import put_together
from tests.corpora import write_rows

LENGTH = 16
ROWS = [{"_id": f"d{n}", "title": f"Title {n}", "text": "the cell of a protein " * (n % 4)} for n in range(40)]
ADDED = [{"_id": "long", "text": "the song of the king " * 50}, {"_id": "short", "text": "a song"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return put_together("sentence_transformers", "fixed", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory) -> Path:
    """A corpus, its embeddings and an index."""
    folder = tmp_path_factory.mktemp("made")
    corpus = write_rows(folder / "corpus.jsonl", ROWS)
    encode_corpus(corpus, str(folder / "embeddings"), EncoderConfig(checkpoint=checkpoint, document_length=LENGTH), docs_per_part=8)
    build_index(str(folder / "embeddings"), str(folder / "index"))
    return folder


def expected(rows: list[dict], checkpoint: str) -> dict:
    """Counted from the tokenizer without any truncation."""
    tokenizer = Encoder.load(checkpoint).tokenizer
    marker, prompt = tokenizer.contract.document_marker is not None, tokenizer.contract.document_prompt
    lengths = [len(tokenizer.tokenizer(prompt + f"{row.get('title', '')} {row['text']}".strip())["input_ids"]) + marker for row in rows]
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


def test_a_run_that_continues_counts_what_was_encoded_before(made, checkpoint, tmp_path):
    from ray_lir.encode import in_process

    def interrupted(plan):
        for number, entry in enumerate(in_process(plan)):
            if number == 2:
                raise KeyboardInterrupt
            yield entry

    def encode(**options):
        config = EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)
        return encode_corpus(str(made / "corpus.jsonl"), str(tmp_path / "out"), config, docs_per_part=8, **options)

    with pytest.raises(KeyboardInterrupt):
        encode(spread=interrupted)
    result = encode()
    assert result.num_skipped == 3  # the interrupt came after the third was written
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (made / "embeddings" / "manifest.json").read_bytes()


def test_what_is_cut_is_said_in_one_warning_also_when_the_job_runs_again(made, checkpoint, caplog):
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


def test_a_manifest_without_counts_is_read_and_written_as_it_was(made):
    value = json.loads((made / "embeddings" / "manifest.json").read_bytes())
    old = {name: field for name, field in value.items() if name not in TruncationCounts.model_fields}
    assert len(value) - len(old) == 3
    manifest = EmbeddingsManifest.model_validate(old)
    assert manifest.truncation == UNKNOWN
    assert canonical_json(manifest.model_dump(mode="json")) == canonical_json(old)


def test_unknown_counts_stay_unknown_in_sums():
    known = TruncationCounts.of([Truncation(4, 10), Truncation(3, 3)])
    assert (known.num_truncated_docs, known.num_tokens_dropped, known.num_source_tokens) == (1, 6, 13)
    assert TruncationCounts.sum([known, UNKNOWN]) == UNKNOWN
    assert UNKNOWN.dropped_fraction is None and UNKNOWN.describe(3, 4) is None
    assert TruncationCounts.sum([]).num_truncated_docs == 0


def test_lower_bounds_are_called_so(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "COUNTED_CHARACTERS", 1000)
    rows = [{"_id": "long", "text": "the cell " * 5000}]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    config = EncoderConfig(checkpoint=checkpoint, document_length=LENGTH)
    counts = encode_corpus(corpus, str(tmp_path / "out"), config).manifest.truncation
    assert counts.dropped_is_minimum and 9_900 < counts.num_source_tokens <= 10_002
    assert "at least" in counts.describe(1, LENGTH)
