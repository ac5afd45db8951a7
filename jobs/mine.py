"""Mines hard negatives with an index: n-way tuples to train on, optionally scored by a cross-encoder.

Finished batches of an unfinished output lie beside it, in `<output>.unfinished`, until the output is complete.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, EncoderConfig, digest, parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import manifest_digest

from .cli import main
from .evaluate import QueryEncoderConfig

if TYPE_CHECKING:
    from ray_lir.encoder.cross_encoder import CrossEncoder

QUERIES_AT_ONCE = 256
TUPLES_AT_ONCE = 64
UNFINISHED = ".unfinished"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
Row = dict[str, Any]


class MineConfig(Config):
    """Searches an index for documents that a query's positives compete with; jobs.train --examples reads the result.

    Run again after a kill, it continues.
    """

    index: str
    """Folder of the index."""
    dataset: str
    """Collection of the index: a folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "train"
    """Split of the judgements: qrels/SPLIT.tsv."""
    output: str
    """File for the tuples: .jsonl, .jsonl.gz or .parquet. Each query and positive gives one tuple: the positive, then negatives."""
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


@dataclass(frozen=True)
class Finished:
    """Finished batches: JSON files in a folder with a name that is a digest of everything their content depends on."""

    folder: str

    def batch(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the JSON value of a finished batch; make and keep it if it is not finished."""
        url = storage.join(self.folder, f"{name}.json")
        if storage.exists(url):
            return parse_json(storage.read_bytes(url))
        value = make()
        storage.write_bytes(url, json.dumps(value).encode())
        return value


def mine(config: MineConfig) -> dict[str, Any]:
    """Write the tuples; the output appears when all of them are finished.

    Raises:
        ConfigError: A setting or a path is wrong, the index holds no judged document, a query has no positive, or the search finds too
            few documents.
        FormatError: The index or the dataset is damaged.
        IncompatibleError: The encoder differs from the index's.
    """
    output = _check_output(config)
    searcher = Searcher.open(config.index)
    dataset = load_dataset(config.dataset, config.split)
    positives = _positives(dataset)
    from ray_lir.encoder.cross_encoder import CrossEncoder  # torch takes seconds to load

    present = searcher.find(judged_documents(dataset.qrels))
    coverage = check_coverage(dataset.qrels, present, f"{dataset.name}/{dataset.split}", config.index)
    teacher = config.cross_encoder and CrossEncoder.load(
        config.cross_encoder, config.cross_encoder_length, config.encoder.device, config.encoder.precision
    )
    finished = _finished(config, searcher, dataset)
    with logs.phase("search") as record:
        found = _negatives(config, searcher, dataset, positives, finished)
        negatives = dict(track(found, "search", len(dataset.queries), lambda _: 1, "queries"))
        record.update(queries=len(negatives))
    rows = [{"query_id": query, "document_ids": [positive, *negatives[query]]} for query, found in positives.items() for positive in found]
    refused = RefusedRows()
    if teacher:
        with logs.phase("score") as record:
            _add_scores(rows, dataset, teacher, finished, refused)
            record.update(pairs=sum(len(row["scores"]) for row in rows))
    try:
        output.write(_file(rows, config.output))
    finally:
        if storage.exists(output.url):
            storage.remove_tree(finished.folder)
    storage.remove_tree(config.output + UNFINISHED)
    return {
        "output": storage.absolute(config.output),
        "queries": len(positives),
        "rows": len(rows),
        "num_negatives": config.num_negatives,
        "scored": teacher is not None,
        "num_dead": refused.num_rows,
        **coverage.counts(),
    }


def _check_output(config: MineConfig) -> OutputFile:
    if not config.output.endswith(SUFFIXES):
        raise ConfigError(f"--output {config.output} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if config.skip + config.num_negatives > config.depth:
        raise ConfigError(
            f"--skip {config.skip} and --num_negatives {config.num_negatives} are more than --depth {config.depth}; raise the depth"
        )
    if storage.exists(config.output) and storage.exists(config.output + UNFINISHED):  # a job that was killed at its very end
        return OutputFile(storage.absolute(config.output), None)
    return OutputFile.check(config.output, "--output")


def _finished(config: MineConfig, searcher: Searcher, dataset: Dataset) -> Finished:
    settings = config.model_dump(mode="json", exclude={"output", "dataset", "index"})
    identity = [settings, manifest_digest(searcher.manifest), dataset.queries, dataset.qrels]
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
    config: MineConfig, searcher: Searcher, dataset: Dataset, positives: Mapping[str, list[str]], finished: Finished
) -> Iterator[tuple[str, list[str]]]:
    """Yield each query's id with the ids of its negatives, best first."""
    from ray_lir.encoder.encoder import Encoder

    contract = searcher.manifest.contract
    settings = config.encoder.model_dump()
    encoder = Encoder.for_contract(contract, EncoderConfig(**settings | {"checkpoint": settings["checkpoint"] or contract.checkpoint}))
    depth = config.depth + max(map(len, positives.values())) + 1  # the query's own document is left out too
    queries = list(dataset.queries)

    def search(first: int) -> list[list[str]]:
        part = queries[first : first + QUERIES_AT_ONCE]
        answers = searcher.search(encoder.encode_queries([dataset.queries[query] for query in part], part), depth, config.engine)
        chosen = []
        for number, (query, answer) in enumerate(zip(part, answers, strict=True), first):
            known = {*positives[query], query}  # ArguAna's queries are documents of their own corpus
            candidates = [doc_id for doc_id in searcher.doc_ids(answer.documents) if doc_id not in known]
            chosen.append(_chosen(config, query, candidates[: config.depth][config.skip :], number))
        return chosen

    for first in range(0, len(queries), QUERIES_AT_ONCE):
        found = finished.batch(f"negatives-{first:08d}", partial(search, first))
        yield from zip(queries[first : first + QUERIES_AT_ONCE], found, strict=True)


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


def _add_scores(rows: list[Row], dataset: Dataset, teacher: "CrossEncoder", finished: Finished, refused: RefusedRows) -> None:
    """Add the teacher's scores to each row."""
    from ray_lir.training.data import collect

    needed = dict.fromkeys(doc_id for row in rows for doc_id in row["document_ids"])
    corpus = ((document.doc_id, document_text(document.title, document.text)) for document in read_documents(dataset.corpus, refused))
    numbers, texts = collect(needed, corpus)

    def score(part: list[Row]) -> list[list[float]]:
        pairs = [[(dataset.queries[row["query_id"]], texts[numbers[doc_id]]) for doc_id in row["document_ids"]] for row in part]
        return [teacher.scores(each).tolist() for each in pairs]

    parts = [rows[first : first + TUPLES_AT_ONCE] for first in range(0, len(rows), TUPLES_AT_ONCE)]
    for number, part in enumerate(track(parts, "score", len(rows), len, "tuples")):
        for row, scores in zip(part, finished.batch(f"scores-{number:08d}", partial(score, part)), strict=True):
            row["scores"] = scores


def _file(rows: list[Row], name: str) -> bytes:
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines


if __name__ == "__main__":
    main(MineConfig, mine)
