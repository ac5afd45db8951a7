"""Two workers on one machine: the gradient exchange of jobs.train against torch's DistributedDataParallel (DDP).

    python -m bench.models.gradient_exchange [--batch 16] [--steps 6] [--turns 3] [--output bench/results]

Both train the default checkpoint on the same synthetic pairs, with gloo, one thread a worker, float32 and the random numbers of jobs.train.
Their runs alternate, so that other work on the machine affects both. The report has three results: the median time of a step after the
first two, the bytes that a worker exchanges in a step, and whether the final weights have the same bits.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.machine import machine
from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.encoder.encoder import Encoder
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.training import collectives, gradient_cache
from ray_lir.training.data import TrainingData
from ray_lir.training.trainer import Training, load_encoder

WORKERS, WARM_UP = 2, 2
QUERY_WORDS, DOCUMENT_WORDS = 8, 40
SYSTEMS = ("jobs.train", "DDP")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.gradient_exchange", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for repetition in range(options.turns):
        for system in SYSTEMS if repetition % 2 == 0 else SYSTEMS[::-1]:
            runs[system].append(_run(system, options.batch, options.steps))

    def timed(system: str, clock: str) -> list[float]:
        return [each for run in runs[system] for steps in run[clock] for each in steps[WARM_UP:]]

    first = {system: found[0] for system, found in runs.items()}
    report = {
        "machine": machine(),
        "batch": options.batch,
        "timed_steps": options.turns * (options.steps - WARM_UP) * WORKERS,
        "seconds": {system: round(statistics.median(timed(system, "seconds")), 4) for system in SYSTEMS},
        "least_seconds": {system: round(min(timed(system, "seconds")), 4) for system in SYSTEMS},
        "cpu_seconds": {system: round(statistics.median(timed(system, "cpu_seconds")), 4) for system in SYSTEMS},
        "load": [round(each, 1) for each in os.getloadavg()],
        "bytes_a_step": {system: found["bytes"] for system, found in first.items()},
        "equal_bits": first["jobs.train"]["weights"] == first["DDP"]["weights"],
        "losses": {system: [round(loss, 6) for loss in found["losses"]] for system, found in first.items()},
    }
    (options.output / "gradient_exchange.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "gradient_exchange.md").write_text(markdown(report))
    print(markdown(report))


def _run(system: str, batch: int, steps: int) -> dict[str, Any]:
    """Train with two workers; return their step times, and the losses, bytes and weight digest of the first worker."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (folder, system, batch, steps), nprocs=WORKERS)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    assert found[0]["weights"] == found[1]["weights"], "the workers differ"
    return found[0] | {clock: [each[clock] for each in found] for clock in ("seconds", "cpu_seconds")}


def _work(rank: int, folder: str, system: str, batch: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    config = TrainingConfig(max_steps=steps, batch_size=batch, learning_rate=1e-5)
    encoder = load_encoder(EncoderConfig(query_length=32, document_length=96), 0, "cpu")
    kind = DdpTraining if system == "DDP" else CountedTraining
    training = kind(encoder, pairs(encoder, 4 * batch), config)
    seconds, cpu_seconds, losses = [], [], []
    for batches in training.remaining():
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(training.run_step(*batches).loss)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    sha256 = hashlib.sha256()
    for tensor in training.encoder.model.state_dict().values():
        sha256.update(tensor.numpy().tobytes())
    result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses, "bytes": training.num_bytes, "weights": sha256.hexdigest()}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def pairs(encoder: Encoder, count: int) -> TrainingData:
    """Return queries and passages of random words of the vocabulary."""
    random = torch.Generator().manual_seed(0)
    words = [word for word in encoder.tokenizer.tokenizer.get_vocab() if word.isalpha()]
    words.sort()

    def text(length: int) -> str:
        return " ".join(words[int(number)] for number in torch.randint(0, len(words), (length,), generator=random))

    queries, documents = [text(QUERY_WORDS) for _ in range(count)], [text(DOCUMENT_WORDS) for _ in range(count)]
    return TrainingData.of(queries, documents, [[[number]] for number in range(count)])


class CountedTraining(Training):
    """The training of jobs.train, which counts the gradient bytes that a worker exchanges in the last step."""

    num_bytes = 0

    def run_step(self, *batches: Any) -> Any:
        original = collectives.mean_over_workers

        def counted(value: Tensor) -> Tensor:
            self.num_bytes = max(self.num_bytes, value.numel() * value.element_size())
            return original(value)

        collectives.mean_over_workers = counted
        try:
            return super().run_step(*batches)
        finally:
            collectives.mean_over_workers = original


class DdpTraining(Training):
    """The same training with gradients averaged by DDP during the backward pass, without gradient caching."""

    def __init__(self, encoder: Encoder, data: TrainingData, config: TrainingConfig):
        super().__init__(encoder, data, config)
        self._ddp = DistributedDataParallel(BothSides(self), forward_sync_buffers=False, gradient_as_bucket_view=True)
        self.num_bytes = sum(each.numel() * each.element_size() for each in self._modules.parameters() if each.requires_grad)

    def run_step(self, *batches: Any) -> Any:
        average, backward = collectives.average_gradients, gradient_cache.backward
        collectives.average_gradients = lambda _: None
        gradient_cache.backward = self._with_ddp
        try:
            return super().run_step(*batches)
        finally:
            collectives.average_gradients, gradient_cache.backward = average, backward

    def _with_ddp(self, sides: Any, loss_of: Any, together: Any) -> Tensor:
        (queries,), (documents,) = sides
        with together:
            texts = self._ddp(queries, documents)
        loss = loss_of(*texts)
        loss.backward()
        return loss.detach()


class BothSides(nn.Module):
    """Embeds queries and documents in one forward pass, as DDP needs it."""

    def __init__(self, training: Training):
        super().__init__()
        self.modules_in_training = training._modules

    def forward(self, queries: Any, documents: Any) -> tuple[EmbeddedTexts, EmbeddedTexts]:
        """Call the functions that embed queries and documents."""
        return queries(), documents()


def markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    lines = [
        f"Two workers of one thread, {report['batch']} pairs a step, default checkpoint, gloo. Median of {report['timed_steps']} steps. "
        f"The machine's load average was {report['load'][0]}. "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores.",
        "",
        "| gradients averaged by | seconds a step | fastest step, seconds | processor seconds of a worker | MB exchanged a step |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {system} | {report['seconds'][system]:.3f} | {report['least_seconds'][system]:.3f} | {report['cpu_seconds'][system]:.3f} "
        f"| {report['bytes_a_step'][system] / 2**20:.1f} |"
        for system in SYSTEMS
    ]
    lines += ["", f"The weights after the last step are {'equal' if report['equal_bits'] else 'not equal'} to the bit."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
