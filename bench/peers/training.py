"""The measuring process of bench.models.training: trains one system on one batch of pairs repeatedly.

python -m bench.peers.training SYSTEM CHECKPOINT PAIRS.json RESULT.json --threads N --steps N --length N
                                [--precision float32|bfloat16]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.peers.harness import cpu_seconds, memory_bytes, pin

Pairs = list[list[str]]
"""Pairs of query and passage."""
Tell = Callable[[float], None]
"""Function to call at the end of every step with its loss."""
QUERY_LENGTH = 32
LEARNING_RATE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("checkpoint")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=96, help="of passages, in tokens")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of products; weights are float32")
    arguments = parser.parse_args()
    pin(arguments.threads)
    torch.set_num_threads(arguments.threads)
    ends: list[tuple[float, float, float]] = []
    train, pairs = SYSTEMS[arguments.system], json.loads(arguments.pairs.read_text())
    train(arguments.checkpoint, pairs, arguments.steps, arguments.length, arguments.precision, lambda loss: ends.append((*clocks(), loss)))
    steps = [{"seconds": end[0] - start[0], "cpu_seconds": end[1] - start[1]} for start, end in zip(ends, ends[1:], strict=False)]
    report = {"steps": steps, "losses": [loss for _, _, loss in ends], "peak_bytes": memory_bytes("VmHWM")}
    arguments.result.write_text(json.dumps(report, indent=1) + "\n")


def clocks() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()


def _ray_lir(checkpoint: str, pairs: Pairs, steps: int, length: int, precision: str, tell: Tell) -> None:
    """The loop that a worker of jobs.train runs."""
    from ray_lir.base.config import EncoderConfig, TrainingConfig
    from ray_lir.training.data import TrainingData
    from ray_lir.training.trainer import Training, load_encoder

    config = TrainingConfig(max_steps=steps, batch_size=len(pairs), learning_rate=LEARNING_RATE, temperature=1.0)
    encoder = load_encoder(EncoderConfig(checkpoint=checkpoint, query_length=QUERY_LENGTH, document_length=length), 0, "cpu")
    queries, passages = zip(*pairs, strict=True)
    data = TrainingData.of(list(queries), list(passages), [((number,),) for number in range(len(pairs))])
    training = Training(encoder, data, config, getattr(torch, precision))
    for batches in training.remaining():
        tell(training.run_step(*batches).loss)


def _pylate(checkpoint: str, pairs: Pairs, steps: int, length: int, precision: str, tell: Tell) -> None:
    """SentenceTransformerTrainer with PyLate's contrastive loss and collator, as in its documentation."""
    from pylate import losses, models, utils
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = models.ColBERT(checkpoint, query_length=QUERY_LENGTH, document_length=length, device="cpu")
    options = {"loss": losses.Contrastive(model=model), "data_collator": utils.ColBERTCollator(model.tokenize)}
    _run(SentenceTransformerTrainer, SentenceTransformerTrainingArguments, model, options, pairs, steps, precision, tell)


def _sentence_transformers(checkpoint: str, pairs: Pairs, steps: int, length: int, precision: str, tell: Tell) -> None:
    """MultiVectorEncoderTrainer of sentence-transformers with its loss for in-batch negatives, as in its documentation."""
    from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    model = MultiVectorEncoder(checkpoint, device="cpu")
    model[0].query_length, model[0].document_length = QUERY_LENGTH, length
    options = {"loss": MultiVectorMultipleNegativesRankingLoss(model)}
    _run(MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments, model, options, pairs, steps, precision, tell)


def _run(
    trainer_type: Any, arguments_type: Any, model: object, options: dict[str, Any], pairs: Pairs, steps: int, precision: str, tell: Tell
) -> None:
    """Train with a trainer of sentence-transformers, without evaluation or saving."""
    from datasets import Dataset

    queries, passages = zip(*pairs, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_type(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(pairs),
            learning_rate=LEARNING_RATE,
            warmup_steps=round(0.1 * steps),
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=precision == "bfloat16",
        )

        class Telling(trainer_type):
            def training_step(self, *inputs, **options):
                self.step_loss = super().training_step(*inputs, **options)
                return self.step_loss

        data = Dataset.from_dict({"query": queries, "positive": passages})
        trainer = Telling(model=model, args=arguments, train_dataset=data, **options)
        trainer.add_callback(telling(lambda: tell(float(trainer.step_loss))))
        trainer.train()


def telling(tell: Callable[[], None]) -> object:
    """A callback of the trainer that reports the end of each step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            tell()

    return Steps()


SYSTEMS = {"ray_lir": _ray_lir, "pylate": _pylate, "sentence-transformers": _sentence_transformers}

if __name__ == "__main__":
    main()
