"""A cross-encoder as a teacher: trained on the experiment's rows, and compared with MaxSim of the checkpoint it starts from.

    python -m bench.papers.cross_encoder train CHECKPOINT ROWS FOLDER [--steps 100] [--batch_size 8] [--trained_layers 6]
    python -m bench.papers.cross_encoder compare DATA CHECKPOINT FOLDER [--questions 200] [--output bench/results/teachers.json]

ROWS are the distillation rows of an experiment (WORK/listed.jsonl). `train` continues where a killed run stopped. `compare` ranks the best
passages by MaxSim again by the cross-encoder, on questions of the development set.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, get_linear_schedule_with_warmup

from bench.machine import machine
from bench.papers.development import development_set
from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.cross_encoder import CrossEncoder
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics
from ray_lir.evaluation.runs import Ranking, Run
from ray_lir.evaluation.significance import compare
from ray_lir.training.dev_set import rank
from ray_lir.training.trainer import product_dtype

MAX_LENGTH = 192
"""Tokens of question and passage together."""
DEPTH = 20
"""Passages of a question that the cross-encoder ranks."""
WARMUP, SAVE_EVERY = 0.1, 20
STATE, LOG = "state.pt", "steps.jsonl"


def train(
    checkpoint: str, rows: Path, folder: Path, steps: int, batch_size: int, trained_layers: int, learning_rate: float, seed: int
) -> None:
    """Train a cross-encoder and save it with its log.

    The loss is the cross-entropy of a row's positive among the row's documents.

    Args:
        checkpoint: Checkpoint to start from. The classifier of one label is new.
        rows: Rows `{"query": text, "documents": [positive, negatives...]}`, drawn in a random order.
        folder: Folder of the cross-encoder, of its log, and of the saved state while it is trained.
        steps: Optimizer steps.
        batch_size: Rows of a step.
        trained_layers: Last layers that are trained, besides pooler and classifier.
        learning_rate: Peak learning rate; the classifier learns ten times as fast.
        seed: Seed of the classifier, of dropout and of the order of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    body, head = _trained(model, trained_layers)
    optimizer = torch.optim.AdamW([{"params": body, "lr": learning_rate}, {"params": head, "lr": 10 * learning_rate}])
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
    products = product_dtype("auto", model.device)
    lines = rows.read_text().splitlines()
    order = random.Random(seed).sample(range(len(lines)), steps * batch_size)
    log: list[dict[str, Any]] = []
    if (folder / STATE).exists():
        state = torch.load(folder / STATE, weights_only=False)
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        log = state["log"]
    model.train()
    for step in range(len(log), steps):
        torch.manual_seed(seed + step)
        began, losses = time.process_time(), []
        for place in order[step * batch_size : (step + 1) * batch_size]:
            row = json.loads(lines[place])
            pairs = tokenizer(
                [row["query"]] * len(row["documents"]),
                row["documents"],
                truncation="longest_first",
                max_length=MAX_LENGTH,
                padding=True,
                return_tensors="pt",
            )
            with torch.autocast("cpu", products, enabled=products != torch.float32):
                logits = model(**pairs).logits[:, 0]
            loss = functional.cross_entropy(logits.float()[None], torch.zeros(1, dtype=torch.long))
            (loss / batch_size).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_([*body, *head], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        log.append({"step": step + 1, "loss": round(sum(losses) / batch_size, 4), "cpu_seconds": round(time.process_time() - began, 2)})
        if (step + 1) % SAVE_EVERY == 0:
            learned = {name for name, weights in model.named_parameters() if weights.requires_grad}
            content = {name: weights for name, weights in model.state_dict().items() if name in learned}
            _save({"model": content, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "log": log}, folder)
            print(json.dumps(log[-1]), flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / STATE).unlink(missing_ok=True)


def _trained(model: PreTrainedModel, layers: int) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Freeze the embeddings and all but the last layers; return the weights of these layers, and those of pooler and classifier."""
    model.base_model.embeddings.requires_grad_(False)
    encoder = model.base_model.encoder.requires_grad_(False)
    body = list(encoder.layer[len(encoder.layer) - layers :].requires_grad_(True).parameters())
    known = {id(weights) for weights in body}
    return body, [weights for weights in model.parameters() if weights.requires_grad and id(weights) not in known]


def _save(state: dict[str, Any], folder: Path) -> None:
    attempt = folder / f"{STATE}.attempt"
    torch.save(state, attempt)
    os.replace(attempt, folder / STATE)


def compare_teachers(data: Path, checkpoint: str, folder: Path, questions: int) -> dict[str, Any]:
    """Return nDCG@10 on the development set of MaxSim, and of the cross-encoder's ranking of the best DEPTH passages by MaxSim.

    Args:
        data: Folder of the collections.
        checkpoint: Checkpoint that scores by MaxSim.
        folder: The cross-encoder.
        questions: Questions of the development set to use.
    """
    dev = development_set(data)
    chosen = sorted(dev.queries)[:: -(-len(dev.queries) // questions)]
    dev = replace(dev, queries={each: dev.queries[each] for each in chosen}, qrels={each: dev.qrels[each] for each in chosen})
    names, texts = list(dev.documents), list(dev.documents.values())
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, query_length=32, document_length=MAX_LENGTH - 32, device="cpu"))
    values, numbers = rank(encoder, list(dev.queries.values()), texts, DEPTH)
    teacher = CrossEncoder.load(str(folder), MAX_LENGTH, "cpu")
    found: dict[str, Run] = {"maxsim": {}, "cross_encoder": {}}
    began = time.process_time()
    for query, scores, best in zip(dev.queries, values, numbers, strict=True):
        again = teacher.scores([(dev.queries[query], texts[each]) for each in best])
        for kind, by in (("maxsim", scores), ("cross_encoder", again)):
            ranking: Ranking = [(names[best[place]], float(by[place])) for place in (-by).argsort(kind="stable")]
            found[kind][query] = ranking
    seconds = time.process_time() - began
    measured = {kind: metrics.evaluate(run, dev.qrels, ["nDCG@10"])["nDCG@10"] for kind, run in found.items()}
    one, other = (np.array([values[query] for query in dev.queries]) for values in measured.values())
    result = compare(one, other)
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return {
        "questions": len(dev.queries),
        "documents": len(names),
        "nDCG@10": {"maxsim": round(result.first, 4), "cross_encoder": round(result.second, 4)},
        "difference": round(result.difference, 4),
        "interval": [round(result.low, 4), round(result.high, 4)],
        "p": round(result.p, 4),
        "cpu_seconds_of_cross_encoder": round(seconds, 1),
        "training": {"steps": len(lines), "cpu_seconds": round(sum(each["cpu_seconds"] for each in lines), 1)}
        | {name: round(sum(each["loss"] for each in part) / len(part), 4) for name, part in _ends(lines).items()},
    }


def _ends(lines: Sequence[dict[str, Any]]) -> dict[str, Sequence[dict[str, Any]]]:
    tenth = -(-len(lines) // 10)
    return {"first_loss": lines[:tenth], "last_loss": lines[-tenth:]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a cross-encoder, or compare it with MaxSim."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.cross_encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="train a cross-encoder")
    trains.add_argument("checkpoint")
    trains.add_argument("rows", type=Path)
    trains.add_argument("folder", type=Path)
    trains.add_argument("--steps", type=int, default=100, help="optimizer steps (%(default)s)")
    trains.add_argument("--batch_size", type=int, default=8, help="rows of a step (%(default)s)")
    trains.add_argument("--trained_layers", type=int, default=6, help="last layers that are trained (%(default)s)")
    trains.add_argument("--learning_rate", type=float, default=3e-5, help="peak learning rate (%(default)s)")
    trains.add_argument("--seed", type=int, default=0)
    compares = commands.add_parser("compare", help="compare the cross-encoder with MaxSim")
    compares.add_argument("data", type=Path)
    compares.add_argument("checkpoint")
    compares.add_argument("folder", type=Path)
    compares.add_argument("--questions", type=int, default=200, help="questions of the development set (%(default)s)")
    compares.add_argument("--output", type=Path, default=Path("bench/results/teachers.json"))
    for each in (trains, compares):
        each.add_argument("--threads", type=int, default=1, help="threads (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.command == "train":
        size = (options.steps, options.batch_size, options.trained_layers)
        train(options.checkpoint, options.rows, options.folder, *size, options.learning_rate, options.seed)
        return
    found = compare_teachers(options.data, options.checkpoint, options.folder, options.questions)
    report = {"machine": machine(), "checkpoint": Path(options.checkpoint).name} | found
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
