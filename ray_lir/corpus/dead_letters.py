"""Dead letters: rows of a corpus that cannot be used, written to JSONL files with the reason of each."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from ray_lir import storage
from ray_lir.base.config import canonical_json
from ray_lir.corpus.records import BadRow, Document, parse_document, repeat_reason
from ray_lir.corpus.refused_rows import DEAD_LETTERS as DEAD_LETTERS
from ray_lir.corpus.scan import Chunk
from ray_lir.storage.manifest import DeadLetter

DeadRow = dict[str, Any]
"""A refused row: `reason`, `file`, `line`, and the row itself as `row` (text) or `row_base64` (bytes that are not UTF-8)."""


def parse_chunk(chunk: Chunk, check: Callable[[Document], None] | None = None) -> tuple[list[Document], list[DeadRow]]:
    """Parse the rows of a chunk, and set apart the rows that are refused.

    Args:
        chunk: The rows.
        check: Raises BadRow for a document that is refused for another reason; None accepts all.
    """
    documents: list[Document] = []
    dead: list[DeadRow] = []
    for position, (line, row) in enumerate(zip(chunk.lines, chunk.rows, strict=True)):
        try:
            document = parse_document(row)
            if position in chunk.repeated:
                raise BadRow(repeat_reason(document.doc_id, chunk.kept))
            if check:
                check(document)
            documents.append(document)
        except BadRow as error:
            dead.append({"reason": str(error), "file": chunk.file, "line": line, **_readable(row)})
    return documents, dead


def write_dead_letters(output: str, number: int, dead: Sequence[DeadRow]) -> DeadLetter | None:
    """Write the refused rows of a chunk below `output`.

    Args:
        output: Folder or URL that gets the file, in its folder dead_letters.
        number: Number of the chunk, for the file's name.
        dead: The rows.

    Returns:
        The manifest entry of the file; None if no row is refused.
    """
    if not dead:
        return None
    lines = b"".join(canonical_json(row) + b"\n" for row in dead)
    sha256 = hashlib.sha256(lines).hexdigest()
    name = f"{DEAD_LETTERS}/chunk-{number:05d}-{sha256[:12]}.jsonl"
    storage.write_bytes(storage.join(output, name), lines)
    return DeadLetter(name=name, size=len(lines), sha256=sha256, num_rows=len(dead))


def _readable(row: bytes) -> dict[str, str]:
    """The row as text, or as base64 if it is not UTF-8."""
    try:
        return {"row": row.decode()}
    except UnicodeDecodeError:
        return {"row_base64": base64.b64encode(row).decode()}
