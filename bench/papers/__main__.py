"""Lists every table and figure of the papers with its commands, runs them all on tiny data, or runs the experiment on the claims.

python -m bench.papers --list
python -m bench.papers --smoke FOLDER
python -m bench.papers experiment --help
"""

import argparse
import contextlib
import importlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.papers.exhibits import EXHIBITS
from jobs import cli

if TYPE_CHECKING:
    from jobs.train import TrainJob

WORDS = "river bridge stone water energy light music history city garden engine theory cell protein wing flow heat".split()
DOCUMENTS, QUERIES = 60, 12
BATCH, NEGATIVES = 6, 2
"""Queries of a batch, and hard negatives of each, in the trainings of the smoke test."""
POSITIONAL = {"jobs.compare": ("first", "second")}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maxsim": ("maxsim", {}),
    "xtr": ("xtr", {}),
    "trial": ("trial", {}),
    "plain": ("trial", {"relation_weight": 0}),
    "attention": ("attention", {}),
}
"""The scorer and the settings of each model of the smoke test. Scorers have random heads."""


def main() -> None:
    if sys.argv[1:2] == ["experiment"]:
        from bench.papers import experiment  # torch takes seconds to load

        experiment.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--list", action="store_true", help="print the exhibits as a table")
    choice.add_argument("--smoke", type=Path, metavar="FOLDER", help="run every command on tiny data in this folder")
    options = parser.parse_args()
    if options.list:
        print(listing())
    else:
        smoke(options.smoke)


def listing() -> str:
    """Return the list of exhibits as text: paper and label, content, commands, place of the result."""
    parts = []
    for exhibit in EXHIBITS:
        commands = [f"    python -m {command.replace('{', '').replace('}', '')}" for command in exhibit.commands]
        parts.append("\n".join([f"{exhibit.paper}, {exhibit.label}: {exhibit.shows}", *commands, f"    result: {exhibit.result}"]))
    return "\n\n".join(parts)


def smoke(folder: Path) -> dict[str, float]:
    """Run every command on tiny data. Training takes two steps of a tiny model.

    Args:
        folder: Folder for data, models and results.

    Returns:
        Seconds of each exhibit.
    """
    places = prepare(folder)
    seconds = {}
    for exhibit in EXHIBITS:
        start = time.perf_counter()
        for command in exhibit.commands:
            execute(command, places)
        name = f"{exhibit.paper}, {exhibit.label}"
        seconds[name] = round(time.perf_counter() - start, 2)
        print(f"{name}: {seconds[name]} s", file=sys.stderr)
    return seconds


def execute(command: str, places: dict[str, str]) -> dict[str, Any] | None:
    """Run a command in this process, and return its result. A training takes two steps of a tiny model.

    Args:
        command: Arguments of `python -m`.
        places: Value of each placeholder.
    """
    module_name, *flags = shlex.split(command.format(**places))
    module = importlib.import_module(module_name)
    config_type, run = _job(module_name, module)
    config = cli.parse(config_type, flags, POSITIONAL.get(module_name, ()))
    if module_name == "jobs.train":
        return train_two_steps(config, Path(places["checkpoint"]))
    if module_name == "jobs.analyze" and config.analyses == "token_weights":
        with _tagger():
            return run(config)
    return run(config)


def _job(name: str, module: Any) -> tuple[Any, Any]:
    """The configuration and the function of a job."""
    return {
        "jobs.analyze": lambda: (module.AnalyzeConfig, module.analyze),
        "jobs.compare": lambda: (module.CompareConfig, module.compare),
        "jobs.evaluate": lambda: (module.EvaluateConfig, module.evaluate),
        "jobs.train": lambda: (module.TrainJob, module.run),
    }[name]()


