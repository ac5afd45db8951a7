"""Where the data of a training lies, and reading it."""

import logging
from collections.abc import Iterator

from pydantic import Field

from ray_lir.config import Config
from ray_lir.errors import ConfigError
from ray_lir.evaluation.datasets import load_dataset
from ray_lir.formats.records import document_text, read_documents
from ray_lir.logs import stage
from ray_lir.models.dev_set import DevSet
from ray_lir.models.training_data import TrainingData, from_judgements
from ray_lir.models.training_files import read_examples

logger = logging.getLogger(__name__)


class TrainingSource(Config):
    """Where the data of a training lies."""

    dataset: str | None = None
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "train"
    """Which judgements: qrels/SPLIT.tsv. Not looked at if there are examples."""
    examples: str | None = None
    """JSONL, JSONL.gz or Parquet file of triples or n-way tuples (docs/training.md); its ids are those of `dataset`."""
    dev_dataset: str | None = None
    """The collection that the encoder is evaluated on while it is trained. None: `dataset`."""
    dev_split: str | None = None
    """Its judgements. None: no evaluation, and the last encoder is kept."""
    dev_documents: int = Field(20000, ge=1)
    """Documents that are ranked: all judged ones, and of the others the first of the corpus, up to this many together."""


def load_training_data(source: TrainingSource) -> TrainingData:
    """Queries with the documents to compare.

    Raises:
        ConfigError, FormatError: if there is none, or a file or a row is wrong.
    """
    with stage("training data") as record:
        if source.examples:
            data = read_examples(source.examples, source.dataset)
        elif source.dataset:
            judged = load_dataset(source.dataset, source.split)
            data = from_judgements(judged.queries, judged.qrels, _texts(judged.corpus))
            if without := len(judged.queries) - len(data.queries):
                logger.warning("training data: %d queries of %s have no document judged above 0 and are left out", without, source.split)
        else:
            raise ConfigError("there is nothing to train on; give --dataset, --examples, or both")
        record.update(queries=len(data.queries), documents=len(data.documents), lists=sum(map(len, data.lists)))
    return data


def load_dev_set(source: TrainingSource) -> DevSet | None:
    """What the encoder is evaluated on, if it is to be.

    Raises:
        ConfigError, FormatError: if there is no such collection or split, or a file is wrong.
    """
    if source.dev_split is None:
        return None
    if not (source.dev_dataset or source.dataset):
        raise ConfigError("--dev_split needs the collection that it is a split of; give --dev_dataset")
    with stage("dev set") as record:
        judged = load_dataset(source.dev_dataset or source.dataset, source.dev_split)
        wanted = {document for grades in judged.qrels.values() for document in grades}
        others = max(0, source.dev_documents - len(wanted))
        documents = {}
        for doc_id, text in _texts(judged.corpus):
            others -= doc_id not in wanted
            if doc_id in wanted or others >= 0:
                documents[doc_id] = text
        record.update(queries=len(judged.queries), documents=len(documents))
    return DevSet(judged.queries, documents, judged.qrels)


def _texts(corpus: str) -> Iterator[tuple[str, str]]:
    return ((document.doc_id, document_text(document.title, document.text)) for document in read_documents(corpus))
