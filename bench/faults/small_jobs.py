"""Small jobs of every kind for benches that interrupt them: inputs, command lines and outputs."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from tests.fixtures.tiny import WORDS, bert
from tests.support import translated_words
from tests.support.corpora import write_rows

NUM_CENTROIDS = 64
STEPS = 120
TIMES = ("provenance.json",)
RATE = re.compile(rb'"examples_per_second":[^,}]*')


@dataclass(frozen=True)
class Job:
    """A job of a bench.

    Attributes:
        verb: Verb of `python -m jobs.<verb>`.
        words: Function from the output or changed folder to the flags.
        start_from: Folder that the job changes, copied first. None: the job makes a new folder.
        num_done: Function from output and log to the number of finished units.
    """

    verb: str
    words: Callable[[Path], list]
    start_from: Path | None
    num_done: Callable[[Path, str], int]


def make_inputs(folder: Path, num_docs: int, queries: int) -> None:
    """Make a tiny random encoder, a collection of random texts, its embeddings and index, and words to train on.

    Args:
        folder: Folder for all of it; nothing happens if it is complete.
        num_docs: Documents of the collection.
        queries: Judged queries of the collection.
    """
    if (folder / "made").exists():
        return
    bert(folder / "checkpoint")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(10, 40))) for _ in range(num_docs + num_docs // 4)]
    write_rows(folder / "collection" / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts[:num_docs])])
    write_rows(folder / "new.jsonl", [{"_id": f"new-{n}", "text": text} for n, text in enumerate(texts[num_docs:])])
    (folder / "gone.txt").write_text("".join(f"d{n}\n" for n in range(0, num_docs, 9)))
    sources = rng.integers(0, num_docs, queries)
    query_rows = [{"_id": f"q{n}", "text": " ".join(texts[doc].split()[:6])} for n, doc in enumerate(sources)]
    write_rows(folder / "collection" / "queries.jsonl", query_rows)
    (folder / "collection" / "qrels").mkdir()
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{doc}\t1" for n, doc in enumerate(sources))]
    (folder / "collection" / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    encoder, clustering = EncoderConfig(checkpoint=str(folder / "checkpoint")), ClusteringConfig(num_centroids=NUM_CENTROIDS)
    encode_corpus(str(folder / "collection"), str(folder / "embeddings"), encoder, docs_per_part=16)
    build_index(str(folder / "embeddings"), str(folder / "index"), IndexConfig(num_shards=4, clustering=clustering))
    translated_words.write_collection(folder / "words")
    translated_words.write_checkpoint(folder / "tiny")
    (folder / "made").touch()


def jobs(made: Path) -> dict[str, Job]:
    """Return the jobs by verb, in an order in which each comes before readers of its output."""
    encoder = ["--encoder.checkpoint", made / "checkpoint"]
    build = ["--embeddings", made / "embeddings", "--num_shards", 8, "--clustering.num_centroids", NUM_CENTROIDS]
    add = ["--add", made / "new.jsonl", "--delete", made / "gone.txt", "--docs_per_part", 4]
    mine_flags = ["--index", made / "index", "--dataset", made / "collection", "--num_negatives", 8, "--engine", "exact", "--depth", 64]
    train = ["--dataset", made / "words", "--encoder.checkpoint", made / "tiny", "--max_steps", STEPS, "--batch_size", 16]
    train += ["--learning_rate", 3e-3, "--checkpoint_every", 10, "--log_every", 1, "--cpus_per_worker", 1]

    def to(words: list, output: Path) -> list:
        return [*words, "--output", output]

    def of(words: list, index: Path) -> list:
        return ["--index", index, *words]

    return {
        "encode": Job("encode", partial(to, ["--corpus", made / "collection", "--docs_per_part", 8, *encoder]), None, _files),
        "build_index": Job("build_index", partial(to, build), None, _files),
        "mine": Job("mine", lambda folder: to(mine_flags, folder / "tuples.jsonl"), None, _files),
        "update": Job("update", partial(of, add), made / "index", _files),
        "compact": Job("compact", partial(of, ["--num_shards", 24]), made / "index", _files),
        "train": Job("train", partial(to, train), None, lambda output, log: _last_step(log)),
    }


def tree_digest(folder: Path) -> str:
    """Return the sha256 of names and bytes of all files, without times and speeds."""
    sha256 = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in TIMES):
        content = RATE.sub(b"", path.read_bytes()) if path.name == "metrics.jsonl" else path.read_bytes()
        sha256.update(json.dumps([str(path.relative_to(folder)), hashlib.sha256(content).hexdigest()]).encode())
    return sha256.hexdigest()


def finished_files(output: Path) -> dict[Path, int]:
    """Return files under their final names, with their modification times."""
    found = {}
    for folder, below, names in os.walk(output):  # skips folders that are removed meanwhile
        below[:] = [name for name in below if not name.startswith(".")]
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            with suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
    return found


def steps_repeated(log: str) -> int:
    """Return the number of training steps that ran twice, from the lines of progress."""
    last, repeated = 0, 0
    for step in _steps(log):
        repeated += max(0, last - step + 1)
        last = step
    return repeated


def _files(output: Path, log: str) -> int:
    return len(finished_files(output))


def _last_step(log: str) -> int:
    return max(_steps(log), default=0)


def _steps(log: str) -> list[int]:
    return [int(step) for step in re.findall(r"train: step (\d+)/", log)]
