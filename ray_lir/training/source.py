"""Where the data of a training lies, and reading it."""

import logging
from collections.abc import Iterator

from ray_lir.base.config import TrainingSource
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.base.logs import phase
from ray_lir.corpus.datasets import has_queries_as_documents, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.evaluation.coverage import check_coverage
from ray_lir.training.data import TrainingData, from_judgements
from ray_lir.training.dev_set import DevSet
from ray_lir.training.files import read_examples

logger = logging.getLogger(__name__)


def load_training_data(source: TrainingSource, counts: dict[str, int] | None = None) -> TrainingData:
    """Queries with the documents to compare.

    Args:
        source: Where they are.
        counts: Filled with the numbers of queries and documents, of rows of the corpus that are no documents (num_dead), and of
            queries without a document judged above 0 (queries_left_out).

    Raises:
        ConfigError, FormatError: if there is none, or a file or a row is wrong.
    """
    refused, left_out = RefusedRows(), 0
    with phase("training data") as record:
        if source.examples:
            data = read_examples(source.examples, source.dataset, refused)
        elif source.dataset:
            judged = load_dataset(source.dataset, source.split)
            data = from_judgements(judged.queries, judged.qrels, _texts(judged.corpus, refused))
            if left_out := len(judged.queries) - len(data.queries):
                logger.warning("training data: %d queries of %s have no document judged above 0 and are left out", left_out, source.split)
        else:
            raise ConfigError("there is nothing to train on; give --dataset, --examples, or both")
        record.update(queries=len(data.queries), documents=len(data.documents), lists=sum(map(len, data.lists)))
    if counts is not None:
        counts.update(queries=len(data.queries), documents=len(data.documents), num_dead=refused.num_rows, queries_left_out=left_out)
    return data


def load_dev_set(source: TrainingSource) -> DevSet | None:
    """What the encoder is evaluated on, if it is to be.

    Raises:
        ConfigError, FormatError: if there is no such collection or split, a file is wrong, or the corpus holds no judged document.
    """
    if source.dev_split is None:
        return None
    require("ir_measures", "measuring on a dev split")
    dataset = source.dev_dataset or source.dataset
    if not dataset:
        raise ConfigError("--dev_split needs the collection that it is a split of; give --dev_dataset")
    with phase("dev set") as record:
        judged = load_dataset(dataset, source.dev_split)
        wanted = {document for grades in judged.qrels.values() for document in grades}
        others = max(0, source.dev_documents - len(wanted))
        documents = {}
        for doc_id, text in _texts(judged.corpus):
            others -= doc_id not in wanted
            if doc_id in wanted or others >= 0:
                documents[doc_id] = text
        record.update(queries=len(judged.queries), documents=len(documents))
    check_coverage(judged.qrels, documents, f"{judged.name}/{judged.split}", judged.corpus)
    return DevSet(judged.queries, documents, judged.qrels, has_queries_as_documents(judged.name))


def _texts(corpus: str, refused: RefusedRows | None = None) -> Iterator[tuple[str, str]]:
    return ((document.doc_id, document_text(document.title, document.text)) for document in read_documents(corpus, refused))
