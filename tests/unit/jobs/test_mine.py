"""jobs.mine on a small real index: negatives, scores of a cross-encoder, and errors."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from jobs.cli import main
from jobs.mine import MineConfig, mine
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig, TrainingConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.progress import track
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.encoder.cross_encoder import BatchScores, CrossEncoder, PairBatch
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from ray_lir.training.examples import read_examples
from ray_lir.training.trainer import Training, load_encoder
from tests.support import translated_words

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with a collection (words), an encoder (tiny), their index, and a cross-encoder (teacher)."""
    folder = tmp_path_factory.mktemp("mine")
    words = translated_words.write_collection(folder / "words")
    encoder = Encoder.load(EncoderConfig(checkpoint=str(translated_words.write_checkpoint(folder / "tiny")), precision="float32"))
    documents = list(read_documents(str(words)))
    embeddings = encoder.encode_documents([each.text for each in documents], [each.doc_id for each in documents])
    build_index(embeddings, str(folder / "index"), IndexConfig(clustering=ClusteringConfig(num_centroids=16)), contract=encoder.contract)
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(folder / "tiny", num_labels=1, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder / "teacher")
    BertTokenizerFast.from_pretrained(folder / "tiny").save_pretrained(folder / "teacher")
    return folder


def configure(place: Path, output: Path | str, **changes: object) -> MineConfig:
    fields = {"index": str(place / "index"), "dataset": str(place / "words"), "output": str(output), "num_negatives": 4, "depth": 20}
    return MineConfig(**fields | {"engine": "exact", "encoder": {"precision": "float32"}} | changes)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ranking(place: Path, query: str) -> list[str]:
    """Return all documents of the collection, best first."""
    searcher = Searcher.open(str(place / "index"))
    encoder = Encoder.load(EncoderConfig(checkpoint=str(place / "tiny"), precision="float32"))
    text = load_dataset(str(place / "words"), "train").queries[query]
    (answer,) = searcher.search(encoder.encode_queries([text]), 100, "exact")
    return searcher.doc_ids(answer.documents)


def test_negatives_are_the_best_documents_that_are_not_positive(place, tmp_path):
    result = mine(configure(place, tmp_path / "tuples.jsonl", choose="best", skip=2))
    expected = {"output": str(tmp_path / "tuples.jsonl"), "queries": 96, "rows": 96, "num_negatives": 4, "scored": False, "num_dead": 0}
    missing = {"judged_documents_missing": 0, "queries_without_relevant": 0, "queries_with_relevant_missing": 0}
    assert result.pop("judged_documents") > 0 and result == expected | missing
    found = {row["query_id"]: row["document_ids"] for row in rows(tmp_path / "tuples.jsonl")}
    qrels = load_dataset(str(place / "words"), "train").qrels
    for query, (positive, *negatives) in found.items():
        assert qrels[query][positive] == 1 and len(negatives) == 4
    for query in ("q0", "q17", "q95"):
        assert found[query][1:] == [doc_id for doc_id in ranking(place, query) if doc_id != found[query][0]][2:6]


