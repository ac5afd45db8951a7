"""`GET /documents`: finds documents by id and reads their fields."""

from collections.abc import Sequence

import numpy as np

from ray_lir.api.search import Document
from ray_lir.base.errors import NotFound

from ..request_context import RequestContext
from . import replies


async def find(context: RequestContext, doc_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """The group and the document number of each id.

    Raises:
        NotFound: The index has no such document.
        ShardUnavailable: A group does not answer in time.
    """
    by_group = await context.call_groups("find", doc_ids)
    found = {doc_id: (group, number) for group, numbers in by_group.items() for doc_id, number in numbers.items()}
    for doc_id in doc_ids:
        if doc_id not in found:
            raise NotFound(f"there is no document {doc_id!r} in the index")
    return found


async def get_document(context: RequestContext, group: str, number: int) -> Document:
    """A document with its title, text and metadata.

    Args:
        context: The request.
        group: Name of the group that holds the document.
        number: Document number.

    Raises:
        ShardUnavailable: The group does not answer in time.
    """
    [fields] = await context.call(group, "documents", np.array([number]), ("title", "text", "metadata"))
    return replies.document(number, fields, context.served.answering)
