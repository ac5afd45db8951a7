"""One messy corpus through every command: each refuses the same rows and reports them, in counts and in the log."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from jobs import update
from ray_lir.base.config import EncoderConfig, TrainingSource
from ray_lir.building.build import build_index
from ray_lir.building.update import update_index
from ray_lir.corpus.records import read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from ray_lir.training.source import load_training_data
from tests.support.corpora import write_rows
from tests.support.served_index import make_index

GOOD = [{"_id": "a", "text": "the first river"}, {"_id": 7, "text": "a bridge"}, {"_id": "x/y", "title": "token", "text": ""}]
REFUSED = [
    {"_id": 1.5, "text": "a fraction as id"},
    {"_id": True, "text": "a truth value as id"},
    {"_id": None, "text": "no id"},
    {"_id": "", "text": "an empty id"},
    {"_id": "line\nfeed", "text": "a control character"},
    {"_id": "x" * 1025, "text": "a long id"},
    {"_id": "n", "text": None},
    {"_id": "n", "text": 5},
    b"not JSON",
    b'{"_id": "n", "text": "caf\xe9"}',
    b'{"_id": "n", "text": "\\ud800"}',
    b'{"_id": "n", "text": "a", "text": "b"}',
    b'{"_id": "n", "text": "t", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"_id": "n", "text": "t", "size": 1e999}',
]
REPEATED = [{"_id": "a", "text": "the city of the second river"}, {"_id": "7", "text": "another bridge"}]
NUM_DEAD = len(REFUSED) + len(REPEATED)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("messy")
    make_index(folder, num_docs=80, num_shards=1)
    write_rows(folder / "messy" / "corpus.jsonl", [*GOOD, *REFUSED, *REPEATED])
    write_rows(folder / "messy" / "queries.jsonl", [{"_id": 1, "text": "river"}])
    (folder / "messy" / "qrels").mkdir()
    (folder / "messy" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\t7\t1\n")
    return folder


@pytest.fixture
def log(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("ray_lir"), "propagate", True)  # a job of another test may have changed this
    return caplog


def texts_of(index: Path, *ids: str) -> list[str]:
    searcher = Searcher.open(str(index))
    found = searcher.find(ids)
    return [each["text"] for each in searcher.documents([found[doc_id] for doc_id in ids])]


def test_encode_update_training_and_python_refuse_the_same_rows(made: Path, tmp_path: Path, log):
    corpus, encoder = str(made / "messy"), EncoderConfig(checkpoint=str(made / "checkpoint"))
    warning = f"{NUM_DEAD} rows of {corpus} were refused; the first: corpus.jsonl line"

    manifest = encode_corpus(corpus, str(tmp_path / "embeddings"), encoder).manifest
    assert (manifest.num_docs, manifest.num_dead, manifest.num_repeated) == (len(GOOD), NUM_DEAD, len(REPEATED))
    assert warning in log.text
    build_index(str(tmp_path / "embeddings"), str(tmp_path / "built"))
    assert texts_of(tmp_path / "built", "a", "7", "x/y") == ["the first river", "a bridge", ""]  # here the first row of an id counts

    log.clear()
    shutil.copytree(made / "index", tmp_path / "index")
    result = update.run(update.UpdateJob(index=str(tmp_path / "index"), add=corpus, where="here"))
    assert (result["num_added"], result["num_dead"], result["num_repeated"]) == (len(GOOD), NUM_DEAD, len(REPEATED))
    assert warning in log.text and len(Path(result["dead_letters"]).read_bytes().split(b"\n")) == NUM_DEAD + 1
    assert texts_of(tmp_path / "index", "a", "7", "x/y") == [
        "the city of the second river",
        "another bridge",
        "",
    ]  # here the last row of an id counts

    log.clear()
    data = load_training_data(TrainingSource(dataset=corpus))
    assert sorted(data.documents) == ["a bridge", "the first river"] and warning in log.text

    log.clear()
    refused = RefusedRows()
    documents = list(read_documents(corpus, refused))
    assert [each.doc_id for each in documents] == ["a", "7", "x/y"]
    assert (refused.num_rows, refused.num_repeated) == (NUM_DEAD, len(REPEATED)) and warning in log.text
    shutil.copytree(made / "index", tmp_path / "python")
    model = Encoder.for_contract(Searcher.open(str(made / "index")).manifest.contract)
    texts = [f"{each.title} {each.text}".strip() for each in documents]
    added = model.encode_documents(texts, [each.doc_id for each in documents])
    update_index(tmp_path / "python", added, texts=[each.text for each in documents], contract=model.contract)
    assert texts_of(tmp_path / "python", "a", "7", "x/y") == ["the first river", "a bridge", ""]


def test_every_refused_row_is_kept_as_it_was(made: Path, tmp_path: Path):
    encode_corpus(str(made / "messy"), str(tmp_path / "out"), EncoderConfig(checkpoint=str(made / "checkpoint")))
    [file] = (tmp_path / "out" / "dead_letters").iterdir()
    letters = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    assert [each["line"] for each in letters] == list(range(len(GOOD) + 1, len(GOOD) + NUM_DEAD + 1))
    assert all(each["reason"] and ("row" in each) != ("row_base64" in each) for each in letters)
