"""Check that judgements and documents belong to the same collection; otherwise every measure would be 0."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from ray_lir.base.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """Counts of judged documents that a collection lacks, and of queries that therefore have the value 0 in every measure.

    Attributes:
        judged_documents: Number of distinct judged documents.
        judged_documents_missing: Number of judged documents that the collection lacks.
        queries_without_relevant: Number of queries without any document judged above 0.
        queries_with_relevant_missing: Number of queries that lack every document judged above 0.
    """

    judged_documents: int
    judged_documents_missing: int
    queries_without_relevant: int
    queries_with_relevant_missing: int

    def counts(self) -> dict[str, int]:
        """Return the counts as a dict."""
        return asdict(self)


def judged_documents(qrels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the distinct judged documents, in the order of the judgements."""
    return list(dict.fromkeys(doc_id for grades in qrels.values() for doc_id in grades))


def check_coverage(qrels: Mapping[str, Mapping[str, int]], present: Collection[str], judgements: str, documents: str) -> Coverage:
    """Count judged documents that are missing, and log a warning if there are any.

    Args:
        qrels: Query id -> document id -> grade.
        present: Ids of the documents of the collection (a set, dict or similar); ids of unjudged documents may be left out.
        judgements: Where the judgements come from, for messages.
        documents: Where the documents come from, for messages.

    Raises:
        ConfigError: Every judged document is missing.
    """
    judged = judged_documents(qrels)
    missing = [doc_id for doc_id in judged if doc_id not in present]
    if len(missing) == len(judged):
        raise ConfigError(
            f"none of the {len(judged)} documents that {judgements} judges is in {documents} (for example {judged[0]!r}), so every "
            "measure would be 0; give the judgements and the documents of one collection"
        )
    relevant = [[doc_id for doc_id, grade in grades.items() if grade > 0] for grades in qrels.values()]
    coverage = Coverage(
        len(judged),
        len(missing),
        sum(not found for found in relevant),
        sum(bool(found) and not any(doc_id in present for doc_id in found) for found in relevant),
    )
    if missing:
        logger.warning(
            "judgements: %s lacks %d of the %d documents that %s judges (for example %r); %d of %d queries have no relevant document left",
            documents,
            len(missing),
            len(judged),
            judgements,
            missing[0],
            coverage.queries_with_relevant_missing,
            len(qrels),
        )
    if coverage.queries_without_relevant:
        logger.warning(
            "judgements: %d of %d queries of %s have no document judged above 0: their measures are 0",
            coverage.queries_without_relevant,
            len(qrels),
            judgements,
        )
    return coverage
