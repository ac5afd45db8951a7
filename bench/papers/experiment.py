"""The experiment on the papers' claims: trains a model for each scorer, searches collections with every engine, and reports.

    python -m bench.papers experiment --data DATA --work WORK [--profile PROFILE] [--only TEXT ...] [--minutes M]

`--status` prints the cells that are done and missing, and `--report` writes the report.

The experiment consists of cells: training data, a teacher's scores, trainings, and searches of one collection with one model. The same
command starts and continues it. A killed run loses at most the optimizer steps since the last saved state, or the chunk of documents or
the search it was in. Several runs can share a work folder: a cell that another run has locked is left to that run.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.machine import instructions, machine
from bench.papers import measuring, training
from bench.papers.mining import training_rows
from bench.papers.parts import write_part
from bench.papers.profiles import (
    COLLECTIONS,
    IN_DOMAIN,
    PARTS,
    PROFILES,
    PROJECTED,
    UNTRAINED,
    Profile,
    models,
    trainings,
    untrained,
    ways_of,
)
from bench.papers.report import update_document, write_report
from bench.papers.teacher import add_scores
from ray_lir.base.config import DEFAULT_CHECKPOINT, EncoderConfig
from ray_lir.corpus.datasets import find_corpus
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.storage.manifest import MANIFEST

MADE = "made.json"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Experiment:
    """An experiment in a work folder.

    Attributes:
        data: Folder of the collections in the BEIR layout.
        work: Folder of everything that the experiment makes.
        profile: Its size.
        base: Checkpoint from which every training starts.
        teacher: Checkpoint of the teacher of the distilled models, a cross-encoder or one that scores by MaxSim; None if there is none.
        ways: Names of the ways of searching; None for all. Encoded collections are kept until all ways are measured.
    """

    data: Path
    work: Path
    profile: Profile
    base: str
    teacher: str | None
    ways: tuple[str, ...] | None = None

    def cells(self) -> list["Cell"]:
        """Return all cells, in the order in which they are made."""
        small, *large = self.profile.collections
        cells = [self.pairs, self.begin]
        for collection in self.profile.collections:
            cells += [self.encoded(collection)] if self.profile.is_frozen else []
            cells += [self.measuring(name, 0, collection) for name in untrained(self.profile)]
        listed = [self.listed, self.scores]
        for distilled, seed in dict.fromkeys((self.is_distilled(name), seed) for name, seed in trainings(self.profile)):
            names = [name for name, other in trainings(self.profile) if (self.is_distilled(name), other) == (distilled, seed)]
            if distilled:
                cells += listed
                listed = []
            for name in names:
                cells += [self.training(name, seed), self.measuring(name, seed, small)]
            for collection in large:
                cells += [self.measuring(name, seed, collection) for name in names]
        return cells

    @property
    def pairs(self) -> "Cell":
        path = self.work / "pairs.jsonl"
        return Cell("training data", [path], lambda: self._mine(path, self.profile.negatives, self.profile.passages))

    @property
    def listed(self) -> "Cell":
        path = self.work / "listed.jsonl"
        return Cell("distillation data", [path], lambda: self._mine(path, self.profile.listed, self.profile.listed_passages))

    @property
    def scores(self) -> "Cell":
        path = self.work / "scored.jsonl"

        def make() -> None:
            assert self.teacher
            lengths = (self.profile.query_length, self.profile.passage_length)
            rows = add_scores(self.teacher, *lengths, self.listed.paths[0], _num_lines(attempt_at(path)))
            _append(path, rows)

        return Cell("teacher's scores", [path], make, (self.listed,), None if self.teacher else "needs --teacher")

    @property
    def begin(self) -> "Cell":
        folder = self.model_folder(UNTRAINED, 0)
        return Cell(
            "projection",
            [folder / MADE],
            lambda: self._keep(folder, training.start(self.base, self.pairs.paths[0], self.profile, folder)),
            (self.pairs,),
        )

    def is_distilled(self, name: str) -> bool:
        """Return whether a model learns from the teacher."""
        return models(self.profile)[name].distilled

    def training(self, name: str, seed: int) -> "Cell":
        """Return the cell of a training.

        Args:
            name: Name of the model.
            seed: Seed of the training.
        """
        model = models(self.profile)[name]
        folder, examples = self.model_folder(name, seed), self.scores if model.distilled else self.pairs
        begin = self.model_folder(UNTRAINED, 0) / training.CHECKPOINT

        def make() -> None:
            self._keep(folder, training.train(begin, examples.paths[0], model, self.profile, seed, folder))
            (folder / training.STATE).unlink(missing_ok=True)

        return Cell(f"training of {name}, seed {seed}", [folder / MADE], make, (self.begin, examples), examples.lacks)

    def measuring(self, name: str, seed: int, collection: str) -> "Cell":
        """Return the cell of all searches of a collection with a model.

        Args:
            name: Name of the model.
            seed: Seed of its training.
            collection: Name of the collection.
        """
        folder, every = self.answers(name, seed, collection), ways_of(name, self.profile)
        ways = {way: settings for way, settings in every.items() if self.ways is None or way in self.ways}
        needs = (self.begin,) if name == PROJECTED else () if name == UNTRAINED else (self.training(name, seed),)
        encoded = self.encoded(collection) if self.profile.is_frozen else None
        needs += (encoded,) if encoded else ()

        def make() -> None:
            source = encoded.paths[0].parent if encoded else None
            measuring.measure(self.encoder(name, seed), self.collection(collection), ways, self.profile, folder, commit(), source)
            if all(measuring.answer(folder, way).exists() for way in every):
                measuring.remove_encoded(folder)

        paths = [measuring.answer(folder, way) for way in ways]
        lacks = next((cell.lacks for cell in needs), None)
        return Cell(f"{name}, seed {seed} on {collection}", paths, make, needs, lacks, measuring.answer(folder, next(iter(every))))

    def encoded(self, collection: str) -> "Cell":
        """Return the cell of a collection's embeddings by the base checkpoint, with the attention that tokens receive."""
        folder, base = self.work / "encoded" / collection, self.work / "models" / "base-attention"

        def make() -> None:
            if not base.exists():
                Encoder.load(EncoderConfig(checkpoint=self.base, device="cpu", precision="float32")).with_scorer("attention").save(base)
            config = EncoderConfig(checkpoint=str(base), document_length=self.profile.document_length)
            encode_corpus(find_corpus(str(self.collection(collection))), str(folder), config, map=map)

        return Cell(f"embeddings of {collection}", [folder / MANIFEST], make, lock=folder)

    def encoder(self, name: str, seed: int) -> EncoderConfig:
        """Return the encoder for documents and queries. The untrained one is the base checkpoint with its own settings."""
        if name == UNTRAINED:
            return EncoderConfig(checkpoint=self.base, document_length=self.profile.document_length if self.profile.is_frozen else None)
        lengths = {"query_length": self.profile.query_length, "document_length": self.profile.document_length}
        name = UNTRAINED if name == PROJECTED else name
        return EncoderConfig(checkpoint=str(self.model_folder(name, seed) / training.CHECKPOINT), **lengths)

    def collection(self, name: str) -> Path:
        """Return the folder of a collection; a part of another one is written first."""
        if name not in PARTS:
            return self.data / name
        folder = self.work / "collections" / name
        if not folder.exists():
            write_part(self.data / PARTS[name], IN_DOMAIN[name], folder)
        return folder

    def model_folder(self, name: str, seed: int) -> Path:
        """Return the folder of a training."""
        return self.work / "models" / slug(name) / f"seed-{seed}"

    def answers(self, name: str, seed: int, collection: str) -> Path:
        """Return the folder of measurements.

        Args:
            name: Name of the model.
            seed: Seed of its training.
            collection: Name of the collection.
        """
        return self.work / "answers" / slug(name) / f"seed-{seed}" / collection

    def _mine(self, path: Path, negatives: int, passages: int | None) -> None:
        _append(path, training_rows(self.data, self.profile.pairs, negatives, 0, _num_lines(attempt_at(path)), passages))

    def _keep(self, folder: Path, content: dict[str, Any]) -> None:
        measuring.keep(folder / MADE, content | commit())


