"""Training jobs on a tiny collection: their flags, their loss curves, and the same training by the library alone."""

import json
import shutil
from itertools import islice
from pathlib import Path

import torch

from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.distributed.train_worker import best_record
from ray_lir.encoder.encoder import Encoder
from ray_lir.training.source import TrainingSource, load_dev_set
from ray_lir.training.trainer import StepRecord, Training, load_encoder
from tests.support import translated_words
from tests.support.translated_words import load_pairs

STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY = 80, 10, 25


def make_place(folder: Path) -> Path:
    """Write a tiny collection (`words`) and an untrained checkpoint (`tiny`) into a folder, and return it."""
    translated_words.write_collection(folder / "words")
    translated_words.write_checkpoint(folder / "tiny")
    return folder


def flags(place: Path, output: str | Path, **more: object) -> list[str]:
    fields = {
        "dataset": place / "words",
        "output": place / output,
        "encoder.checkpoint": place / "tiny",
        "encoder.precision": "float32",  # auto means bfloat16 on some machines, but the comparison needs float32
        "max_steps": STEPS,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "checkpoint_every": CHECKPOINT_EVERY,
        "cpus_per_worker": 1,
        "data_cache": place / "cache",
        "evaluate_every": EVALUATE_EVERY,
        **more,
    }
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def curve(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "examples_per_second"} for record in records]


def advance(training: Training, steps: int) -> list[StepRecord]:
    """Run the next steps of a training; return their records."""
    return [training.run_step(*batches) for batches in islice(training.remaining(), steps)]


def train_here(place: Path, output: Path) -> tuple[list[dict], str]:
    """Return the loss curve and the digest of the best weights of a training by the library in this process."""
    config = TrainingConfig(max_steps=STEPS, batch_size=16, learning_rate=3e-3, evaluate_every=EVALUATE_EVERY)
    dev = load_dev_set(TrainingSource(dataset=str(place / "words"), dev_split="train"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Training(
        load_encoder(EncoderConfig(checkpoint=str(place / "tiny")), config.seed, "cpu"), load_pairs(place / "words"), config
    )
    records = []
    for batches in training.remaining():
        record = training.run_step(*batches)
        if training.step % EVALUATE_EVERY == 0 or training.step == STEPS:
            record = record.model_copy(update={"ndcg_at_10": training.evaluate(dev)})
        records.append(record)
        if record is best_record(records):
            shutil.rmtree(output, ignore_errors=True)
            training.encoder.save(output)
    torch.set_num_threads(before)
    saved = Encoder.load(EncoderConfig(checkpoint=str(output), device="cpu", precision="float32"))
    return [record.model_dump(exclude={"examples_per_second"}) for record in records], saved.contract.weights_digest
