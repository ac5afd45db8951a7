"""Training data from the judgements of a collection: each query with every document that is judged relevant."""

import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.training.data import ROWS_AT_ONCE, TrainingData, missing_documents
from ray_lir.training.data_files import DOCUMENTS, LISTS, QUERIES, ListFile, TextFile, as_lists, open_data, write_groups


def from_judgements(
    queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], documents: Iterable[tuple[str, str]]
) -> TrainingData:
    """Return training data from judgements, in a temporary file that no other process sees.

    Args:
        queries: Query id to text, for every query of `qrels`.
        qrels: Query id to document id to grade; a grade above 0 means relevant.
        documents: Pairs of id and text of the whole corpus, read once.

    Raises:
        ConfigError: Nothing is judged relevant, or a relevant document is not in the corpus.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_judgements(queries, qrels, documents, Path(folder))
        return open_data(Path(folder))


def write_judgements(
    queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], documents: Iterable[tuple[str, str]], folder: Path
) -> None:
    """Write training data from judgements as Arrow files (`data_files.py`). The corpus is read as a stream.

    Args:
        queries: Query id to text, for every query of `qrels`.
        qrels: Query id to document id to grade; a grade above 0 means relevant.
        documents: Pairs of id and text of the whole corpus, read once.
        folder: Existing local folder for the Arrow files.

    Raises:
        ConfigError: Nothing is judged relevant, or a relevant document is not in the corpus.
        OSError: The disk is full.
    """
    relevant = {query: [document for document, grade in grades.items() if grade > 0] for query, grades in qrels.items()}
    numbers = {document: -1 for found in relevant.values() for document in found}
    if not numbers:
        raise ConfigError("no judgement of this split has a grade above 0, so there is nothing to train on; choose another split")
    with TextFile(folder / DOCUMENTS) as file:
        for doc_id, text in documents:
            if numbers.get(doc_id) == -1:
                numbers[doc_id] = len(file)
                file.add(text)
    missing = [document for document, number in numbers.items() if number < 0]
    if missing:
        raise missing_documents(len(missing), len(numbers), min(missing))
    used = [query for query, found in relevant.items() if found]
    with TextFile(folder / QUERIES) as file:
        file.extend(queries[query] for query in used)
    with ListFile(folder / LISTS, has_scores=False) as lists:
        positives = (numbers[document] for query in used for document in relevant[query])
        while block := list(islice(positives, ROWS_AT_ONCE)):
            lists.write(as_lists(np.array(block), np.ones(len(block), np.int64)))
    write_groups(folder, np.repeat(np.arange(len(used)), [len(relevant[query]) for query in used]), len(used))