@dataclass(frozen=True)
class Cell:
    """A step of the experiment.

    Attributes:
        name: What it makes.
        paths: Files that exist once the cell is made.
        make: Makes it, or continues where a killed run stopped.
        needs: Cells that must be made first.
        lacks: Why it cannot be made; None if it can.
        lock: File that gives the lock its name; None for the first of `paths`.
    """

    name: str
    paths: Sequence[Path]
    make: Callable[[], None]
    needs: tuple["Cell", ...] = ()
    lacks: str | None = None
    lock: Path | None = None

    @property
    def is_made(self) -> bool:
        return all(path.exists() for path in self.paths)

    @property
    def is_ready(self) -> bool:
        return not self.lacks and all(cell.is_made for cell in self.needs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, continue or report an experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers experiment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {', '.join(COLLECTIONS)} in the BEIR layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that the experiment makes; one for each profile")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--base", default=DEFAULT_CHECKPOINT, metavar="CHECKPOINT", help="checkpoint to start from (%(default)s)")
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="teacher of the distilled models: a cross-encoder, or scored by MaxSim")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="make only cells with one of these texts in their name")
    parser.add_argument("--ways", nargs="+", metavar="NAME", help="search only in these ways, such as scan 'papers: plaid'")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after this time")
    parser.add_argument("--threads", type=int, default=1, help="threads of trainings and encoders (%(default)s)")
    parser.add_argument("--status", action="store_true", help="print the cells that are done and missing")
    parser.add_argument("--report", action="store_true", help="write the report of the finished cells")
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder of the report (%(default)s)")
    parser.add_argument("--name", default="scorers", help="name of the report's files (%(default)s)")
    parser.add_argument("--document", type=Path, help="document in which the report replaces the table of claims, such as docs/papers.md")
    options = parser.parse_args(arguments)
    experiment = Experiment(
        options.data, options.work, PROFILES[options.profile], options.base, options.teacher, tuple(options.ways or ()) or None
    )
    if options.status:
        print(status(experiment))
    elif options.report:
        about = {
            "profile": options.profile,
            "machine": machine() | {"instructions": instructions()},
            "settings": asdict(experiment.profile),
        }
        about |= {"base": options.base, "teacher": options.teacher and Path(options.teacher).name}
        write_report(about, read_results(experiment), options.output, options.name)
        if options.document:
            update_document(options.document, options.output / f"{options.name}.json")
    else:
        torch.set_num_threads(options.threads)
        run(experiment, options.only, time.monotonic() + 60 * options.minutes)
        print(status(experiment))


