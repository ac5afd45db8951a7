"""bench.papers.cross_encoder: the cross-encoder learns, continues after an interruption to the same bytes, and is a teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.papers import cross_encoder
from bench.papers.__main__ import write_collection
from bench.papers.teacher import add_scores
from ray_lir.encoder.cross_encoder import CrossEncoder
from tests.fixtures.tiny import VOCABULARY, bert

STEPS, ROWS = 80, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, rows in which all positives have one word in common, and a trained cross-encoder."""
    folder = tmp_path_factory.mktemp("teacher")
    bert(folder / "checkpoint")
    words = [word for word in VOCABULARY if word.isalpha()][:8]
    rows = [{"query": one, "documents": [f"{words[0]} {other}", other]} for one in words for other in words if words[0] != other]
    rows *= -(-STEPS * ROWS // len(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder, folder / "model")
    return folder


def train(folder: Path, output: Path) -> None:
    cross_encoder.train(str(folder / "checkpoint"), folder / "rows.jsonl", output, STEPS, ROWS, 1, 3e-3, 0)


def test_the_loss_falls_and_only_the_last_layers_change(place: Path):
    losses = [json.loads(line)["loss"] for line in (place / "model" / cross_encoder.LOG).read_text().splitlines()]
    assert len(losses) == STEPS and np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2
    before, after = (cross_encoder.AutoModelForSequenceClassification.from_pretrained(place / name) for name in ("checkpoint", "model"))
    changed = {
        name for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(one, other)
    }
    assert changed and all("layer.1." in name or "pooler" in name or "classifier" in name for name in changed)


def test_an_interrupted_training_gives_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def interrupted(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == cross_encoder.SAVE_EVERY + 3:
            raise KeyboardInterrupt
        return clip(*arguments)

    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(place, place / "again")
    train(place, place / "again")
    assert (place / "again/model.safetensors").read_bytes() == (place / "model/model.safetensors").read_bytes()
    assert not (place / "again" / cross_encoder.STATE).exists()
    assert len(calls) == STEPS + 3


def test_its_logits_are_a_teachers_scores(place: Path):
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    scored = list(add_scores(str(place / "model"), 8, 8, place / "rows.jsonl", first=3))
    assert [row["query"] for row in scored] == [row["query"] for row in rows[3:]]
    model = CrossEncoder.load(str(place / "model"), 16, "cpu")
    for row in scored[:5]:
        want = model.scores([(row["query"], text) for text in row["documents"]])
        np.testing.assert_allclose(row["scores"], want, atol=1e-4)


def test_both_teachers_rank_the_same_passages(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_encoder, "MAX_LENGTH", 64)  # the positions of the checkpoint
    qrels = write_collection(place / "data/squad") / "qrels"
    (qrels / "test.tsv").rename(qrels / "dev.tsv")
    corpus = place / "data/squad/corpus.jsonl"
    documents = [json.loads(line) | {"title": f"title {number % 4}"} for number, line in enumerate(corpus.read_text().splitlines())]
    corpus.write_text("".join(json.dumps(each) + "\n" for each in documents))
    found = cross_encoder.compare_teachers(place / "data", str(place / "checkpoint"), place / "model", questions=4)
    assert found["questions"] <= 4 and found["documents"] > 0
    means = found["nDCG@10"]
    assert found["difference"] == pytest.approx(means["cross_encoder"] - means["maxsim"], abs=2e-4)
    assert 0 <= means["cross_encoder"] <= 1 and found["training"]["steps"] == STEPS