def test_random_negatives_depend_on_the_seed_and_come_from_the_top_ranks(place, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        mine(configure(place, tmp_path / f"{name}.jsonl", seed=seed, depth=10))
    one, two, other = (rows(tmp_path / f"{name}.jsonl") for name in ("one", "two", "other"))
    assert one == two != other
    for row in one[:3]:
        best = [doc_id for doc_id in ranking(place, row["query_id"]) if doc_id != row["document_ids"][0]][:10]
        assert set(row["document_ids"][1:]) <= set(best) and len(set(row["document_ids"])) == 5


@pytest.mark.parametrize("name", ["tuples.jsonl", "tuples.jsonl.gz", "tuples.parquet"])
def test_mined_tuples_with_scores_train_an_encoder(place, tmp_path, name):
    assert mine(configure(place, tmp_path / name, cross_encoder=str(place / "teacher")))["scored"]
    data = read_examples(str(tmp_path / name), str(place / "words"))
    assert len(data.queries) == 96 and {len(scores) for lists in data.scores_by_query() for scores in lists} == {5}
    assert all(np.isfinite(scores).all() for lists in data.scores_by_query() for scores in lists)
    config = TrainingConfig(batch_size=4, num_negatives=4, distillation_weight=1.0, max_steps=2)
    training = Training(load_encoder(EncoderConfig(checkpoint=str(place / "tiny")), 0, "cpu"), data, config)
    assert all(np.isfinite(training.run_step(*batches).loss) for batches in training.remaining())


def test_scores_are_the_cross_encoders_whatever_their_sign(place, tmp_path):
    mine(configure(place, tmp_path / "tuples.jsonl", cross_encoder=str(place / "teacher")))
    dataset = load_dataset(str(place / "words"), "train")
    texts = {document.doc_id: document.text for document in read_documents(str(place / "words"))}
    model = BertForSequenceClassification.from_pretrained(place / "teacher").eval()
    tokenizer = BertTokenizerFast.from_pretrained(place / "teacher")
    for row in rows(tmp_path / "tuples.jsonl")[:3]:
        pairs = tokenizer(
            [dataset.queries[row["query_id"]]] * 5, [texts[doc_id] for doc_id in row["document_ids"]], padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**pairs).logits[:, 0].numpy()
        np.testing.assert_allclose(row["scores"], logits, rtol=0, atol=1e-4)
        assert np.ptp(logits) > 1e-3


def test_truncated_pairs_are_reported_once(place, caplog):
    teacher = CrossEncoder.load(str(place / "teacher"), max_length=12, device="cpu", precision="float32")
    with caplog.at_level(logging.WARNING, "ray_lir"):
        teacher.scores([("mot1", "word1")])
        assert not caplog.records
        for _ in range(2):
            teacher.scores([("mot1", "word1"), ("mot3", "word1 word2 word3 " * 20)])
    assert [record.getMessage()[:15] for record in caplog.records] == ["1 of 2 pairs ex"]


def test_a_pairs_score_does_not_depend_on_the_pairs_beside_it(place):
    teacher = CrossEncoder.load(str(place / "teacher"), max_length=12, device="cpu", precision="float32")
    pairs = [("mot1 mot2", "word1"), ("mot3", "word1 word2 word3 " * 20), ("mot4 mot5 mot6", "")]
    together = teacher.scores(pairs)
    np.testing.assert_array_equal(together, [teacher.scores([pair])[0] for pair in pairs])
    assert teacher.scores(pairs[1:2]) == pytest.approx(teacher.scores([("mot3", "word1 word2 word3 " * 3)]), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "tuples.csv"}, "must end in .jsonl, .jsonl.gz or .parquet, or name a folder without a suffix"),
        ({"skip": 17}, "--skip 17 and --num_negatives 4 are more than --depth 20"),
        ({"num_negatives": 60, "depth": 100}, "found 47 negatives for query 'q0', and 60 are needed"),
        ({"cross_encoder": "/nowhere"}, "no checkpoint folder /nowhere"),
        ({"cross_encoder": "all-MiniLM-L6-v2"}, "not a cross-encoder; give a sequence classifier with one label"),
        ({"cross_encoder": "words"}, "words is not a cross-encoder: it has no config.json"),
        ({"cross_encoder": "tiny"}, "tiny is not a cross-encoder with one label: it lacks weights of a classifier"),
        ({"index": "nowhere"}, "no LATEST file"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"engine": "guess"}, "guess"),
    ],
)
def test_an_invalid_argument_is_a_one_line_error_and_nothing_is_written(place, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(place)
    fields = configure(place, tmp_path / "tuples.jsonl").model_dump() | changes
    encoder = fields.pop("encoder")
    del fields["workers"]
    flags = [word for name, value in fields.items() if value is not None for word in (f"--{name}", str(value))]
    with pytest.raises(SystemExit, match="2"):
        main(MineConfig, mine, [*flags, "--encoder.precision", encoder["precision"]])
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir()) and not (place / "tuples.csv").exists()