def run(experiment: Experiment, only: Sequence[str] | None = None, deadline: float = float("inf")) -> None:
    """Make all missing cells that can be made, in order.

    Args:
        experiment: The experiment.
        only: Make only cells with one of these texts in their name; None for all cells.
        deadline: Value of time.monotonic() after which no cell is begun.
    """
    commit()  # of the code that this process has loaded; the repository may move on
    for cell in experiment.cells():
        if cell.is_made or (only and not any(text in cell.name for text in only)) or time.monotonic() > deadline:
            continue
        if not cell.is_ready:
            say(f"skipped: {cell.name} ({cell.lacks or 'an earlier cell is missing'})")
            continue
        with locked(cell.lock or cell.paths[0]) as free:
            if not free:
                say(f"skipped: {cell.name} (another process makes it)")
            elif not cell.is_made:
                say(cell.name)
                cell.make()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a cell; yields False if another process has it. The lock ends with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def status(experiment: Experiment) -> str:
    """Return a table of the cells: done, the finished part, or `-`."""
    profile = experiment.profile
    lines = [
        "; ".join(f"{cell.name}: {_state(cell)}" for cell in (experiment.pairs, experiment.listed, experiment.scores)),
        "",
        f"| model | seed | training | {' | '.join(profile.collections)} |",
        "|---" * (3 + len(profile.collections)) + "|",
    ]
    for name, seed in [*((name, 0) for name in untrained(profile)), *trainings(profile)]:
        found = [_searches(experiment, name, seed, collection) for collection in profile.collections]
        trained = "none" if name in untrained(profile) else _steps(experiment, name, seed)
        lines.append(f"| {name} | {seed} | {trained} | {' | '.join(found)} |")
    return "\n".join(lines)


def _state(cell: Cell) -> str:
    return "done" if cell.is_made else cell.lacks or "missing"


def _steps(experiment: Experiment, name: str, seed: int) -> str:
    cell = experiment.training(name, seed)
    done = _num_lines(experiment.model_folder(name, seed) / training.LOG)
    return "done" if cell.is_made else f"{done}/{experiment.profile.steps} steps" if done else cell.lacks or "-"


def _searches(experiment: Experiment, name: str, seed: int, collection: str) -> str:
    every = ways_of(name, experiment.profile)
    done = sum(measuring.answer(experiment.answers(name, seed, collection), way).exists() for way in every)
    return "done" if done == len(every) else f"{done}/{len(every)}" if done else "-"


def read_results(experiment: Experiment) -> dict[str, Any]:
    """Return the costs of all trainings, by model and seed, and all measurements, by model, seed, collection and way of searching."""
    profile = experiment.profile
    trainings: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[str, Any]] = {}
    for name in (*untrained(profile), *models(profile)):
        for seed in (0,) if name in untrained(profile) else profile.seeds:
            cost = experiment.model_folder(name, seed) / MADE
            if name not in untrained(profile) and cost.exists():
                trainings.setdefault(name, {})[str(seed)] = json.loads(cost.read_text())
            for collection in profile.collections:
                folder = experiment.answers(name, seed, collection)
                found = {way: measuring.answer(folder, way) for way in ways_of(name, profile)}
                read = {way: json.loads(path.read_text()) for way, path in found.items() if path.exists()}
                answers.setdefault(name, {}).setdefault(str(seed), {})[collection] = read
    return {"trainings": trainings, "answers": answers}


@cache
def commit() -> dict[str, Any]:
    """Return the commit of the code when first called, and whether the code differed from it; empty outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        found: dict[str, Any] = {"commit": git("rev-parse", "--short=12", "HEAD")}
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "ray_lir", "bench")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return found | ({"changed": True} if changed else {})


def attempt_at(path: Path) -> Path:
    """Return the file that becomes `path` when it is complete."""
    return path.with_suffix(".attempt")


def _append(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Append rows to the attempt, and rename it when there are no more."""
    attempt = attempt_at(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _num_lines(attempt)
    lines = attempt.read_text().splitlines(keepends=True)[:kept] if kept else []
    attempt.write_text("".join(lines))
    with attempt.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
    os.replace(attempt, path)


def _num_lines(path: Path) -> int:
    """Return the number of complete lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def slug(name: str) -> str:
    """Return the name of a model as a folder name."""
    return name.replace(", ", "-").replace(" ", "-")


def say(message: str) -> None:
    """Print a line of progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
