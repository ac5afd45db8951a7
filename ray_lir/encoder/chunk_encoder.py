"""Encode one chunk of a corpus: rows become documents, token ids, token embeddings and a published part."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.base.short_repr import ShortRepr
from ray_lir.corpus.dead_letters import parse_chunk, write_dead_letters
from ray_lir.corpus.finished_chunks import Destination, FinishedChunk, read_entries, write_entry
from ray_lir.corpus.records import Document, document_text
from ray_lir.corpus.scan import Chunk
from ray_lir.embeddings.folder import FOLDER, publish_part
from ray_lir.embeddings.manifest import EmbeddingPart
from ray_lir.embeddings.parquet import Block, texts_table
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenization import TextTokenizer

STEM = "chunk"
"""Beginning of the names of entries."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenizedChunk(ShortRepr):
    """A chunk as token ids, without its refused rows.

    Attributes:
        number: Position among the chunks of the corpus.
        documents: N documents.
        token_ids: N int32 arrays.
        dead: Refused rows, each with reason, file, line and the row itself.
        truncation: Counts of truncated documents and tokens.
    """

    number: int
    documents: list[Document]
    token_ids: list[np.ndarray]
    dead: list[dict[str, Any]]
    truncation: TruncationCounts


class ChunkEntry(FinishedChunk):
    """Record of a finished chunk of embeddings."""

    part: EmbeddingPart | None
    truncation: TruncationCounts | None = None
    """None in entries of versions that did not count truncation; such chunks are encoded again."""


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
    documents, dead = parse_chunk(chunk)
    tokens = tokenizer.tokenize_documents([document_text(document.title, document.text) for document in documents])
    return TokenizedChunk(chunk.number, documents, tokens.ids, dead, TruncationCounts.of(tokens.truncations))


def write_chunk(chunk: TokenizedChunk, encoder: Encoder, destination: Destination) -> ChunkEntry:
    """Encode the token ids and publish the part, then the dead letters, then the entry that marks the chunk as finished.

    Args:
        chunk: Token ids of the documents.
        encoder: The encoder.
        destination: Where to write.
    """
    part, dead = _write_part(chunk, encoder, destination), write_dead_letters(destination.output, chunk.number, chunk.dead)
    entry = ChunkEntry(number=chunk.number, part=part, dead=dead, truncation=chunk.truncation)
    write_entry(destination, STEM, entry)
    return entry


def finished_chunks(destination: Destination) -> Iterator[ChunkEntry]:
    """Yield the entries of chunks that an earlier run finished, if their files still exist."""
    return (entry for entry in read_entries(destination, STEM, ChunkEntry, FOLDER) if entry.truncation)


def _write_part(chunk: TokenizedChunk, encoder: Encoder, destination: Destination) -> EmbeddingPart | None:
    if not chunk.documents:
        return None
    ids = [document.doc_id for document in chunk.documents]
    texts = texts_table(
        ids,
        [document.title for document in chunk.documents],
        [document.text for document in chunk.documents],
        [json.dumps(document.metadata, ensure_ascii=False) for document in chunk.documents],
    )
    block = Block(encoder.encode_document_tokens(chunk.token_ids, ids), texts)
    return publish_part(destination.output, chunk.number, block, encoder.contract.fingerprint, scratch=destination.progress)