def train_two_steps(job: "TrainJob", checkpoint: Path) -> dict[str, Any]:
    """Train a tiny model on made-up tuples, with the settings of a job except for its sizes.

    Args:
        job: The job.
        checkpoint: Checkpoint to start from.

    Returns:
        The losses.

    Raises:
        ConfigError: A setting is not possible.
    """
    from ray_lir.base.config import EncoderConfig, TrainingConfig
    from ray_lir.training.data import TrainingData
    from ray_lir.training.trainer import Training, load_encoder

    rng = np.random.default_rng(job.seed)
    negatives = min(job.num_negatives, NEGATIVES)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(BATCH * (1 + NEGATIVES))]
    lists = [[list(range(first, first + 1 + negatives))] for first in range(0, len(texts), 1 + NEGATIVES)]
    teacher = [[[float(-place) for place in range(1 + negatives)]]] * BATCH
    data = TrainingData.of([" ".join(text.split()[:4]) for text in texts[:: 1 + NEGATIVES]], texts, lists, teacher)
    settings = {name: getattr(job, name) for name in TrainingConfig.model_fields}
    k_train = tuple(min(k, BATCH * 4) for k in job.xtr.k_train)
    sizes = {"max_steps": 2, "batch_size": BATCH, "num_negatives": negatives, "micro_batch": None, "projection_dim": None, "accumulate": 1}
    config = TrainingConfig(**settings | sizes | {"xtr": job.xtr.model_copy(update={"k_train": k_train})})
    own = job.encoder.model_dump(exclude={"checkpoint", "device", "precision", "query_length", "document_length"})
    encoder = load_encoder(EncoderConfig(checkpoint=str(checkpoint), query_length=16, document_length=24, **own), config.seed, "cpu")
    training = Training(encoder, data, config)
    return {"losses": [training.run_step(*batches).loss for batches in training.remaining()]}


@contextlib.contextmanager
def _tagger() -> Iterator[None]:
    """Without spaCy or its model, words are tagged by their length, so that the analysis runs."""
    from ray_lir.evaluation.analyses import token_weights

    names = ("_tagger", "_model", "is_installed")
    before = {name: getattr(token_weights, name) for name in names}
    stand_ins = (lambda name: lambda text: [(0, len(text), "SHORT" if len(text) < 20 else "LONG")], lambda name: name, lambda name: True)
    vars(token_weights).update(zip(names, stand_ins, strict=True))
    try:
        yield
    finally:
        vars(token_weights).update(before)


def prepare(folder: Path) -> dict[str, str]:
    """Write a collection, a checkpoint and an index for each model; return the value of each placeholder."""
    from ray_lir.base.config import AttentionConfig, ClusteringConfig, EncoderConfig, IndexConfig, TrialConfig, XtrConfig
    from ray_lir.building.build import build_index
    from ray_lir.encoder.encoder import Encoder
    from tests.fixtures.tiny import bert

    settings = {"xtr": XtrConfig, "trial": TrialConfig, "attention": AttentionConfig}
    logging.getLogger("ray_lir").setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    data = write_collection(folder / "data")
    bert(folder / "checkpoint")
    texts = {row["_id"]: row["text"] for row in map(json.loads, (data / "corpus.jsonl").read_text().splitlines())}
    places = {"data": str(data), "out": str(folder / "out"), "checkpoint": str(folder / "checkpoint")}
    for name, (scorer, changes) in VARIANTS.items():
        encoder = Encoder.load(EncoderConfig(checkpoint=str(folder / "checkpoint")))
        checkpoint = folder / f"{name}_checkpoint"
        if not checkpoint.exists():
            (encoder if scorer == "maxsim" else encoder.with_scorer(scorer, settings[scorer](**changes))).save(checkpoint)
        encoder = Encoder.load(EncoderConfig(checkpoint=str(checkpoint)))
        if not (folder / name).exists():
            embeddings = encoder.encode_documents(list(texts.values()), list(texts))
            config = IndexConfig(clustering=ClusteringConfig(num_centroids=32))
            build_index(
                embeddings, str(folder / name), config, contract=encoder.contract, relation=encoder.relation, texts=list(texts.values())
            )
        places[name] = str(folder / name)
    return places


def write_collection(folder: Path) -> Path:
    """Write a collection in the BEIR layout: each query is the beginning of its relevant document."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(8, 30))) for _ in range(DOCUMENTS)]
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{number}", "text": " ".join(text.split()[:5])}) for number, text in enumerate(texts[:QUERIES])]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    (folder / "qrels/test.tsv").write_text("".join(f"q{number}\td{number}\t1\n" for number in range(QUERIES)))
    return folder


if __name__ == "__main__":
    main()
