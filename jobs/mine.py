"""Mines hard negatives with an index: n-way tuples to train on, optionally scored by a cross-encoder.

Finished batches of an unfinished output lie beside it, in `<output>.unfinished`, until the output is complete.
"""

import gzip
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, digest, parse_json
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset, find_corpus, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.search.bulk import BulkSettings, query_blocks
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import MANIFEST, create_manifest, manifest_digest, write_with_digest_name
from ray_lir.training.manifest import TuplesManifest, TuplesPart

from .cli import main
from .query_search import QueryEncoderConfig, QuerySearch

if TYPE_CHECKING:
    from ray_lir.encoder.cross_encoder import BatchScores, CrossEncoder, PairBatch

    Score = Callable[[Iterable[PairBatch]], Iterable[BatchScores]]
    """Scores batches, in any order."""

QUERIES_PER_BLOCK = 256
"""Queries that are encoded and searched together."""
TUPLES_PER_BATCH = 64
"""Tuples that are scored together, and repeated together after a kill."""
TUPLES_PER_PART = 1 << 16
UNFINISHED = ".unfinished"
TUPLES = "tuples"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
Row = dict[str, Any]


class MineConfig(Config):
    """Searches an index for documents that a query's positives compete with; jobs.train --examples reads the result.

    A killed job continues when the same command runs again. The job runs in this process. With a --workers flag, or if the index is on an
    object store, it searches and scores on a Ray cluster.
    """

    index: str
    """Folder or URL of the index."""
    dataset: str
    """Collection of the index: a folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "train"
    """Split of the judgements: qrels/SPLIT.tsv."""
    output: str
    """File for the tuples (.jsonl, .jsonl.gz or .parquet), or a folder (no suffix) for Parquet parts and a manifest. Each query and
    positive gives one tuple: the positive, then negatives."""
    num_negatives: int = Field(31, ge=1)
    """Negatives of each tuple."""
    depth: int = Field(256, ge=1)
    """Negatives are taken from this many best documents of a query, without its judged positives."""
    skip: int = Field(0, ge=0)
    """Best negatives of a query to leave out: they may be positives without a judgement."""
    choose: Literal["random", "best"] = "random"
    """Which of the remaining negatives to take."""
    seed: int = Field(0, ge=0)
    engine: str = "auto"
    """Engine that searches the index."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()
    cross_encoder: str | None = None
    """Folder or Hugging Face name of a cross-encoder with one label, such as cross-encoder/ms-marco-MiniLM-L-6-v2."""
    cross_encoder_length: int = Field(256, ge=8)
    """Tokens of query and document together that the cross-encoder reads."""
    workers: SearchWorkers = SearchWorkers()


