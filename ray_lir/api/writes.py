"""Models of the API for writes: documents to add, ids to delete, and the answer."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from ray_lir.api.search import DocId
from ray_lir.base.config import Config

MAX_WRITES = 1000
MAX_DOCUMENT_BYTES = 1 << 20
"""Largest document, as JSON in UTF-8."""
ID_NAMES = ("_id", "doc_id", "id")
"""Names of the field with a document's id."""

IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=255)]
AnyDocument = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "_id": {"type": "string", "minLength": 1, "maxLength": 1024},
                "text": {"type": "string"},
                "title": {"type": "string"},
                "metadata": {"type": "object"},
            },
            "required": ["_id", "text"],
            "additionalProperties": True,
        }
    ),
]
"""A document, which is checked one by one so that a wrong one does not fail the others."""


class WriteRequest(Config):
    """Documents to add and ids to delete: body of `POST /documents`. Deletions come first, so an id in both ends with the document."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"documents": [{"_id": "zinc", "title": "Zinc", "text": "Zinc fingers bind DNA.", "metadata": {"year": 2019}}]},
                {"delete": ["zinc"]},
            ]
        }
    )

    documents: list[AnyDocument] = Field([], max_length=MAX_WRITES)
    """Documents to add, as in a corpus: `_id`, `text`, and optionally `title`, `metadata` and other fields, which become metadata. A
    document with an existing id replaces the old one."""
    delete: list[DocId] = Field([], max_length=MAX_WRITES)
    """Ids of documents to delete. Unknown ids are no error."""
    partial: bool = True
    """Whether usable documents are accepted if others are refused. False: all documents or none."""

    @model_validator(mode="after")
    def _not_empty(self) -> "WriteRequest":
        if not self.documents and not self.delete:
            raise ValueError("give documents to add, or ids to delete")
        return self


class RefusedDocument(Config):
    """A document that was not accepted."""

    position: int
    """Position in `documents` of the request."""
    doc_id: str | None = None
    """Its id; None if it has none."""
    reason: str


class WriteResponse(Config):
    """What was accepted: answer of the routes that write. Accepted writes are durable and become visible later."""

    accepted: int
    """Documents that will be added."""
    deleted: int
    """Ids that will be deleted; unknown ids are included."""
    refused: list[RefusedDocument] = []
    position: int
    """Position in the write log. Searches see the writes as soon as `log_position` of `GET /index` has reached it."""


class WriteFacts(Config):
    """The state of the writes of a service, in the answer of `GET /index`."""

    log_position: int
    """Position of the write log that the served version has reached."""
    unpublished: int
    """Accepted documents and deletions that no version holds yet."""
    visible_s: float
    """Seconds from the answer of a write until searches see it that the service aims at."""
    following: bool
    """Whether the service serves each new version. False after a roll-back, during a canary, or with an older version loaded: writes are
    published but not visible until the latest version is loaded."""
