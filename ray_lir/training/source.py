"""The sources of a training: reading the training data and the development set that a configuration names."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ray_lir import storage
from ray_lir.base.config import TrainingSource
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.base.logs import phase
from ray_lir.corpus.datasets import Dataset, find_corpus, has_queries_as_documents, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.evaluation.coverage import check_coverage
from ray_lir.training.data import TrainingData
from ray_lir.training.data_files import open_data
from ray_lir.training.dev_set import DevSet
from ray_lir.training.examples import write_examples
from ray_lir.training.judgements import write_judgements

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, before their content is read.

    Attributes:
        judged: Queries and judgements of the split; None if the source is a file of examples.
        states: Names, sizes and times (or tags of an object store) of the files. They change whenever a file changes.
    """

    judged: Dataset | None
    states: tuple[str, ...]

    @classmethod
    def of(cls, source: TrainingSource) -> "SourceFiles":
        """Return the files of a source. For a dataset, the queries and judgements are read.

        Raises:
            ConfigError: The source names nothing, or a file or folder that does not exist.
            FormatError: Queries or judgements are malformed.
        """
        if source.examples:
            datasets = [source.dataset] if source.dataset and storage.is_folder(source.dataset) else []
            examples = storage.listing_digest(source.examples) if storage.is_folder(source.examples) else _state(source.examples)
            return cls(None, (examples, *map(storage.listing_digest, datasets)))
        if source.dataset:
            judged = _with_corpus(load_dataset(source.dataset, source.split))
            return cls(judged, (storage.listing_digest(judged.corpus),))
        raise ConfigError("there is nothing to train on; give --dataset, --examples, or both")


def load_training_data(source: TrainingSource, counts: dict[str, int] | None = None) -> TrainingData:
    """Return queries with the documents to compare, in a temporary file that no other process sees.

    Args:
        source: Dataset or examples.
        counts: Filled with the counts that `write_training_data` returns; None if the caller does not need them.

    Raises:
        ConfigError: There is no such data, or an id or a judged document is missing.
        FormatError: A file or a row is malformed.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = write_training_data(source, SourceFiles.of(source), Path(folder))
        if counts is not None:
            counts.update(found)
        return open_data(Path(folder))


def write_training_data(source: TrainingSource, files: SourceFiles, folder: Path) -> dict[str, int]:
    """Read a source and write it as Arrow files.

    Args:
        source: Dataset or examples.
        files: `SourceFiles.of(source)`.
        folder: Existing local folder for the Arrow files.

    Returns:
        Counts: queries, documents, rows of the corpus that were refused (num_dead), and queries without a document judged above 0
        (queries_left_out).

    Raises:
        ConfigError: An id or a judged document is missing, or nothing is judged relevant.
        FormatError: A file or a row is malformed.
        OSError: The disk is full.
    """
    refused, left_out = RefusedRows(), 0
    with phase("training data") as record:
        if source.examples:
            write_examples(source.examples, folder, source.dataset, refused)
        elif files.judged:
            write_judgements(files.judged.queries, files.judged.qrels, _texts(files.judged.corpus, refused), folder)
        data = open_data(folder)
        if files.judged and (left_out := len(files.judged.queries) - len(data.queries)):
            logger.warning("training data: %d queries of %s have no document judged above 0 and are left out", left_out, source.split)
        record.update(queries=len(data.queries), documents=len(data.documents), lists=len(data.lists))
    return {"queries": len(data.queries), "documents": len(data.documents), "num_dead": refused.num_rows, "queries_left_out": left_out}


def load_dev_set(source: TrainingSource) -> DevSet | None:
    """Return the set that evaluates the encoder; None without a development split.

    Raises:
        ConfigError: There is no such collection or split, or the corpus holds no judged document.
        FormatError: A file is malformed.
    """
    if source.dev_split is None:
        return None
    require("ir_measures", "measuring on a dev split")
    dataset = source.dev_dataset or source.dataset
    if dataset is None:
        raise ConfigError("--dev_split needs the collection that it is a split of; give --dev_dataset")
    with phase("dev set") as record:
        judged = _with_corpus(load_dataset(dataset, source.dev_split))
        relevant = {document for grades in judged.qrels.values() for document in grades}
        room = max(0, source.dev_documents - len(relevant))
        documents = {}
        for doc_id, text in _texts(judged.corpus):
            room -= doc_id not in relevant
            if doc_id in relevant or room >= 0:
                documents[doc_id] = text
        record.update(queries=len(judged.queries), documents=len(documents))
    check_coverage(judged.qrels, documents, f"{judged.name}/{judged.split}", judged.corpus)
    return DevSet(judged.queries, documents, judged.qrels, has_queries_as_documents(judged.name))


def _texts(corpus: str, refused: RefusedRows | None = None) -> Iterator[tuple[str, str]]:
    return ((document.doc_id, document_text(document.title, document.text)) for document in read_documents(corpus, refused))


def _with_corpus(dataset: Dataset) -> Dataset:
    """The data set with its corpus as a file or folder."""
    return replace(dataset, corpus=find_corpus(dataset.corpus))


def _state(url: str) -> str:
    """Name, size and time (or tag) of a file."""
    fs, path = storage.filesystem(url)
    with storage.wrap_errors("read", url):
        info = fs.info(path)
    return repr([storage.absolute(url), info["size"], str(info.get("ETag") or info.get("mtime"))])
