"""Bulk search: search the queries of files in blocks. Hits are written as Parquet or TREC parts, and the manifest is written last.

`bulk_search` searches in this process, and `distributed.search` spreads the same blocks over Ray. `answer_block` answers queries in memory
and writes nothing. Each finished block writes an entry to the progress folder, so a killed job continues after its last finished block.
Part names carry a digest of the content, so a repeated block writes the same file.
"""

import io
import json
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import Config, canonical_json, digest
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import dataset_query_files, find_dataset
from ray_lir.corpus.dead_letters import parse_chunk, write_dead_letters
from ray_lir.corpus.finished_chunks import PROGRESS, Destination, FinishedChunk, check_resumable, read_entries, write_entry
from ray_lir.corpus.records import SUFFIXES, TSV_SUFFIXES, UNNAMED_SUFFIXES, BadRow, Document, corpus_files, has_corpus
from ray_lir.corpus.refused_rows import DEAD_LETTERS, log_refused, read_first_reasons
from ray_lir.corpus.scan import Chunk, Corpus, CorpusFile, read_chunks, scan
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.embeddings.truncation import Truncation, TruncationCounts
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import TopK
from ray_lir.engines.registry import EngineParams
from ray_lir.evaluation.runs import Run, check_ids, format_run
from ray_lir.index.filters import Filters
from ray_lir.storage.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    PROVENANCE,
    Count,
    DeadLetter,
    FileEntry,
    create_manifest,
    read_manifest,
    write_with_digest_name,
)

logger = logging.getLogger(__name__)

QUERIES_PER_BLOCK = 512
"""Queries of a block. A block is searched together, written to one part, and repeated as a whole after a failure."""
HITS_PER_BLOCK = 1 << 22
"""Hits of a block, at most: with a large k a block has fewer queries."""
FOLDER = "hits"
STEM = "block"
UNFINISHED = ".unfinished"
REFUSED = ".refused.jsonl"
FORMATS: dict[str, Literal["parquet", "trec"]] = {".parquet": "parquet", ".trec": "trec", ".run": "trec"}
"""Formats of a single output file by its suffix."""


