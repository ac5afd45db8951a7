"""Encode one chunk of a corpus: rows become documents, token ids, token embeddings and a published part."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.corpus.dead_letters import parse_chunk, write_dead_letters
from ray_lir.corpus.finished_chunks import Destination, FinishedChunk, read_entries, write_entry
from ray_lir.corpus.records import BadRow, Document, document_text, title_length
from ray_lir.corpus.scan import Chunk
from ray_lir.embeddings.folder import FOLDER, publish_part
from ray_lir.embeddings.manifest import EmbeddingPart
from ray_lir.embeddings.parquet import DOCS_PER_BLOCK, Block, texts_table
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.encoder.windows import check_characters

STEM = "chunk"
"""Beginning of the names of entries."""
BLOCK_TOKENS = 1 << 16
"""Tokens of documents in windows that are encoded and written together; 50 MB of vectors in 384 dimensions."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenizedChunk(ShortRepr):
    """A chunk as token ids, without its refused rows.

    Attributes:
        number: Position among the chunks of the corpus.
        documents: N documents.
        token_ids: An int32 array for each document, or for each window of the documents.
        dead: Refused rows, each with reason, file, line and the row itself.
        truncation: Counts of truncated documents and tokens.
        windows: For each document its windows [W, 2] int64, first and end character; None if documents are not divided.
    """

    number: int
    documents: list[Document]
    token_ids: list[np.ndarray]
    dead: list[dict[str, Any]]
    truncation: TruncationCounts
    windows: list[np.ndarray] | None = None


class ChunkEntry(FinishedChunk):
    """Record of a finished chunk of embeddings."""

    part: EmbeddingPart | None
    truncation: TruncationCounts | None = None
    """None in entries of versions that did not count truncation; such chunks are encoded again."""
    num_windows: int = 0


def encode_chunk(chunk: Chunk, encoder: Encoder, destination: Destination) -> ChunkEntry:
    """Encode a chunk and write it. The same chunk always gives the same files.

    Args:
        chunk: Rows of the corpus.
        encoder: The encoder.
        destination: Where to write.
    """
    return write_chunk(tokenize_chunk(chunk, encoder.tokenizer), encoder, destination)


def tokenize_chunk(chunk: Chunk, tokenizer: TextTokenizer) -> TokenizedChunk:
    """Return the chunk as token ids: parse the rows, separate the refused ones, and tokenize the documents."""
    documents, dead = parse_chunk(chunk, _check_characters if tokenizer.contract.windows else None)
    texts = [document_text(document.title, document.text) for document in documents]
    tokens = tokenizer.tokenize_documents(texts, [title_length(document.title, document.text) for document in documents])
    return TokenizedChunk(chunk.number, documents, tokens.ids, dead, TruncationCounts.of(tokens.truncations), tokens.windows)


def _check_characters(document: Document) -> None:
    try:
        check_characters(document_text(document.title, document.text))
    except ConfigError as error:
        raise BadRow(str(error)) from None


def write_chunk(chunk: TokenizedChunk, encoder: Encoder, destination: Destination) -> ChunkEntry:
    """Encode the token ids and publish the part, then the dead letters, then the entry that marks the chunk as finished.

    Args:
        chunk: Token ids of the documents.
        encoder: The encoder.
        destination: Where to write.
    """
    part, dead = _write_part(chunk, encoder, destination), write_dead_letters(destination.output, chunk.number, chunk.dead)
    entry = ChunkEntry(
        number=chunk.number, part=part, dead=dead, truncation=chunk.truncation, num_windows=sum(map(len, chunk.windows or ()))
    )
    write_entry(destination, STEM, entry)
    return entry


def finished_chunks(destination: Destination) -> Iterator[ChunkEntry]:
    """Yield the entries of chunks that an earlier run finished, if their files still exist."""
    return (entry for entry in read_entries(destination, STEM, ChunkEntry, FOLDER) if entry.truncation)


def _write_part(chunk: TokenizedChunk, encoder: Encoder, destination: Destination) -> EmbeddingPart | None:
    if not chunk.documents:
        return None
    blocks = _blocks(chunk, encoder)
    return publish_part(destination.output, chunk.number, blocks, encoder.contract.fingerprint, scratch=destination.progress)


def _blocks(chunk: TokenizedChunk, encoder: Encoder) -> Iterator[Block]:
    """Yield the documents of a chunk with their token embeddings. With windows, a block has about BLOCK_TOKENS vectors at most."""
    if chunk.windows is None:
        yield Block(encoder.encode_document_tokens(chunk.token_ids, _ids(chunk.documents)), _texts(chunk.documents))
        return
    first = 0
    for rows in _groups(chunk.documents, chunk.windows, chunk.token_ids):
        spans = np.concatenate([row.windows for row in rows])
        documents, continues = [row.document for row in rows], rows[0].continues
        embeddings = encoder.encode_document_tokens(chunk.token_ids[first : first + len(spans)])
        windows = np.concatenate([embeddings.lengths[:, None], spans], axis=1).astype(np.int32)
        shown = [replace(document, title="", text="", metadata={}) for document in documents] if continues else documents
        yield Block(embeddings.joined([len(row.windows) for row in rows], _ids(documents)), _texts(shown), windows, continues)
        first += len(spans)


@dataclass(frozen=True, eq=False, repr=False)
class _Row(ShortRepr):
    """A document, or a part of one with many tokens.

    Attributes:
        document: The document.
        windows: Its windows [W, 2], first and end character.
        num_tokens: Tokens of these windows.
        continues: Whether the document begins in an earlier row.
    """

    document: Document
    windows: np.ndarray
    num_tokens: int
    continues: bool


def _groups(documents: Sequence[Document], windows: Sequence[np.ndarray], token_ids: Sequence[np.ndarray]) -> Iterator[list[_Row]]:
    """Yield the rows of each block. A row that continues a document has a block of its own."""
    group: list[_Row] = []
    for row in _rows(documents, windows, token_ids):
        size = sum(each.num_tokens for each in group)
        if group and (row.continues or group[-1].continues or size + row.num_tokens > BLOCK_TOKENS or len(group) == DOCS_PER_BLOCK):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _rows(documents: Sequence[Document], windows: Sequence[np.ndarray], token_ids: Sequence[np.ndarray]) -> Iterator[_Row]:
    first = 0
    for document, own in zip(documents, windows, strict=True):
        ends = np.cumsum([len(ids) for ids in token_ids[first : first + len(own)]])
        first += len(own)
        blocks = (ends - 1) // BLOCK_TOKENS
        for block in np.unique(blocks):
            inside = np.flatnonzero(blocks == block)
            before = int(ends[inside[0] - 1]) if inside[0] else 0
            yield _Row(document, own[inside], int(ends[inside[-1]]) - before, bool(inside[0]))


def _ids(documents: Sequence[Document]) -> list[str]:
    return [document.doc_id for document in documents]


def _texts(documents: Sequence[Document]) -> pa.Table:
    return texts_table(
        _ids(documents),
        [document.title for document in documents],
        [document.text for document in documents],
        [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
    )
