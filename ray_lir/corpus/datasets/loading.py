"""`load_dataset`: finds out which layout a folder has, or downloads a collection by name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ray_lir import storage
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.datasets import beir, ir_datasets_ids, lotte, msmarco
from ray_lir.corpus.datasets.dataset import Dataset
from ray_lir.corpus.datasets.downloads import BEIR_NAMES, OTHER_NAMES, cache_folder, download, source
from ray_lir.corpus.datasets.query_texts import stream_queries
from ray_lir.corpus.records import corpus_files, read_documents

MAX_DEPTH = 2
"""Folders between a group of collections and its parts, at most: lotte/<topic>."""


@dataclass(frozen=True)
class Layout:
    """A way to arrange the files of a collection.

    Attributes:
        matches: Returns whether a folder has this layout.
        load: Returns the data sets of a folder and a split.
        query_files: Returns the files with all queries of a folder.
    """

    matches: Callable[[str], bool]
    load: Callable[[str, str], list[Dataset]]
    query_files: Callable[[str], list[str]]


LAYOUTS = {
    name: Layout(each.matches, each.load, each.query_files) for name, each in (("lotte", lotte), ("beir", beir), ("msmarco", msmarco))
}
"""The layouts, in the order in which they are tried."""


def load_dataset(folder_or_name: storage.PathOrUrl, split: str = "test") -> Dataset:
    """Return one data set from a local folder, an fsspec URL, an identifier of ir_datasets, or by name from the network (cached).

    Layouts: BEIR, its Parquet exports to Hugging Face, LoTTE, and MS MARCO passages. A split has three columns (query, document, grade),
    with or without a header, or the four columns of TREC. A grade is an integer.

    Args:
        folder_or_name: Folder, URL, `ir_datasets:ID`, or a name: of BEIR, lotte, or msmarco-passage.
        split: The judgements to read, such as train, dev or test. LoTTE also has test.search and test.forum.

    Raises:
        ConfigError: The folder or the split does not exist, a download fails, or there are several data sets (use `load_datasets`).
        FormatError: A file is missing, a line is malformed, or a judged query has no text.
    """
    found = load_datasets(storage.path_text(folder_or_name), split)
    if len(found) > 1:
        names = ", ".join(dataset.name for dataset in found)
        hint = (
            f"set --split {split}.search or {split}.forum" if {"search", "forum"} == {_kind(each) for each in found} else "give one of them"
        )
        raise ConfigError(f"{folder_or_name} holds {len(found)} data sets ({names}), and one is needed here; {hint}")
    return found[0]


def load_datasets(places: str | Sequence[str], split: str = "test") -> list[Dataset]:
    """Return the data sets of one or more places. A folder of collections, such as CQADupStack or LoTTE, gives each of its parts.

    Args:
        places: Folders, URLs, identifiers or names as in `load_dataset`; a text may list several, separated by commas.
        split: The judgements to read.

    Returns:
        The data sets, in order; their names are distinct.

    Raises:
        ConfigError: A folder or a split does not exist, or a download fails.
        FormatError: A file is missing, a line is malformed, or a judged query has no text.
    """
    if isinstance(places, str):
        several = "," in places and not storage.exists(places)
        places = [each.strip() for each in places.split(",") if each.strip()] if several else [places]
    found = [dataset for place in places for dataset in _load(place, split)]
    if not found:
        raise ConfigError("no dataset is given; give a folder or a name")
    names = [dataset.name for dataset in found]
    if len(set(names)) < len(names):
        found = [replace(each, name=f"{_parent(each.corpus)}.{each.name}") for each in found]
    names = [dataset.name for dataset in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"the data set {next(name for name in names if names.count(name) > 1)} is given twice; give it once")
    return found


def find_dataset(folder_or_name: str) -> str:
    """Return the folder or URL of a collection; a dataset that is given by name is downloaded to the cache if it is not there.

    Raises:
        ConfigError: There is no such folder and no dataset of this name, or the download fails.
    """
    if storage.is_folder(folder_or_name):
        return storage.absolute(folder_or_name)
    name, _, part = folder_or_name.partition("/")
    known = source(name)
    if known is None:
        raise ConfigError(
            f"no dataset {folder_or_name}: it is neither a folder nor one of BEIR's {', '.join(BEIR_NAMES)}, nor "
            f"{' or '.join(OTHER_NAMES)}; check the path"
        )
    folder = download(name, known)
    return storage.join(folder, part) if part else folder


def find_corpus(place: storage.PathOrUrl) -> str:
    """Return the file or folder of a corpus: an existing path or URL as it is, or the documents of a dataset's name or identifier.

    Raises:
        ConfigError: There is no such path, name or identifier, or a download fails.
    """
    text = storage.path_text(place)
    if ir_datasets_ids.is_identifier(text):
        return ir_datasets_ids.export_corpus(text, cache_folder() / "ir_datasets")
    if not storage.exists(text) and source(text.partition("/")[0]):
        return find_dataset(text)
    return text


def dataset_query_files(folder: str) -> list[str]:
    """Return the files with all queries of a collection's folder, judged or not.

    Raises:
        ConfigError: The folder holds several splits of LoTTE.
        FormatError: There is no file of queries.
    """
    return _layout(folder).query_files(folder)


def all_queries(place: str) -> Iterator[tuple[str, str]]:
    """Yield id and text of every query of a collection, judged or not.

    Raises:
        ConfigError: There is no such collection.
        FormatError: There is no file of queries, or a row is malformed.
    """
    if ir_datasets_ids.is_identifier(place):
        yield from ir_datasets_ids.queries(place)
        return
    for url in dataset_query_files(find_dataset(place)):
        yield from ((query_id, text) for _, query_id, text in stream_queries(url))


def document_ids(dataset: Dataset) -> set[str] | None:
    """Return the ids of all documents of a data set; None if there is no corpus."""
    if ir_datasets_ids.is_identifier(dataset.corpus):
        return set(ir_datasets_ids.document_ids(dataset.corpus))
    try:
        corpus_files(dataset.corpus)
    except ConfigError:
        return None
    return {document.doc_id for document in read_documents(dataset.corpus)}


def _load(place: str, split: str) -> list[Dataset]:
    if ir_datasets_ids.is_identifier(place):
        return ir_datasets_ids.load(place)
    folder = find_dataset(place)
    parts = _parts(folder)
    if parts == [folder] and not storage.is_folder(folder):
        raise ConfigError(f"no dataset {place}: there is no folder {folder}; check the part's name")
    return [dataset for part in parts for dataset in _layout(part).load(part, split)]


def _parts(folder: str, depth: int = MAX_DEPTH) -> list[str]:
    """The collections in a folder: the folder itself if it has a layout, else those of its folders that have one."""
    if any(layout.matches(folder) for layout in LAYOUTS.values()):
        return [folder]
    if depth == 0:
        return []
    inside = [storage.join(folder, name) for name in storage.list_names(folder) if not name.startswith(".")]
    parts = [part for each in inside if storage.is_folder(each) for part in _parts(each, depth - 1)]
    return parts or ([folder] if depth == MAX_DEPTH else [])


def _layout(folder: str) -> Layout:
    """The layout of a folder; BEIR's if it has none, for the error message."""
    return next((layout for layout in LAYOUTS.values() if layout.matches(folder)), LAYOUTS["beir"])


def _kind(dataset: Dataset) -> str:
    return dataset.name.rpartition(".")[2]


def _parent(corpus: str) -> str:
    return storage.base_name(corpus.rstrip("/").rpartition("/")[0])
