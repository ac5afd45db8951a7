"""Test collections in the BEIR layout: queries and judgements of one split, from a folder, a URL, or BEIR by name."""

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.extras import require
from ray_lir.base.ids import BadId, check_id
from ray_lir.corpus.text_lines import ascii_columns, read_text_lines

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{}.zip"
BEIR_NAMES = (
    "arguana",
    "climate-fever",
    "cqadupstack",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
QRELS_HEADER = ("query-id", "corpus-id", "score")
HEADER_NAMES = (
    {"query-id", "query", "qid", "topic", "topic-id"},
    {"corpus-id", "doc-id", "docid", "document-id", "document", "docno", "pid", "passage-id"},
    {"score", "relevance", "rel", "grade", "label", "judgement", "judgment"},
)
"""Column names that a header may have, in lower case; `_` counts as `-`."""
LARGEST_GRADE = 1_000_000
"""trec_eval allocates an array as long as the largest grade; with grades of 2**31 or more, every measure is 0."""
GRADE = re.compile(r"[+-]?[0-9]+(\.0*)?")
WITHOUT_THEMSELVES = ("arguana", "quora")
"""Collections in which each query is also a document; BEIR removes it from the query's own ranking."""


@dataclass(frozen=True)
class Dataset:
    """One split of a test collection.

    Attributes:
        name: Last component of the folder.
        split: train, dev or test.
        queries: Query id -> text; judged queries only, in the order of the judgements.
        qrels: Query id -> document id -> grade.
        corpus: The folder that holds corpus.jsonl or corpus.jsonl.gz.
    """

    name: str
    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    corpus: str


def has_queries_as_documents(name: str) -> bool:
    """Return whether this collection's queries are documents of its corpus with the same ids, judged by its name (ArguAna, Quora)."""
    return any(word in WITHOUT_THEMSELVES for word in re.split("[^a-z]+", name.lower()))


def load_dataset(folder_or_name: storage.PathOrUrl, split: str = "test") -> Dataset:
    """Return a collection from a local folder, an fsspec URL, or, by its BEIR name, from the network (cached).

    The folder holds queries.jsonl (or .jsonl.gz) with _id and text, and qrels/<split>.tsv (or .tsv.gz). That file has three columns, with
    or without a header, or the four columns of TREC (query, an unused number, document, grade). A grade is an integer.

    Args:
        folder_or_name: Folder, URL or BEIR name.
        split: The judgements to read: train, dev or test.

    Raises:
        ConfigError: The folder or the split does not exist, or a download fails.
        FormatError: A file is missing, a line is malformed, or a judged query has no text.
    """
    folder = find_dataset(storage.path_text(folder_or_name))
    qrels = _read_qrels(folder, split)
    texts = _read_queries(folder)
    unknown = [query_id for query_id in qrels if query_id not in texts]
    if unknown:
        raise FormatError(
            _queries_file(folder),
            f"the text of query {unknown[0]!r}, which qrels/{split}.tsv judges",
            f"no such query ({len(unknown)} of {len(qrels)} judged queries have no text)",
            "give the queries and the judgements of one collection",
        )
    return Dataset(storage.base_name(folder), split, {query_id: texts[query_id] for query_id in qrels}, qrels, folder)


def find_dataset(folder_or_name: str) -> str:
    """Return the folder or URL of a collection; a BEIR dataset is downloaded to the cache if it is not there.

    Raises:
        ConfigError: There is no such folder and no BEIR dataset of this name, or the download fails.
    """
    if storage.is_folder(folder_or_name):
        return storage.absolute(folder_or_name)
    name, _, part = folder_or_name.partition("/")
    if name not in BEIR_NAMES:
        raise ConfigError(f"no dataset {folder_or_name}: it is neither a folder nor one of BEIR's {', '.join(BEIR_NAMES)}; check the path")
    folder = str(_download(name))
    return storage.join(folder, part) if part else folder


def _download(name: str) -> Path:
    """Return the cached folder of a BEIR dataset; download it if it is not cached."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_lir" / "beir"
    url = BEIR_URL.format(name)
    if (cache / name).is_dir():
        return cache / name
    require("beir", f"downloading the BEIR dataset {name}")
    try:
        from beir.util import download_and_unzip

        with storage.attempt_folder(str(cache)) as attempt:
            storage.publish(Path(download_and_unzip(url, str(attempt))), str(cache / name))
    except (OSError, ImportError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot download the BEIR dataset {name} from {url} ({type(error).__name__}); without network, give its folder"
        ) from error
    return cache / name


def _queries_file(folder: str) -> str:
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        if storage.exists(storage.join(folder, name)):
            return storage.join(folder, name)
    raise FormatError(folder, "queries.jsonl or queries.jsonl.gz", "neither", "give a folder in the BEIR layout")


def _read_queries(folder: str) -> dict[str, str]:
    url = _queries_file(folder)
    queries: dict[str, str] = {}
    for where, line in _lines(url):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise FormatError(where, "a JSON object with _id and text", f"{error}") from None
        try:
            query_id = check_id(row.get("_id") if isinstance(row, dict) else None)
        except BadId as error:
            raise FormatError(where, "a JSON object with an _id", f"{line:.80} (its _id {error})") from None
        if not isinstance(row.get("text"), str):
            raise FormatError(where, "a JSON object whose text is a string", f"{line:.80}")
        if query_id in queries:
            raise FormatError(where, "each _id once", f"{query_id!r} twice")
        queries[query_id] = row["text"]
    return queries


def _read_qrels(folder: str, split: str) -> dict[str, dict[str, int]]:
    names = storage.list_names(storage.join(folder, "qrels"))
    name = next((name for name in (f"{split}.tsv", f"{split}.tsv.gz") if name in names), None)
    if name is None:
        splits = sorted({name.partition(".tsv")[0] for name in names if name.endswith((".tsv", ".tsv.gz"))})
        have = f"it has {', '.join(splits)}" if splits else "it has no qrels/*.tsv; give a folder in the BEIR layout"
        raise ConfigError(f"no split {split!r} in {folder}; {have}")
    url = storage.join(folder, "qrels", name)
    qrels: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_lines(url)):
        fields = [field.strip(" ") for field in (line.split("\t") if "\t" in line else ascii_columns(line))]
        if number == 0 and _is_header(fields):
            continue
        query_id, doc_id, grade = _judgement(fields, line, where)
        before = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
        if before != grade:
            raise FormatError(
                where, f"one grade of document {doc_id!r} for query {query_id!r}", f"{grade} after {before}", "keep one of the lines"
            )
    if not qrels:
        raise FormatError(url, "judgements", "none", "give a split that has judgements")
    return qrels


def _is_header(fields: list[str]) -> bool:
    return len(fields) == 3 and all(field.lower().replace("_", "-") in known for field, known in zip(fields, HEADER_NAMES, strict=True))


def _judgement(fields: list[str], line: str, where: str) -> tuple[str, str, int]:
    """Return the query, the document and the grade of a line with three columns, or with TREC's four."""
    if len(fields) == 4:
        fields = [fields[0], *fields[2:]]
    if len(fields) != 3 or not fields[0] or not fields[1] or not GRADE.fullmatch(fields[2]):
        raise FormatError(where, "query-id <tab> corpus-id <tab> whole number", f"{line:.80}")
    grade = int(fields[2].partition(".")[0])
    if abs(grade) > LARGEST_GRADE:
        raise FormatError(where, f"a grade from -{LARGEST_GRADE} to {LARGEST_GRADE}", f"{fields[2]:.40}", "use smaller grades")
    return fields[0], fields[1], grade


def _lines(url: str) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, text) of every line that is not blank."""
    return ((f"{url} line {number}", text) for number, text in read_text_lines(url))