@dataclass(frozen=True)
class Finished:
    """Finished batches: JSON files in a folder with a name that is a digest of everything their content depends on."""

    folder: str

    def read(self, name: str, count: int) -> dict[int, Any]:
        """Return the JSON values of the finished ones of `count` batches, by number."""
        names = set(storage.list_names(self.folder))
        numbers = [number for number in range(count) if self._file(name, number) in names]
        return {number: parse_json(storage.read_bytes(storage.join(self.folder, self._file(name, number)))) for number in numbers}

    def keep(self, name: str, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Yield each number and JSON value after writing the value."""
        for number, value in batches:
            storage.write_bytes(storage.join(self.folder, self._file(name, number)), json.dumps(value).encode())
            yield number, value

    def complete(
        self, name: str, label: str, unit: str, sizes: Sequence[int], make: Callable[[list[int]], Iterable[tuple[int, Any]]]
    ) -> list[Any]:
        """Return the values of all batches; the unfinished ones are made, kept and reported as progress.

        Args:
            name: Start of the names of the files.
            label: Name of the phase in the progress report.
            unit: Name of the units that a batch holds, in the plural.
            sizes: Number of units of each batch.
            make: Yields number and JSON value of the batches with these numbers, in any order.
        """
        values = self.read(name, len(sizes))
        left = [number for number in range(len(sizes)) if number not in values]
        before = sum(sizes[number] for number in values)
        if left:
            made = self.keep(name, make(left))
            values |= track(made, label, sum(sizes), lambda batch: sizes[batch[0]], unit, initial=before)
        return [values[number] for number in range(len(sizes))]

    @staticmethod
    def _file(name: str, number: int) -> str:
        return f"{name}-{number:08d}.json"


def mine(config: MineConfig) -> dict[str, Any]:
    """Write the tuples; the output appears when all of them are finished.

    Raises:
        ConfigError: A setting or a path is wrong, the index holds no judged document, a query has no positive, or the search finds too
            few documents.
        FormatError: The index or the dataset is damaged.
        IncompatibleError: The encoder differs from the index's.
    """
    config = config.model_copy(update={"output": config.output.rstrip("/")})
    output = _check_output(config)
    search = QuerySearch.open(config.index, config.encoder, config.workers if "workers" in config.model_fields_set else None)
    dataset = load_dataset(config.dataset, config.split)
    positives = _positives(dataset)
    load_teacher = _teacher(config)
    finished = _finished(config, search, dataset)
    refused = RefusedRows()
    with search.session():
        present = search.present(judged_documents(dataset.qrels))
        coverage = check_coverage(dataset.qrels, present, f"{dataset.name}/{dataset.split}", config.index)
        with logs.phase("search") as record:
            negatives = _negatives(config, search, dataset, positives, finished)
            record.update(queries=len(negatives))
        rows = [
            {"query_id": query, "document_ids": [positive, *negatives[query]]} for query, judged in positives.items() for positive in judged
        ]
        if load_teacher:
            with logs.phase("score") as record:
                _add_scores(rows, dataset, _score(config, search, load_teacher), finished, refused)
                record.update(pairs=sum(len(row["scores"]) for row in rows))
    if isinstance(output, OutputFile):
        try:
            output.write(_file(rows, config.output))
        finally:
            if storage.exists(output.url):
                storage.remove_tree(finished.folder)
    else:
        _write_parts(rows, output, load_teacher is not None, storage.base_name(finished.folder))
    storage.remove_tree(config.output + UNFINISHED)
    return {
        "output": storage.absolute(config.output),
        "queries": len(positives),
        "rows": len(rows),
        "num_negatives": config.num_negatives,
        "scored": load_teacher is not None,
        "num_dead": refused.num_rows,
        **coverage.counts(),
    }


def _check_output(config: MineConfig) -> OutputFile | str:
    """The output file, or the URL of the output folder."""
    if config.skip + config.num_negatives > config.depth:
        raise ConfigError(
            f"--skip {config.skip} and --num_negatives {config.num_negatives} are more than --depth {config.depth}; raise the depth"
        )
    is_file = config.output.endswith(SUFFIXES)
    if not is_file and os.path.splitext(config.output)[1]:
        raise ConfigError(
            f"--output {config.output} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or name a folder without a suffix"
        )
    url = storage.absolute(config.output)
    killed_at_its_end = storage.exists(config.output + UNFINISHED)
    if is_file:
        return OutputFile(url, None) if storage.exists(url) and killed_at_its_end else OutputFile.check(url, "--output")
    names = set(storage.list_names(url))
    if names - {TUPLES, MANIFEST} or (MANIFEST in names and not killed_at_its_end) or (storage.exists(url) and not storage.is_folder(url)):
        raise ConfigError(f"--output {url} exists already; give another --output, or remove it")
    storage.check_writable(url)
    return url


def _teacher(config: MineConfig) -> "Callable[[str], CrossEncoder] | None":
    """The function that loads the cross-encoder on a device, after a check that it can be loaded; None without a cross-encoder."""
    if not config.cross_encoder:
        return None
    from ray_lir.encoder.cross_encoder import CrossEncoder  # torch takes seconds to load

    load = partial(CrossEncoder.load, config.cross_encoder, config.cross_encoder_length, precision=config.encoder.precision)
    load("cpu")
    return load


def _score(config: MineConfig, search: QuerySearch, load: "Callable[[str], CrossEncoder]") -> "Score":
    """The function that scores batches: on the cluster of the search, or in this process."""
    if search.workers is None:
        return partial(map, load(config.encoder.device).score)
    from ray_lir.distributed.scoring import scores

    return partial(scores, load=load, device=config.encoder.device, workers=search.workers)


def _finished(config: MineConfig, search: QuerySearch, dataset: Dataset) -> Finished:
    settings = config.model_dump(mode="json", exclude={"output", "dataset", "index", "workers"})
    identity = [settings, manifest_digest(search.manifest), dataset.queries, dataset.qrels]
    return Finished(storage.join(config.output + UNFINISHED, digest(identity)[:16]))


def _positives(dataset: Dataset) -> dict[str, list[str]]:
    positives = {query: [doc_id for doc_id, grade in grades.items() if grade > 0] for query, grades in dataset.qrels.items()}
    without = [query for query, found in positives.items() if not found]
    if without:
        raise ConfigError(
            f"{len(without)} of {len(positives)} queries of split {dataset.split} have no document judged above 0, "
            f"for example {without[0]!r}; take their judgements out of qrels/{dataset.split}.tsv"
        )
    return positives


def _negatives(
    config: MineConfig, search: QuerySearch, dataset: Dataset, positives: Mapping[str, list[str]], finished: Finished
) -> dict[str, list[str]]:
    """The ids of each query's negatives, best first."""
    depth = config.depth + max(map(len, positives.values())) + 1  # the query's own document is left out too
    settings = BulkSettings(k=depth, engine=search.engine(config.engine, depth))
    blocks = query_blocks(dataset.queries, QUERIES_PER_BLOCK)

    def choose(numbers: list[int]) -> Iterator[tuple[int, list[list[str]]]]:
        for found in search.answers([blocks[number] for number in numbers], settings):
            chosen = []
            for position, (query, doc_ids) in enumerate(zip(blocks[found.number].ids, found.doc_ids, strict=True)):
                known = {*positives[query], query}  # ArguAna's queries are documents of their own corpus
                candidates = [doc_id for doc_id in doc_ids if doc_id not in known]
                chosen.append(
                    _chosen(config, query, candidates[: config.depth][config.skip :], found.number * QUERIES_PER_BLOCK + position)
                )
            yield found.number, chosen

    chosen = finished.complete("chosen", "search", "queries", [len(block.ids) for block in blocks], choose)
    ids = [query for block in blocks for query in block.ids]
    return dict(zip(ids, itertools.chain.from_iterable(chosen), strict=True))


def _chosen(config: MineConfig, query: str, candidates: list[str], number: int) -> list[str]:
    if len(candidates) < config.num_negatives:
        raise ConfigError(
            f"the search found {len(candidates)} negatives for query {query!r}, and {config.num_negatives} are needed; "
            "lower --num_negatives, or choose --engine exact"
        )
    if config.choose == "best":
        return candidates[: config.num_negatives]
    places = np.random.default_rng([config.seed, number]).choice(len(candidates), config.num_negatives, replace=False)
    return [candidates[place] for place in np.sort(places)]


def _add_scores(rows: list[Row], dataset: Dataset, score: "Score", finished: Finished, refused: RefusedRows) -> None:
    """Add the teacher's scores to each row."""
    from ray_lir.encoder.cross_encoder import PairBatch
    from ray_lir.training.data import collect

    needed = dict.fromkeys(doc_id for row in rows for doc_id in row["document_ids"])
    corpus = (
        (document.doc_id, document_text(document.title, document.text)) for document in read_documents(find_corpus(dataset.corpus), refused)
    )
    numbers, texts = collect(needed, corpus)
    parts = [rows[first : first + TUPLES_PER_BATCH] for first in range(0, len(rows), TUPLES_PER_BATCH)]

    def pairs(row: Row) -> list[tuple[str, str]]:
        return [(dataset.queries[row["query_id"]], texts[numbers[doc_id]]) for doc_id in row["document_ids"]]

    def score_parts(left: list[int]) -> Iterator[tuple[int, list[list[float]]]]:
        for found in score(PairBatch(number, [pairs(row) for row in parts[number]]) for number in left):
            yield found.number, found.scores

    for part, scores in zip(parts, finished.complete("scores", "score", "tuples", [len(part) for part in parts], score_parts), strict=True):
        for row, values in zip(part, scores, strict=True):
            row["scores"] = values


def _file(rows: list[Row], name: str) -> bytes:
    if name.endswith(".parquet"):
        return _parquet(rows)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines


def _parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _write_parts(rows: list[Row], folder: str, scored: bool, identity: str) -> None:
    """Write Parquet parts, then the manifest."""
    parts = []
    for number, first in enumerate(range(0, len(rows), TUPLES_PER_PART)):
        part = rows[first : first + TUPLES_PER_PART]
        file = write_with_digest_name(folder, f"{TUPLES}/part-{number:05d}", ".parquet", _parquet(part))
        parts.append(TuplesPart(**file.model_dump(), num_tuples=len(part)))
    manifest = TuplesManifest(num_tuples=len(rows), scored=scored, identity=identity, parts=tuple(parts))
    try:
        create_manifest(storage.join(folder, MANIFEST), manifest)
    except FileExistsError:
        raise Conflict(f"another job wrote {folder} while this one ran; run again with another --output") from None


if __name__ == "__main__":
    main(MineConfig, mine)
