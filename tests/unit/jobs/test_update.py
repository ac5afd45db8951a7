"""jobs.update and jobs.compact: from rows of a corpus to the next version of an index, and dry runs."""

import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import compact, inspect, update
from jobs.build_index import BuildIndexJob
from jobs.build_index import run as build
from jobs.export_files import index_blocks
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import WORDS, bert
from tests.support.corpora import write_rows
from tests.support.index_files import tree
from tests.support.repository import REPOSITORY
from tests.support.served_index import QUERIES, make_index

ROWS = [{"_id": f"new-{i}", "text": " ".join(np.random.default_rng(i).choice(WORDS, 12))} for i in range(40)]
ROWS += [{"_id": "doc-7", "text": "the doc that was replaced"}, {"_id": "bad"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with checkpoint, corpus, embeddings and index."""
    folder = tmp_path_factory.mktemp("made")
    make_index(folder, num_docs=120, num_shards=2)
    write_rows(folder / "new.jsonl", ROWS)
    (folder / "gone.txt").write_text('doc-1\n\n{"_id": "doc-2"}\nnobody\n')
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "index", tmp_path / "index"))


def change(index: Path, made: Path, **fields) -> dict:
    fields = {"add": str(made / "new.jsonl"), "delete": str(made / "gone.txt"), "where": "here", "docs_per_part": 8} | fields
    return update.run(update.UpdateJob(index=str(index), **fields))


def test_rows_are_encoded_by_the_encoder_of_the_index_and_added(index, made):
    result = change(index, made)
    assert {name: result[name] for name in ("version", "num_added", "num_replaced", "num_deleted", "num_unknown", "num_docs")} == {
        "version": 2,
        "num_added": 41,
        "num_replaced": 1,
        "num_deleted": 2,
        "num_unknown": 1,
        "num_docs": 120 - 3 + 41,
    }
    assert result["num_deltas"] == 1 and result["drift"] == pytest.approx(1, abs=0.15) and not list(index.glob("_work*"))
    searcher = Searcher.open(str(index), verify=True)
    encoder = Encoder.for_contract(searcher.manifest.contract)
    [top] = searcher.search(encoder.encode_queries([ROWS[3]["text"]]), 1)
    assert searcher.doc_ids(top.documents) == ["new-3"]
    before = tree(index)
    assert change(index, made) | {"seconds": 0} == result | {"seconds": 0} and tree(index) == before


def test_inspect_and_export_leave_out_deleted_documents(index, made):
    change(index, made)
    for compacted in (False, True):
        if compacted:
            compact.run(compact.CompactJob(index=str(index), where="here"))
        found = inspect.run(inspect.InspectJob(folder=str(index)))
        assert (found["documents"], found["deleted"], found["not_listed"]) == (158, 0 if compacted else 3, [])
        assert [shard["delta"] for shard in found["shards"]] == [False, False] + [True] * (not compacted)
        assert found["change"]["kind"] == ("compact" if compacted else "update")
        manifest = read_version(str(index))
        blocks = list(index_blocks(str(index), manifest))
        ids = [doc_id for block in blocks for doc_id in block.embeddings.doc_ids]
        assert len(ids) == len(set(ids)) == 158 and not {"doc-1", "doc-2"} & set(ids)
        assert sum(block.embeddings.num_tokens for block in blocks) == manifest.num_tokens
        assert [block.texts.column("doc_id").to_pylist() for block in blocks] == [block.embeddings.doc_ids for block in blocks]


def test_dry_runs_report_the_plan_and_write_nothing(index, made, tmp_path):
    before = tree(index)
    predicted = change(index, made, dry_run=True)
    planned = compact.run(compact.CompactJob(index=str(index), num_shards=3, dry_run=True))
    assert tree(index) == before and planned["changed"] and planned["num_shards"] == 3
    written = change(index, made)
    for name in ("num_added", "num_replaced", "num_deleted", "num_unknown", "num_docs"):
        assert predicted[name] == written[name]
    assert predicted["added_tokens"] == round(41 * read_version(str(index), 1).num_tokens / 120)  # as many as the other documents have
    predicted = compact.run(compact.CompactJob(index=str(index), dry_run=True))
    written = compact.run(compact.CompactJob(index=str(index), where="here"))
    assert predicted["bytes"] == pytest.approx(written["bytes"], rel=0.03) and written["bytes"] < predicted["bytes_before"]
    fields = {"embeddings": str(made / "embeddings"), "output": str(tmp_path / "again"), "num_shards": 3, "where": "here"}
    predicted = build(BuildIndexJob(**fields, codec={"nbits": 2}, dry_run=True))
    assert not (tmp_path / "again").exists() and predicted["core_seconds"] > 0
    written = build(BuildIndexJob(**fields, codec={"nbits": 2}))
    headers = 128 * 4 * 3 + 3 * 2000  # bytes of the arrays and of the three document files
    assert written["bytes"] - headers < predicted["bytes"] < 1.05 * written["bytes"]


def test_dry_runs_predict_the_bytes_of_lexical_postings(made, tmp_path):
    def built(name: str, **fields: bool) -> int:
        job = {"embeddings": str(made / "embeddings"), "output": str(tmp_path / name), "where": "here", "lexical": name == "lexical"}
        return build(BuildIndexJob.model_validate(job | fields))["bytes"]

    predicted = built("lexical", dry_run=True) - built("plain", dry_run=True)
    added = built("lexical") - built("plain")
    compacted = compact.run(compact.CompactJob(index=str(tmp_path / "plain"), lexical=True, dry_run=True))
    assert compacted["changed"]
    for bytes_ in (predicted, compacted["bytes"] - compacted["bytes_before"]):
        assert 0.5 * added < bytes_ < 2 * added, (bytes_, added)


def test_old_versions_are_removed_after_compacting(index, made):
    change(index, made)
    done = compact.run(compact.CompactJob(index=str(index), where="here", keep_versions=2))
    assert (done["version"], done["versions_removed"]) == (3, [1])
    done = compact.run(compact.CompactJob(index=str(index), where="here", keep_versions=1))
    assert (done["version"], done["changed"], done["versions_removed"]) == (3, False, [2])
    assert inspect.run(inspect.InspectJob(folder=str(index)))["versions"] == [3]


def test_the_checkpoint_of_an_index_may_move_but_not_change(index, made, tmp_path):
    moved = shutil.copytree(made / "checkpoint", tmp_path / "moved")
    assert change(index, made, encoder={"checkpoint": str(moved)})["num_added"] == 41
    bert(tmp_path / "other", seed=5)
    with pytest.raises(IncompatibleError, match="other weights"):
        change(index, made, add=write_rows(tmp_path / "rows.jsonl", ROWS[:2]), encoder={"checkpoint": str(tmp_path / "other")})
    assert latest_version(str(index)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'doc-1\n{"text": "no id"}\n', "line 2 of .* has no id"), (b"\xff\xfe\x00", "not text in UTF-8")],
)
def test_a_file_that_is_not_a_list_of_ids_is_refused(index, made, tmp_path, content, message):
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        change(index, made, delete=str(tmp_path / "ids"))
    with pytest.raises(ConfigError, match="cannot read"):
        change(index, made, delete=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nothing to add"):
        change(index, made, add=None, delete=None)
    assert latest_version(str(index)) == 1


def test_killed_updates_and_compactions_end_with_the_same_bytes(made, index, tmp_path):
    undisturbed = Path(shutil.copytree(index, tmp_path / "undisturbed"))
    updating = ["update", "--add", str(made / "new.jsonl"), "--delete", str(made / "gone.txt"), "--docs_per_part", "8"]
    compacting = ["compact", "--num_shards", "3"]
    for words, signs in (
        (updating, ("_work/embeddings-*/embeddings/part-00001*", "_work/version-*/pieces/00002-*", "shards/delta-*")),
        (compacting, ("shards/shard-00001-*",)),
    ):
        run_job(words, undisturbed)
        for sign in signs:
            there = set(index.glob(sign))
            process = subprocess.Popen(command(words, index), cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while process.poll() is None and set(index.glob(sign)) == there:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        run_job(words, index)
        assert tree(index) == tree(undisturbed)


def command(words: list[str], index: Path) -> list[str]:
    return [sys.executable, "-m", f"jobs.{words[0]}", "--index", str(index), "--where", "here", *words[1:]]


def run_job(words: list[str], index: Path) -> dict:
    done = subprocess.run(command(words, index), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_pooled_documents_are_fewer_vectors_under_a_contract_of_their_own(made, tmp_path):
    plain = read_version(str(made / "index")).contract
    config = EncoderConfig(checkpoint=str(made / "checkpoint"), pooling_factor=3)
    result = encode_corpus(str(made / "corpus.jsonl"), str(tmp_path / "pooled"), config)
    contract = result.manifest.contract
    assert contract.pooling_factor == 3 and contract.fingerprint != plain.fingerprint
    assert result.manifest.num_tokens < 0.45 * read_version(str(made / "index")).num_tokens
    pooled, whole = Encoder.load(config), Encoder.load(str(made / "checkpoint"))
    np.testing.assert_array_equal(pooled.encode_queries(QUERIES).values, whole.encode_queries(QUERIES).values)
    assert pooled.tokenizer.query_spans(QUERIES[0]).pieces and not len(pooled.tokenizer.document_spans(QUERIES[0]).spans)
    built = build_index(str(tmp_path / "pooled"), str(tmp_path / "index"), IndexConfig(clustering=ClusteringConfig(num_centroids=32)))
    done = change(tmp_path / "index", made)
    assert done["added_tokens"] < 0.5 * change(shutil.copytree(made / "index", tmp_path / "whole"), made)["added_tokens"]
    assert read_version(str(tmp_path / "index")).contract.fingerprint == built.contract.fingerprint
    with pytest.raises(IncompatibleError, match="pooling_factor is 1, not 3"):
        change(tmp_path / "index", made, add=str(made / "embeddings"))


MESSY = [
    {"_id": "n1", "text": "the older text"},
    {"_id": 7, "text": "a number as id"},
    {"_id": "n2", "text": None},
    {"_id": "n1", "text": "the newer text"},
    b"not JSON",
    {"_id": "n3", "text": "good"},
    {"_id": 1.5, "text": "a fraction as id"},
    {"_id": "a\nb", "text": "a line feed in the id"},
]


def test_refused_rows_are_counted_reported_and_kept_and_the_last_row_of_an_id_wins(index, made, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ray_lir"), "propagate", True)  # a job of another test may have changed this
    rows = write_rows(tmp_path / "messy.jsonl", MESSY)
    preview = change(index, made, add=rows, delete=None, dry_run=True)
    assert (preview["num_added"], preview["num_dead"], preview["num_repeated"]) == (3, 5, 1)
    result = change(index, made, add=rows, delete=None)
    assert (result["num_added"], result["num_dead"], result["num_repeated"]) == (3, 5, 1)
    letters = [json.loads(line) for line in Path(result["dead_letters"]).read_text().split("\n")[:-1]]
    assert [(each["line"], each["reason"].partition(":")[0]) for each in letters] == [
        (1, "a later row has the id 'n1' too, and replaces this one"),
        (3, "no text"),
        (5, "not JSON"),
        (7, "_id is a number with a fraction (1.5), not a string or a whole number"),
        (8, "_id holds the control character U+000A ('a\\nb')"),
    ]
    assert json.loads(letters[0]["row"])["text"] == "the older text"
    assert f"5 rows of {rows} were refused; the first: messy.jsonl line 1: a later row" in caplog.text
    assert (
        f"update: 5 refused rows (1 of them replaced by a later row with the same id) are kept in {result['dead_letters']}" in caplog.text
    )
    searcher = Searcher.open(str(index))
    found = searcher.find(["n1", "7", "n3"])
    assert [each["text"] for each in searcher.documents([found[each] for each in ("n1", "7", "n3")])] == [
        "the newer text",
        "a number as id",
        "good",
    ]
    caplog.clear()
    assert change(index, made, add=rows, delete=None) | {"seconds": 0} == result | {"seconds": 0} and "are kept in" in caplog.text
    compact.run(compact.CompactJob(index=str(index), where="here", keep_versions=1))
    assert Path(result["dead_letters"]).is_file()


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\xa0", " "])
def test_ids_to_delete_are_cut_at_line_feeds_alone(tmp_path, separator):
    plain, odd = f"a{separator}b", f"{separator}a{separator}"
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([plain, odd, ""]).encode())
    assert update.read_ids(str(tmp_path / "ids")) == [plain, odd]
    (tmp_path / "ids.gz").write_bytes(gzip.compress(f"{plain}\n{odd}\n".encode()))
    assert update.read_ids(str(tmp_path / "ids.gz")) == [plain, odd]
    if separator > "\x1f":
        text = json.dumps({"_id": odd, "text": separator}, ensure_ascii=False)
        (tmp_path / "ids").write_text(f'{text}\n{{"_id": 7}}\n', encoding="utf-8")
        assert update.read_ids(str(tmp_path / "ids")) == [odd, "7"]
