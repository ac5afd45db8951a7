"""Searches the judged queries of a data set on an index."""

import logging

from ray_lir.base import logs
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import TopK
from ray_lir.evaluation.metrics import num_identical_ids, without_identical_ids
from ray_lir.evaluation.runs import Run
from ray_lir.search.bulk import BulkSettings, query_blocks

from .query_search import QuerySearch

logger = logging.getLogger(__name__)

QUERIES_PER_BLOCK = 256
"""Queries that are encoded and searched together."""


def fill(path: str, dataset: Dataset) -> str:
    """Return a path in which {dataset} and {collection} are replaced by the names of a data set."""
    return path.replace("{dataset}", dataset.name).replace("{collection}", dataset.collection)


def search_dataset(
    search: QuerySearch, dataset: Dataset, engine: EngineConfig, k: int, ignore_identical_ids: bool
) -> tuple[Run, int, list[TopK]]:
    """Return the run of all judged queries of a data set. Call it within `search.session()`.

    Args:
        search: The opened index.
        dataset: The data set.
        engine: Engine with its parameters.
        k: Documents per query.
        ignore_identical_ids: Whether the run leaves out hits with the id of their query.

    Returns:
        The run, the number of hits with the id of their query, and the answers in the order of the queries.

    Raises:
        ConfigError: A setting is not possible, or the cluster has no room for a worker.
        FormatError: A file of the index is damaged.
        IncompatibleError: The encoder is not the one that the index was built with.
    """
    with logs.phase("search") as record:
        settings = BulkSettings(k=k + ignore_identical_ids, engine=engine)
        blocks = query_blocks(dataset.queries, QUERIES_PER_BLOCK)
        found = track(search.answers(blocks, settings), "search", len(dataset.queries), lambda block: len(block.answers), "queries")
        results = sorted(found, key=lambda block: block.number)
        record.update(queries=len(dataset.queries), engine=engine.engine)
    answers = [answer for block in results for answer in block.answers]
    run: Run = {
        query_id: list(zip(doc_ids, answer.scores.tolist(), strict=True))
        for query_id, answer, doc_ids in zip(dataset.queries, answers, (ids for block in results for ids in block.doc_ids), strict=True)
    }
    identical = num_identical_ids(run)
    if ignore_identical_ids:
        run = without_identical_ids(run)
        logger.info("search: left out %d hits with the id of their query", identical)
    elif identical:
        logger.warning(
            "search: %d queries found a document with their own id; if queries are documents here, set --ignore_identical_ids yes",
            identical,
        )
    return {query_id: ranking[:k] for query_id, ranking in run.items()}, identical, answers