def test_a_query_without_a_positive_is_named_and_outputs_are_never_overwritten(place, tmp_path):
    (place / "words" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq5\td0\t0\n")
    with pytest.raises(ConfigError, match="1 of 2 queries of split test have no document judged above 0, for example 'q5'; take their"):
        mine(configure(place, tmp_path / "tuples.jsonl", split="test"))
    (tmp_path / "tuples.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="exists already; give another --output"):
        mine(configure(place, tmp_path / "tuples.jsonl"))
    assert (tmp_path / "tuples.jsonl").read_text() == "mine"


def test_a_folder_holds_the_tuples_in_parts_that_training_reads(place, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.mine.TUPLES_PER_PART", 40)
    settings = {"cross_encoder": str(place / "teacher")}
    mine(configure(place, tmp_path / "tuples.jsonl", **settings))
    (tmp_path / "tuples").mkdir()  # an empty folder may exist
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("jobs.mine.create_manifest", interrupt)
        mine(configure(place, f"{tmp_path}/tuples/", **settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuples", "tuples.jsonl", "tuples.unfinished"]
    with monkeypatch.context() as continued:
        continued.setattr(CrossEncoder, "score", interrupt)  # all batches are finished
        mine(configure(place, tmp_path / "tuples", **settings))
    manifest = json.loads((tmp_path / "tuples" / "manifest.json").read_text())
    assert [part["num_tuples"] for part in manifest["parts"]] == [40, 40, 16] and manifest["num_tuples"] == 96 and manifest["scored"]
    parts = [row for part in manifest["parts"] for row in pq.read_table(tmp_path / "tuples" / part["name"]).to_pylist()]
    assert parts == rows(tmp_path / "tuples.jsonl")
    one, other = (read_examples(str(tmp_path / name), str(place / "words")) for name in ("tuples.jsonl", "tuples"))
    assert one.digest() == other.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuples", "tuples.jsonl"]
    with pytest.raises(ConfigError, match="exists already; give another --output"):
        mine(configure(place, tmp_path / "tuples", **settings))
    (tmp_path / "tuples" / manifest["parts"][0]["name"]).unlink()
    with pytest.raises(FormatError, match="no such file"):
        read_examples(str(tmp_path / "tuples"), str(place / "words"))


def test_a_killed_job_continues_after_its_finished_steps(place, tmp_path, monkeypatch):
    settings = {"cross_encoder": str(place / "teacher")}
    mine(configure(place, tmp_path / "undisturbed.jsonl", **settings))
    scored: list[int] = []
    real = CrossEncoder.score

    def count(teacher: CrossEncoder, batch: PairBatch) -> BatchScores:
        scored.append(len(batch.tuples))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return real(teacher, batch)

    monkeypatch.setattr(CrossEncoder, "score", count)
    config = configure(place, tmp_path / "tuples.jsonl", **settings)
    with pytest.raises(KeyboardInterrupt):
        mine(config)
    assert not (tmp_path / "tuples.jsonl").exists()
    scored.clear()
    resumed: list[tuple[str, int]] = []

    def report(made, label, total, count, unit, initial):
        resumed.append((label, initial))
        return track(made, label, total, count, unit, initial=initial)

    monkeypatch.setattr("jobs.mine.track", report)
    mine(config)
    assert scored == [96 - 64]  # tuples are stored in batches of 64
    assert resumed == [("score", 64)], "progress counts finished tuples as done now, or a finished search as work"
    assert (tmp_path / "tuples.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuples.jsonl", "undisturbed.jsonl"]
    monkeypatch.undo()
    (tmp_path / "tuples.jsonl.unfinished").mkdir()  # killed after the file was written, before this was removed
    mine(config)
    assert not (tmp_path / "tuples.jsonl.unfinished").exists()
    with pytest.raises(ConfigError, match="exists already"):
        mine(config)


def test_judgements_of_another_collection_are_refused(place, tmp_path):
    (place / "words" / "qrels" / "other.tsv").write_text("q0\tnowhere\t1\n")
    with pytest.raises(ConfigError, match="none of the 1 documents that words/other judges is in"):
        mine(configure(place, tmp_path / "tuples.jsonl", split="other"))


def test_a_missing_cross_encoder_is_not_replaced_by_an_encoder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="there is no cross-encoder nobody/nothing") as caught:
        mine(configure(place, tmp_path / "tuples.jsonl", cross_encoder="nobody/nothing"))
    assert "MiniLM" not in str(caught.value)
