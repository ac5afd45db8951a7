"""`GET /documents`: finds documents by id and reads their fields. `GET /index`: which metadata fields documents have."""

import asyncio
from collections.abc import Sequence

from ray_lir.api.search import Document
from ray_lir.base.errors import NotFound
from ray_lir.index.metadata_fields import MetadataField, SampledFields

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
    fields = await context.call(group, "whole_document", number)
    return replies.document(number, fields, context.served.answering)


async def metadata_fields(context: RequestContext) -> tuple[list[MetadataField], bool]:
    """The metadata fields of the groups that answer, and whether all groups did."""
    calls = [context.call(group.name, "fields") for group in context.snapshot.groups]
    results = await asyncio.gather(*calls, return_exceptions=True)
    fields = SampledFields()
    for result in results:
        if isinstance(result, SampledFields):
            fields.merge(result)
    return fields.most_frequent(), not any(isinstance(result, BaseException) for result in results)
