"""Test claims of papers at small scale: one encoder for each scorer, trained on the same pairs, searched by every engine.

    python -m bench.papers.scorers DATA_FOLDER [--profile cpu|gpu|tiny] [--models NAME ...] [--collections NAME ...] [--minutes M]
                            [--work runs/scorers] [--output bench/results] [--report]

All models start from the default checkpoint, projected to 128 dimensions (PCA over training passages). They are trained on the same
question-passage pairs in the same order, with the same number of steps and learning rate. Each training, encoded collection and
engine's answers is a file in the work folder and is not made again. So a run can be killed and continued, or split by --models,
--collections and --minutes. The report covers all files. See bench/README.md.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import instructions, machine
from bench.papers.profiles import LEARNING_RATE, PROFILES, UNTRAINED, Profile, engines, models
from bench.papers.report import write_report
from ray_lir.base.config import Config, EncoderConfig, IndexConfig, TrainingConfig
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fit_projection
from ray_lir.evaluation import metrics
from ray_lir.search.searcher import Searcher
from ray_lir.training.data import TrainingData
from ray_lir.training.judgements import from_judgements
from ray_lir.training.trainer import Training, load_encoder, product_dtype

SEED = 0
DIM = 128
TRAINING_SETS = ("squad", "nq_qed")
COLLECTIONS = ("scifact", "nfcorpus", "arguana_rebuilt", "cranfield", "cisi", "medline")
OWN_DOCUMENT_IS_NO_HIT = ("arguana_rebuilt",)
"""Collections with documents as queries: a hit with the query's own id is left out, as BEIR does for ArguAna."""
MEASURES = ("nDCG@10", "R@100")
DEPTH = 100
PROJECTION_SAMPLE = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.scorers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help=f"folder of {', '.join((*TRAINING_SETS, *COLLECTIONS))} in the BEIR layout")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--collections", nargs="*", choices=COLLECTIONS, default=list(COLLECTIONS), metavar="NAME", help="none: only train")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which nothing more is begun")
    parser.add_argument("--work", type=Path, default=Path("runs/scorers"))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    parser.add_argument("--report", action="store_true", help="measure nothing; write the report of what is there")
    options = parser.parse_args()
    bench = Bench(options.data, PROFILES[options.profile], options.work / options.profile, time.monotonic() + 60 * options.minutes)
    chosen = options.models or list(models(bench.profile))
    if unknown := set(chosen) - set(models(bench.profile)):
        sys.exit(f"error: no model {min(unknown)!r} in profile {options.profile}; choose {', '.join(models(bench.profile))}")
    if not options.report:
        bench.run(chosen, options.collections)
    settings = asdict(bench.profile) | {"learning_rate": LEARNING_RATE, "seed": SEED, "dim": DIM}
    about = {"profile": options.profile, "machine": machine() | {"instructions": instructions()}, "settings": settings}
    write_report(about, read_pieces(bench), options.output)


