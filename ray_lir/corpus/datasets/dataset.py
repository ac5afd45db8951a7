"""`Dataset`: the queries and judgements of one split of a test collection."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ray_lir.base.errors import FormatError

WITHOUT_THEMSELVES = ("arguana", "quora")
"""Collections in which each query is also a document; BEIR removes it from the query's own ranking."""


@dataclass(frozen=True)
class Dataset:
    """One split of a test collection.

    Attributes:
        name: Name of the collection or part; for LoTTE with the kind of its questions, such as lifestyle.search.
        split: Name of the split, such as train, dev or test.
        queries: Query id -> text; judged queries only, in the order of the judgements.
        qrels: Query id -> document id -> grade.
        corpus: Where the documents are: a folder, or an identifier of ir_datasets (`ir_datasets:ID`).
    """

    name: str
    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    corpus: str

    @property
    def collection(self) -> str:
        """The name without LoTTE's kind of questions; data sets of one collection share an index."""
        return re.sub(r"\.(search|forum)$", "", self.name)


def has_queries_as_documents(name: str) -> bool:
    """Return whether this collection's queries are documents of its corpus with the same ids, judged by its name (ArguAna, Quora)."""
    return any(word in WITHOUT_THEMSELVES for word in re.split("[^a-z]+", name.lower()))


def judged_texts(qrels: Mapping[str, Mapping[str, int]], texts: Mapping[str, str], queries: str, judgements: str) -> dict[str, str]:
    """Return the texts of the judged queries, in the order of the judgements.

    Args:
        qrels: Query id -> document id -> grade.
        texts: Query id -> text.
        queries: Where the texts come from, for messages.
        judgements: Where the judgements come from, for messages.

    Raises:
        FormatError: A judged query has no text.
    """
    unknown = [query_id for query_id in qrels if query_id not in texts]
    if unknown:
        raise FormatError(
            queries,
            f"the text of query {unknown[0]!r}, which {judgements} judges",
            f"no such query ({len(unknown)} of {len(qrels)} judged queries have no text)",
            "give the queries and the judgements of one collection",
        )
    return {query_id: texts[query_id] for query_id in qrels}
