"""How many judged documents a collection of documents holds: judgements of another collection make every measure 0."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from ray_lir.base.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """Counts that tell whether judgements and documents belong together.

    Attributes:
        judged_documents: Different documents that are judged.
        judged_documents_missing: Judged documents that are not there.
        queries_without_relevant: Queries without a document judged above 0; each of their measures is 0.
        queries_with_relevant_missing: Queries whose documents judged above 0 are all missing; each of their measures is 0.
    """

    judged_documents: int
    judged_documents_missing: int
    queries_without_relevant: int
    queries_with_relevant_missing: int

    def counts(self) -> dict[str, int]:
        return asdict(self)


def judged_documents(qrels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the different documents of the judgements, in their order."""
    return list(dict.fromkeys(doc_id for grades in qrels.values() for doc_id in grades))


def check_coverage(qrels: Mapping[str, Mapping[str, int]], present: Collection[str], judgements: str, documents: str) -> Coverage:
    """Count judged documents that are missing, and warn about them.

    Args:
        qrels: Query id -> document id -> grade.
        present: Ids of documents that are there; others than judged ones do not matter. A set, dict or similar.
        judgements: Where the judgements come from, for messages.
        documents: Where the documents come from, for messages.

    Raises:
        ConfigError: None of the judged documents is there.
    """
    judged = judged_documents(qrels)
    missing = [doc_id for doc_id in judged if doc_id not in present]
    if len(missing) == len(judged):
        raise ConfigError(
            f"none of the {len(judged)} documents that {judgements} judges is in {documents} ({judged[0]!r} is not, for one), so every "
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
            "judgements: %s lacks %d of the %d documents that %s judges, %r for one; %d of %d queries lack all their relevant documents",
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
