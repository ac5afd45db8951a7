"""Grouping passages by document: each document is found by its best passage (docs/algorithms.md#16-passages).

A search for k documents retrieves passages, best first. If they belong to fewer than k documents, it retrieves more passages. The first k
documents of the ranked passages are those of an exhaustive search, as far as the engine's own ranking of passages is.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ray_lir.engines.plan import Sides, TopK

FIRST_DEPTH = 2
"""Passages that are first retrieved for each document to return."""
GROWTH = 4
"""Factor for the number of passages if they belong to too few documents."""
MAX_DEPTH = 100_000
"""Passages of a query that are retrieved at most."""


def first_depth(k: int) -> int:
    """Return how many passages a search for k documents first retrieves."""
    return min(FIRST_DEPTH * k, MAX_DEPTH)


def best_of_documents(answer: TopK, owners: Sequence[Hashable], k: int) -> TopK:
    """Return the best passages of the first k documents.

    Args:
        answer: Passages, best first.
        owners: The document of each passage.
        k: Number of documents, at most.
    """
    firsts: dict[Hashable, int] = {}
    for place, owner in enumerate(owners):
        firsts.setdefault(owner, place)
    places = np.array(list(firsts.values())[:k], np.int64)
    sides = answer.sides
    kept = sides and Sides(sides.lexical[places], sides.vectors[places], sides.by_terms[places], sides.by_vectors[places])
    return TopK(answer.scores[places], answer.documents[places], answer.params, kept)


def next_depth(answers: Sequence[TopK], grouped: Sequence[TopK], k: int, depth: int) -> int | None:
    """Return how many passages to retrieve next; None if every query has k documents, or all the documents that there are.

    Args:
        answers: The passages of each query.
        grouped: The same, grouped by document.
        k: Number of documents to return.
        depth: Number of passages that were retrieved.
    """
    lacking = any(len(top.documents) < k and len(answer.documents) == depth for answer, top in zip(answers, grouped, strict=True))
    return min(GROWTH * depth, MAX_DEPTH) if lacking and depth < MAX_DEPTH else None


def by_document(search: Callable[[int], list[TopK]], owners: Callable[[TopK], Sequence[Hashable]], k: int) -> list[TopK]:
    """Return the best passages of the first k documents for each query.

    Args:
        search: Returns the best passages of each query, as many as its argument says, at most.
        owners: Returns the document of each passage of an answer.
        k: Number of documents, at most.
    """
    depth: int | None = first_depth(k)
    while True:
        assert depth is not None
        answers = search(depth)
        grouped = [best_of_documents(answer, owners(answer), k) for answer in answers]
        depth = next_depth(answers, grouped, k, depth)
        if depth is None:
            return grouped