class BulkSettings(Config):
    """Settings of a bulk search that change the hits."""

    k: Annotated[int, Field(ge=1)] = 10
    """Hits per query, at most."""
    engine: EngineParams
    """Engine with its parameters."""
    filters: Filters | None = None
    """Conditions on the documents; None searches all."""
    fields: tuple[Literal["title", "text", "metadata"], ...] = ()
    """Columns of the document that are written with each hit (Parquet only); metadata is a JSON object."""
    format: Literal["parquet", "trec"] = "parquet"

    @property
    def queries_per_block(self) -> int:
        """Number of queries in a block."""
        return max(1, min(QUERIES_PER_BLOCK, HITS_PER_BLOCK // self.k))


class HitsPart(FileEntry):
    """One part of the hits: all hits of the queries of one block, in the order of the queries."""

    num_queries: Count
    num_hits: Count


class BlockEntry(FinishedChunk):
    """Entry of a finished block: its part, its dead letters, and the number of its truncated queries."""

    part: HitsPart | None
    truncation: TruncationCounts


class HitsManifest(Config):
    """The manifest of a finished bulk search.

    The hits of a query are in one part, best first, with ranks from 1. Parts follow the order of the query files.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["hits"] = "hits"
    settings: BulkSettings
    index: str
    """sha256 of the manifest of the index version that was searched."""
    fingerprint: str
    """Fingerprint of the encoder contract."""
    num_queries: Count
    num_hits: Count
    num_dead: Count
    """Rows of the query files that were refused."""
    num_repeated: Count
    """Refused rows with the id of an earlier row."""
    num_truncated_queries: Count
    """Queries that are longer than query_length and were truncated."""
    parts: tuple[HitsPart, ...]
    dead_letters: tuple[DeadLetter, ...]
    config: dict[str, Any]
    """Identity of the job: digests of the queries, the index, the encoder and the settings."""


class QueryTokenizer(Protocol):
    """The part of an encoder's tokenizer that bulk search uses."""

    def query_truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Return how many tokens each text has, and how many of them are encoded."""
        ...


class QueryEncoder(Protocol):
    """The part of `Encoder` that bulk search uses."""

    @property
    def tokenizer(self) -> QueryTokenizer:
        """The tokenizer."""
        ...

    def encode_queries(self, texts: Sequence[str], query_ids: Sequence[str] | None = None) -> TokenEmbeddings:
        """Return the token embeddings of the texts; errors name the ids."""
        ...


class OpenIndex(Protocol):
    """The part of `Searcher` that bulk search uses; `distributed.search` has a form of it over groups of shards."""

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        *,
        filters: Filters | None = None,
    ) -> list[TopK]:
        """Return the k best documents for each query.

        Args: as in `Searcher.search`.
        """
        ...

    def doc_ids(self, numbers: Iterable[int]) -> list[str]:
        """Return the ids of the documents with these numbers, in the same order."""
        ...

    def documents(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Return the fields of the documents with these numbers, in the same order."""
        ...


@dataclass(frozen=True)
class Worklist:
    """The blocks of a bulk search that are still to be searched.

    Attributes:
        queries: The scanned query files.
        settings: Settings of the search.
        destination: Where the blocks are written.
        done: Numbers of the blocks that earlier runs finished.
    """

    queries: Corpus
    settings: BulkSettings
    destination: Destination
    done: frozenset[int]

    @property
    def files(self) -> list[CorpusFile]:
        """The files that have blocks left."""
        return [file for file in self.queries.files if not self.done.issuperset(file.chunks)]


@dataclass(frozen=True)
class QueryBlock:
    """Queries in memory that are encoded and searched together.

    Attributes:
        number: Position of the block among all blocks.
        ids: Id of each query.
        texts: Text of each query.
    """

    number: int
    ids: list[str]
    texts: list[str]


@dataclass(frozen=True)
class BlockAnswers:
    """The answers to the queries of a block.

    Attributes:
        number: Number of the block.
        answers: The hits of each query, with the engine's parameters.
        doc_ids: Ids of each query's hits.
    """

    number: int
    answers: list[TopK]
    doc_ids: list[list[str]]


Spread = Callable[[Worklist], Iterator[BlockEntry]]
"""A function that searches the blocks of a worklist, and yields their entries in any order."""


@dataclass(frozen=True)
class BulkResult:
    """The result of a bulk search.

    Attributes:
        manifest: Manifest of the finished output.
        num_blocks: Blocks of the query files.
        num_skipped: Blocks that earlier runs had finished.
        num_searched: Queries that this run searched.
        seconds: Time of the search.
    """

    manifest: HitsManifest
    num_blocks: int
    num_skipped: int
    num_searched: int
    seconds: float

    @property
    def queries_per_second(self) -> float:
        """Queries a second of this run. Queries of earlier runs do not count."""
        return round(self.num_searched / self.seconds, 1) if self.seconds else 0.0


def query_files(url: storage.PathOrUrl) -> list[str]:
    """Return the files of a set of queries.

    Args:
        url: A JSONL, TSV (both also .gz) or Parquet file with an id and a text in each row; a folder of such files; a folder in the BEIR
            layout, in which queries.jsonl is read; or the name of a BEIR dataset. The documents of a collection are not queries.

    Raises:
        ConfigError: The file, folder or dataset does not exist, has no file of these kinds, or has several sets of queries.
        FormatError: A collection has no queries.
    """
    url = storage.path_text(url)
    if not storage.exists(url):
        if url.endswith(SUFFIXES):
            raise ConfigError(f"no queries at {storage.absolute(url)}: no such file; check the path")
        url = find_dataset(url)
    names = storage.list_names(url)
    files = [storage.join(storage.absolute(url), name) for name in names if name.startswith("queries") and name.endswith(UNNAMED_SUFFIXES)]
    if files or not has_corpus(names):
        return files or corpus_files(url)
    files = dataset_query_files(url)
    if len(files) > 1 and files[0].endswith(TSV_SUFFIXES):
        raise ConfigError(f"{url} has {len(files)} sets of queries; give one of the files {', '.join(map(storage.base_name, files))}")
    return files


def query_blocks(queries: Mapping[str, str], size: int) -> list[QueryBlock]:
    """Divide queries that are in memory into blocks.

    Args:
        queries: Query id -> text.
        size: Queries of a block, at most.
    """
    ids = list(queries)
    starts = range(0, len(ids), size)
    return [
        QueryBlock(number, ids[start : start + size], [queries[query_id] for query_id in ids[start : start + size]])
        for number, start in enumerate(starts)
    ]


def answer_block(block: QueryBlock, encoder: QueryEncoder, index: OpenIndex, settings: BulkSettings) -> BlockAnswers:
    """Return the answers to the queries of a block.

    Args:
        block: The queries.
        encoder: Encoder of the index.
        index: The opened index.
        settings: Settings of the search; `fields` and `format` are not used.

    Raises:
        ConfigError: A field that the filters name has the wrong type.
    """
    answers = index.search(encoder.encode_queries(block.texts, block.ids), settings.k, settings.engine, filters=settings.filters)
    doc_ids = index.doc_ids([number for answer in answers for number in answer.documents.tolist()])
    ends = np.cumsum([len(answer.documents) for answer in answers])
    return BlockAnswers(
        block.number, answers, [doc_ids[end - len(answer.documents) : end] for answer, end in zip(answers, ends, strict=True)]
    )


def search_block(chunk: Chunk, encoder: QueryEncoder, index: OpenIndex, settings: BulkSettings, destination: Destination) -> BlockEntry:
    """Search the queries of one block, and write their hits. The files do not depend on where the block runs.

    Args:
        chunk: Rows of the query files.
        encoder: Encoder of the index.
        index: The opened index.
        settings: Settings of the search.
        destination: Where the part, the dead letters and the block's entry are written.

    Raises:
        ConfigError: A filter field has the wrong type, or the run format cannot hold an id.
    """
    queries, dead = parse_chunk(chunk, _check_query)
    ids, texts = [query.doc_id for query in queries], [query.text for query in queries]
    part = None
    if queries:
        found = answer_block(QueryBlock(chunk.number, ids, texts), encoder, index, settings)
        data = _trec(ids, found) if settings.format == "trec" else _parquet(ids, found, index, settings.fields)
        file = write_with_digest_name(destination.output, f"{FOLDER}/part-{chunk.number:05d}", f".{settings.format}", data)
        part = HitsPart(**file.model_dump(), num_queries=len(ids), num_hits=sum(map(len, found.doc_ids)))
    letters = write_dead_letters(destination.output, chunk.number, dead)
    truncation = TruncationCounts.of(encoder.tokenizer.query_truncations(texts) if texts else [])
    entry = BlockEntry(number=chunk.number, part=part, dead=letters, truncation=truncation)
    write_entry(destination, STEM, entry)
    return entry


def _check_query(query: Document) -> None:
    if not query.text.strip():
        raise BadRow("the text is empty")


def bulk_search(
    queries: str,
    output: str,
    settings: BulkSettings,
    identity: dict[str, str],
    spread: Spread,
    *,
    provenance: dict[str, Any] | None = None,
    map: Map = ray_lir.base.parallel.threads,
) -> BulkResult:
    """Search all queries of some files, and write the hits.

    Args:
        queries: See `query_files`.
        output: Folder or URL for the parts and the manifest; or a file that ends in .parquet, .trec or .run, made of all parts.
        settings: Settings of the search.
        identity: Digests of all other inputs that change the hits: `index` (manifest digest), `fingerprint` (encoder contract), and more.
            A finished output with the same identity is not searched again.
        spread: Searches the blocks: the result of `in_process`, or the one of `distributed.search`.
        provenance: Facts for provenance.json that do not change the hits.
        map: Runs the scans of the query files, one call a file.

    Raises:
        ConfigError: The files hold no query, or the output holds something else.
        Conflict: Another job finished in the same output in the meantime.
        FormatError: A query file is truncated or damaged.
    """
    output = storage.absolute(output)
    suffix = next((suffix for suffix in FORMATS if output.endswith(suffix)), None)
    folder = output + UNFINISHED if suffix else output
    if suffix:
        settings = settings.model_copy(update={"format": FORMATS[suffix]})
    if settings.format == "trec" and settings.fields:
        raise ConfigError("a TREC run has no columns for fields; leave out --fields, or choose an output that ends in .parquet")
    storage.check_writable(folder.rpartition("/")[0] if suffix else folder)
    records: list[dict[str, Any]] = []
    with phase("scan", records) as record:
        found = scan(query_files(queries), settings.queries_per_block, map)
        record.update(files=len(found.files), rows=found.num_rows, queries=found.num_docs)
    if not found.num_docs:
        why = f"the first row is refused because {found.first_bad}" if found.num_rows else "it is empty"
        raise ConfigError(f"{queries} holds no queries ({why}); a row is a JSON object with the strings _id and text")
    config = {"queries": found.fingerprint, "settings": settings.model_dump(mode="json"), **identity}
    if suffix and storage.exists(output) and not storage.exists(folder):
        raise ConfigError(f"--output {output} exists; remove it, or choose another name")
    result = _run(
        found, Destination(folder, storage.join(folder, PROGRESS, digest(config)[:16])), settings, config, spread, records, provenance
    )
    manifest = result.manifest
    log_refused(queries, manifest.num_dead, read_first_reasons(folder, manifest.dead_letters))
    if manifest.num_truncated_queries:
        logger.warning(
            "search: %d of %d queries are longer than query_length and were cut", manifest.num_truncated_queries, manifest.num_queries
        )
    if suffix:
        _join(folder, output, manifest)
    return result


def in_process(encoder: QueryEncoder, index: OpenIndex) -> Spread:
    """Return a `Spread` that searches the blocks one after another in this process."""

    def spread(worklist: Worklist) -> Iterator[BlockEntry]:
        for file in worklist.files:
            for chunk in read_chunks(file, worklist.queries.docs_per_chunk, worklist.done):
                yield search_block(chunk, encoder, index, worklist.settings, worklist.destination)

    return spread


def sample_queries(queries: str, count: int) -> tuple[list[str], int]:
    """Return the texts of about `count` evenly spaced queries, and the number of all queries.

    Args:
        queries: See `query_files`.
        count: Number of texts.

    Raises:
        ConfigError: The files hold no query.
        FormatError: A file is truncated or damaged.
    """
    found = scan(query_files(queries), QUERIES_PER_BLOCK)
    step = max(1, found.num_rows // count)
    texts: list[str] = []
    for file in found.files:
        for chunk in read_chunks(file, QUERIES_PER_BLOCK):
            parsed, _ = parse_chunk(chunk, _check_query)
            texts += [query.text for query in parsed[::step]]
    if not texts:
        raise ConfigError(f"{queries} holds no queries ({found.first_bad or 'it is empty'}); a row has the strings _id and text")
    return texts, found.num_docs


def read_hits(url: str) -> HitsManifest:
    """Return the manifest of a finished bulk search.

    Raises:
        FormatError: The manifest is missing or damaged.
    """
    return read_manifest(storage.join(url, MANIFEST), HitsManifest, "jobs.search --queries")


def _run(
    queries: Corpus,
    destination: Destination,
    settings: BulkSettings,
    config: dict[str, Any],
    spread: Spread,
    records: list[dict[str, Any]],
    provenance: dict[str, Any] | None,
) -> BulkResult:
    if existing := _existing(destination, config):
        logger.info("%s holds the hits of this search already; nothing to do", destination.output)
        return BulkResult(existing, queries.num_chunks, queries.num_chunks, 0, 0.0)
    entries = {entry.number: entry for entry in read_entries(destination, STEM, BlockEntry, FOLDER)}
    skipped = len(entries)
    worklist = Worklist(queries, settings, destination, frozenset(entries))
    if entries:
        logger.info("search: continues after %d of %d blocks", skipped, queries.num_chunks)
    with phase("search", records) as record:
        before = sum(map(_num_queries, entries.values()))
        for entry in track(spread(worklist), "search", queries.num_docs, _num_queries, unit="queries", initial=before):
            entries[entry.number] = entry
        record.update(queries=sum(map(_num_queries, entries.values())) - before, blocks=len(entries) - skipped)
    manifest = _publish(destination, settings, config, queries, [entries[number] for number in range(queries.num_chunks)])
    versions = {"python": platform.python_version(), **{name: package_version(name) for name in ("numpy", "pyarrow", "torch")}}
    facts = {"stages": records, "versions": versions, **(provenance or {})}
    storage.write_bytes(storage.join(destination.output, PROVENANCE), canonical_json(facts))
    with suppress(*storage.store_errors()):  # another run of the same job may be using the folder
        storage.remove_tree(storage.join(destination.output, PROGRESS))
    return BulkResult(manifest, queries.num_chunks, skipped, record["queries"], record["seconds"])


def _existing(destination: Destination, config: dict[str, Any]) -> HitsManifest | None:
    """Return the manifest if this search is finished in the output, else None. Raise ConfigError if the output holds something else."""
    output = destination.output
    if MANIFEST in storage.list_names(output):
        manifest = read_hits(output)
        if manifest.config == config:
            return manifest
        differs = next((name for name in config if manifest.config.get(name) != config[name]), "the configuration")
        raise ConfigError(f"{output} holds the hits of another search ({differs} differs); choose another output, or remove it first")
    check_resumable(destination, "hits", STEM, (FOLDER, DEAD_LETTERS))
    return None


def _num_queries(entry: BlockEntry) -> int:
    return entry.part.num_queries if entry.part else 0


def _publish(
    destination: Destination, settings: BulkSettings, config: dict[str, Any], queries: Corpus, entries: Sequence[BlockEntry]
) -> HitsManifest:
    parts = tuple(entry.part for entry in entries if entry.part)
    letters = tuple(entry.dead for entry in entries if entry.dead)
    manifest = HitsManifest(
        settings=settings,
        index=config["index"],
        fingerprint=config["fingerprint"],
        num_queries=sum(part.num_queries for part in parts),
        num_hits=sum(part.num_hits for part in parts),
        num_dead=sum(letter.num_rows for letter in letters),
        num_repeated=queries.num_repeated,
        num_truncated_queries=sum(entry.truncation.num_truncated_docs or 0 for entry in entries),
        parts=parts,
        dead_letters=letters,
        config=config,
    )
    try:
        create_manifest(storage.join(destination.output, MANIFEST), manifest)
    except FileExistsError:
        if read_hits(destination.output).config != config:
            raise Conflict(f"another search finished in {destination.output} while this one ran; choose another output") from None
    return manifest


def _trec(ids: Sequence[str], found: BlockAnswers) -> bytes:
    check_ids(ids, "query")
    run: Run = {
        query_id: list(zip(doc_ids, answer.scores.tolist(), strict=True))
        for query_id, doc_ids, answer in zip(ids, found.doc_ids, found.answers, strict=True)
    }
    return format_run(run, "ray_lir")


def _parquet(ids: Sequence[str], found: BlockAnswers, index: OpenIndex, fields: Sequence[str]) -> bytes:
    """A Parquet file with the columns query_id, rank, doc_id, score, those of the sides of a hybrid search, and the fields; hits of a query
    are in order of rank."""
    columns: dict[str, pa.Array] = {
        "query_id": pa.array([query_id for query_id, doc_ids in zip(ids, found.doc_ids, strict=True) for _ in doc_ids], pa.string()),
        "rank": pa.array([rank for doc_ids in found.doc_ids for rank in range(1, len(doc_ids) + 1)], pa.int32()),
        "doc_id": pa.array([doc_id for doc_ids in found.doc_ids for doc_id in doc_ids], pa.string()),
        "score": pa.array([score for answer in found.answers for score in answer.scores.tolist()], pa.float32()),
    }
    if all(answer.sides for answer in found.answers):
        sides = [answer.sides.of_hit(row) for answer in found.answers if answer.sides for row in range(len(answer.documents))]
        columns["bm25"] = pa.array([each.bm25 for each in sides], pa.float32())
        columns["late_interaction"] = pa.array([each.late_interaction for each in sides], pa.float32())
        columns["found_by"] = pa.array([" ".join(each.found_by) for each in sides], pa.string())
    if fields:
        rows = index.documents([number for answer in found.answers for number in answer.documents.tolist()])
        for field in fields:
            values = [json.dumps(row[field], ensure_ascii=False) if field == "metadata" else row[field] for row in rows]
            columns[field] = pa.array(values, pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _join(folder: str, output: str, manifest: HitsManifest) -> None:
    """Concatenate the parts into one file, write the refused rows beside it, and remove the folder of parts."""
    urls = [storage.join(folder, part.name) for part in manifest.parts]
    with storage.wrap_errors("write", output):
        with storage.attempt_folder(output.rpartition("/")[0] or "/") as scratch:
            attempt = scratch / storage.base_name(output)
            if manifest.settings.format == "trec":
                with open(attempt, "wb") as run:
                    for url in urls:
                        run.write(storage.read_bytes(url))
            else:
                with pq.ParquetWriter(attempt, pq.read_schema(io.BytesIO(storage.read_bytes(urls[0]))), compression="zstd") as writer:
                    for url in urls:
                        writer.write_table(pq.read_table(io.BytesIO(storage.read_bytes(url))))
            storage.publish(attempt, output)
        if manifest.dead_letters:
            letters = b"".join(storage.read_bytes(storage.join(folder, letter.name)) for letter in manifest.dead_letters)
            storage.write_bytes(output + REFUSED, letters)
    storage.remove_tree(folder)
