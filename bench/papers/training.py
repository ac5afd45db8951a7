"""Trainings of the experiment in this process; a killed training continues from its last saved state."""

import json
import os
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.papers.profiles import Model, Profile
from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fit_projection
from ray_lir.training.examples import read_examples
from ray_lir.training.frozen_layers import FrozenLayers
from ray_lir.training.trainer import StepRecord, Training, load_encoder, product_dtype

PROJECTION_SAMPLE = 512
KEPT_BYTES = 4 << 30
"""Bytes of hidden states that the trainings of a process share."""
CHECKPOINT, LOG, STATE = "checkpoint", "steps.jsonl", "state.pt"


def training_lengths(profile: Profile) -> dict[str, int]:
    """Return the lengths of texts in training, as fields of EncoderConfig."""
    return {"query_length": profile.query_length, "document_length": profile.passage_length}


def start(base: str, examples: Path, profile: Profile, folder: Path) -> dict[str, Any]:
    """Save the base checkpoint with a projection (PCA) that is fitted to training passages, if the profile has one.

    Every training starts from it.

    Args:
        base: Checkpoint.
        examples: Training rows of `bench.papers.mining`.
        profile: Size of the experiment.
        folder: Folder of the model.
    """
    passages = [json.loads(line)["documents"][0] for line in examples.read_text().splitlines()]
    sample = np.random.default_rng(0).permutation(sorted(set(passages)))[:PROJECTION_SAMPLE].tolist()
    encoder = Encoder.load(EncoderConfig(checkpoint=base, device="cpu", precision="float32", **training_lengths(profile)))
    _save_checkpoint(fit_projection(encoder, sample, f"pca:{profile.dim}") if profile.dim else encoder, folder)
    return {"base": base}


def config_of(model: Model, profile: Profile, seed: int) -> TrainingConfig:
    """Return the configuration of a training.

    Args:
        model: Settings of the model.
        profile: Size of the experiment.
        seed: Seed of the training.
    """
    common: dict[str, Any] = {
        "max_steps": profile.steps,
        "batch_size": profile.batch_size,
        "num_negatives": profile.listed if model.distilled else profile.negatives,
        "learning_rate": profile.learning_rate,
        "temperature": profile.temperature,
        "seed": seed,
    }
    if profile.trained_layers is not None:
        common["trained_layers"] = profile.trained_layers
    if model.distilled:
        common |= {"contrastive_weight": 0.0, "distillation_weight": 1.0, "micro_batch": 64}
    return TrainingConfig.model_validate(common | model.changes)


def train(begin: Path, examples: Path, model: Model, profile: Profile, seed: int, folder: Path) -> dict[str, Any]:
    """Train a model and save its checkpoint; return its cost, and the mean loss of the first and of the last tenth of the steps.

    Args:
        begin: Checkpoint to start from.
        examples: Training rows of `bench.papers.mining`, with scores if the model is distilled.
        model: Settings of the training.
        profile: Size of the experiment.
        seed: Seed of the training.
        folder: Folder of the checkpoint and of the last saved state, which the caller removes once it has recorded the cost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / STATE, folder / LOG
    encoder = load_encoder(EncoderConfig(checkpoint=str(begin), **training_lengths(profile)), seed, "cpu")
    config = config_of(model, profile, seed)
    products = product_dtype("auto", encoder.device)
    frozen = _frozen_layers(str(begin), profile, products) if profile.trained_layers is not None else None
    training = Training(encoder, read_examples(str(examples)), config, products, frozen)
    if state.exists():
        training.load(state)
    records = [json.loads(line) for line in log.read_text().splitlines()[: training.step]] if log.exists() else []
    for batches in training.remaining():
        began = time.process_time()
        records.append(_line(training.run_step(*batches), time.process_time() - began))
        if training.step % profile.save_every == 0:
            _save(training, records, state, log)
    _save_checkpoint(training.encoder, folder)
    losses = [each["loss"] for each in records]
    tenth = -(-len(losses) // 10)
    seconds = sum(each["cpu_seconds"] for each in records)
    return {
        "steps": len(records),
        "cpu_seconds": round(seconds, 1),
        "pairs_per_cpu_second": round(len(records) * profile.batch_size / seconds, 2),
        "first_loss": round(float(np.mean(losses[:tenth])), 4),
        "last_loss": round(float(np.mean(losses[-tenth:])), 4),
        "temperature": records[-1]["temperature"],
        "query_weight": records[-1]["query_weight"],
        "torch": torch.__version__,
    }


@cache
def _frozen_layers(begin: str, profile: Profile, products: torch.dtype) -> FrozenLayers:
    """Return the frozen layers that all trainings of this process share, with the hidden states of the texts seen so far."""
    network = load_encoder(EncoderConfig(checkpoint=begin, **training_lengths(profile)), 0, "cpu").model
    return FrozenLayers(network, profile.trained_layers or 0, products, KEPT_BYTES, attention=True)


def _save_checkpoint(encoder: Encoder, folder: Path) -> None:
    """Save the checkpoint in place of one that a killed run left without a record."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    encoder.save(folder / CHECKPOINT)


def _line(record: StepRecord, cpu_seconds: float) -> dict[str, float]:
    return {
        "step": record.step,
        "loss": record.loss,
        "temperature": record.temperature,
        "query_weight": record.query_weight,
        "cpu_seconds": round(cpu_seconds, 3),
    }


def _save(training: Training, records: list[dict[str, float]], state: Path, log: Path) -> None:
    """Replace the log, then the state; a log that is longer than the state is cut when the training continues."""
    for path, write in (
        (log, lambda attempt: attempt.write_text("".join(json.dumps(each) + "\n" for each in records))),
        (state, training.save),
    ):
        attempt = path.with_suffix(".attempt")
        write(attempt)
        os.replace(attempt, path)