@dataclass(frozen=True)
class Bench:
    """A work folder. Missing results are made on demand until `deadline`, a value of time.monotonic()."""

    data: Path
    profile: Profile
    work: Path
    deadline: float

    def run(self, chosen: list[str], collections: list[str]) -> None:
        """Train the chosen models, then measure them on the collections."""
        for model in chosen:
            if self.time_left() and not self.is_answered(model, collections):
                self.checkpoint(model)
        for part in engines(self.profile):
            for collection in collections:
                for model in chosen:
                    self.measure(model, collection, part)

    def is_answered(self, model: str, collections: list[str]) -> bool:
        """Return whether all answers exist, so the encoder is not needed; False without collections, which requests training."""
        files = [self.answer(model, name, engine) for name in collections for part in engines(self.profile) for engine in part]
        return bool(files) and all(file.exists() for file in files)

    def answer(self, model: str, collection: str, engine: str) -> Path:
        """Return the file of one measurement.

        Args:
            model: Name of the model.
            collection: Name of the collection.
            engine: Name of the engine.
        """
        return self.work / "answers" / _slug(model) / collection / f"{_slug(engine)}.json"

    def time_left(self) -> bool:
        return time.monotonic() < self.deadline

    def checkpoint(self, model: str) -> Path:
        """Return the folder of a trained encoder, or of the common start for the untrained one."""
        changes = models(self.profile)[model]
        folder = self.work / "models" / _slug(model)
        if not ((folder / "training.json").exists() and (folder / "checkpoint").exists()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _say(f"training {model}")
            cost = self.start(folder) if changes is None else self.train(changes, folder)
            keep(folder / "training.json", cost)
        return folder / "checkpoint"

    def start(self, folder: Path) -> dict[str, Any]:
        """Save the default checkpoint with a projection fitted to training passages."""
        texts = np.random.default_rng(SEED).choice(training_data(self.data).documents, PROJECTION_SAMPLE, replace=False).tolist()
        encoder = Encoder.load(EncoderConfig(device=self.profile.device, precision="float32", **self.lengths(training=True)))
        fit_projection(encoder, texts, f"pca:{DIM}").save(folder / "checkpoint")
        return {}

    def train(self, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Train and save an encoder; return its cost, and the mean loss of the first and of the last tenth of the steps."""
        profile = self.profile
        common = {"max_steps": profile.steps, "batch_size": profile.batch_size, "learning_rate": LEARNING_RATE, "temperature": 1.0}
        config = TrainingConfig.model_validate(common | {"seed": SEED} | changes)
        start = EncoderConfig(checkpoint=str(self.checkpoint(UNTRAINED)), **self.lengths(training=True))
        encoder = load_encoder(start, SEED, profile.device)
        training = Training(encoder, training_data(self.data), config, product_dtype("auto", encoder.device))
        losses, began, cpu_began = [], time.perf_counter(), time.process_time()
        for batches in training.remaining():
            losses.append(training.run_step(*batches).loss)
        examples = profile.steps * profile.batch_size
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        training.encoder.save(folder / "checkpoint")
        tenth = -(-profile.steps // 10)
        return {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "examples_per_second": round(examples / seconds, 2),
            "examples_per_cpu_second": round(examples / cpu_seconds, 2),
            "first_loss": round(float(np.mean(losses[:tenth])), 4),
            "last_loss": round(float(np.mean(losses[-tenth:])), 4),
        }

    def measure(self, model: str, name: str, params: dict[str, Config]) -> None:
        """Search a collection with a model and several engines; the index is removed once all engines have answered.

        Args:
            model: Name of the model.
            name: Name of the collection.
            params: Engine parameters, by name of the engine.
        """
        folder = self.work / "answers" / _slug(model) / name
        missing = [engine for engine in params if not self.answer(model, name, engine).exists()]
        if not missing or not self.time_left():
            return
        _say(f"{model} on {name}")
        folder.mkdir(parents=True, exist_ok=True)
        queries, qrels, documents = self.collection(name)
        encoder = _load_trained(str(self.checkpoint(model)), self.profile.device, tuple(self.lengths(training=False).items()))
        index = folder / "index"
        if not (index / "LATEST").exists():
            embeddings = encoder.encode_documents(list(documents.values()), list(documents))
            build_index(embeddings, str(index), IndexConfig(num_shards=1), contract=encoder.contract, relation=encoder.relation)
        searcher, embedded = Searcher.open(str(index)), encoder.encode_queries(list(queries.values()), list(queries))
        for engine in missing:
            if self.time_left():
                keep(self.answer(model, name, engine), _ask(searcher, embedded, params[engine], qrels, name in OWN_DOCUMENT_IS_NO_HIT))
        if self.is_answered(model, [name]):
            shutil.rmtree(index)

    def collection(self, name: str) -> tuple[dict[str, str], dict[str, dict[str, int]], dict[str, str]]:
        """Return queries, judgements and documents: all judged documents of some test queries, and a sample of the others."""
        path = self.work / "collections" / f"{name}.json"
        if not path.exists():
            rng, judged = np.random.default_rng(SEED), load_dataset(str(self.data / name))
            query_ids = sorted(rng.permutation(sorted(judged.queries))[: self.profile.queries].tolist())
            qrels = {query: judged.qrels[query] for query in query_ids}
            texts = {each.doc_id: document_text(each.title, each.text) for each in read_documents(str(self.data / name))}
            kept = {document for grades in qrels.values() for document in grades}
            unjudged = [document for document in texts if document not in kept]
            kept.update(rng.permutation(unjudged)[: max(0, self.profile.documents - len(kept))].tolist())
            documents = {document: text for document, text in texts.items() if document in kept}
            keep(path, [{query: judged.queries[query] for query in query_ids}, qrels, documents])
        return tuple(json.loads(path.read_text()))

    def lengths(self, training: bool) -> dict[str, int]:
        """Return query and document length, in tokens, for training or for search."""
        document_length = self.profile.passage_length if training else self.profile.document_length
        return {"query_length": self.profile.query_length, "document_length": document_length}


def _ask(
    searcher: Searcher, queries: TokenEmbeddings, params: Config, qrels: dict[str, dict[str, int]], without_own_document: bool
) -> dict[str, Any]:
    """Return the time of one engine's search, and its measures for each query."""
    began, cpu_began = time.perf_counter(), time.process_time()
    answers = searcher.search(queries, DEPTH + 1, params)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    run = {
        query: list(zip(searcher.doc_ids(found.documents), found.scores.tolist(), strict=True))
        for query, found in zip(queries.doc_ids, answers, strict=True)
    }
    if without_own_document:
        run = metrics.without_identical_ids(run)
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "documents": searcher.manifest.num_docs,
        "tokens": searcher.manifest.num_tokens,
        "values": metrics.evaluate({query: ranking[:DEPTH] for query, ranking in run.items()}, qrels, MEASURES),
    }


@cache
def training_data(folder: Path) -> TrainingData:
    """Return the training pairs of all TRAINING_SETS together."""
    queries, documents, lists = [], [], []
    for name in TRAINING_SETS:
        judged = load_dataset(str(folder / name), "train")
        texts = ((each.doc_id, document_text(each.title, each.text)) for each in read_documents(judged.corpus))
        part = from_judgements(judged.queries, judged.qrels, texts)
        before = len(documents)
        lists += [tuple((before + number,) for (number,) in each) for each in part.lists_by_query()]
        queries += part.queries
        documents += part.documents
    return TrainingData.of(queries, documents, lists)


@cache
def _load_trained(checkpoint: str, device: str, lengths: tuple[tuple[str, int], ...]) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=checkpoint, device=device, **dict(lengths)))


def read_pieces(bench: Bench) -> dict[str, Any]:
    """Return all existing results: trainings by model, and answers by model, collection and engine."""
    names, parts = list(models(bench.profile)), engines(bench.profile)
    trainings = {model: bench.work / "models" / _slug(model) / "training.json" for model in names}
    answers = {
        model: {
            collection: {
                engine: json.loads(path.read_text())
                for engine in (*parts[0], *parts[1])
                if (path := bench.answer(model, collection, engine)).exists()
            }
            for collection in COLLECTIONS
        }
        for model in names
    }
    return {
        "trainings": {model: json.loads(path.read_text()) for model, path in trainings.items() if path.exists() and model != UNTRAINED},
        "answers": answers,
    }


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def keep(path: Path, content: Any) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_suffix(".attempt")
    attempt.write_text(json.dumps(content) + "\n")
    attempt.rename(path)


def _say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
