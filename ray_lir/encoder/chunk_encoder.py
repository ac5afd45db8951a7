"""One chunk of a corpus: rows to documents to token ids to token embeddings to a published part, each a function of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json
from ray_lir.corpus.dead_letters import DEAD_LETTERS, parse_chunk, write_dead_letters
from ray_lir.corpus.records import Document, document_text
from ray_lir.corpus.scan import Chunk
from ray_lir.embeddings.folder import FOLDER, publish_part
from ray_lir.embeddings.manifest import EmbeddingPart
from ray_lir.embeddings.parquet import Block, texts_table
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.storage.manifest import DeadLetter


@dataclass(frozen=True)
class TokenizedChunk:
    """A chunk without its dead rows, as token ids.

    Attributes:
        number: position among the chunks of the corpus.
        documents: N documents.
        token_ids: N int32 arrays.
        dead: rows that are no document, each with the reason, the file, the line and the row itself.
        truncation: how many tokens the documents had before they were cut.
    """

    number: int
    documents: list[Document]
    token_ids: list[np.ndarray]
    dead: list[dict[str, Any]]
    truncation: TruncationCounts


@dataclass(frozen=True)
class Destination:
    """Where chunks are written: parts and dead letters below `output`, entries and unfinished files in `progress`."""

    output: str
    progress: str


class ChunkEntry(Config):
    """What a finished chunk left: its part (none if all its rows are dead) and its dead letters (none if no row is)."""

    number: int
    part: EmbeddingPart | None
    dead: DeadLetter | None
    truncation: TruncationCounts | None = None
    """None in entries of versions that did not count; such chunks are encoded again."""


def encode_chunk(chunk: Chunk, encoder: Encoder, destination: Destination) -> ChunkEntry:
    """Encodes a chunk and writes it. The same chunk gives the same files, however often and wherever this is done."""
    return write_chunk(tokenize_chunk(chunk, encoder.tokenizer), encoder, destination)


def tokenize_chunk(chunk: Chunk, tokenizer: TextTokenizer) -> TokenizedChunk:
    """Parses the rows, sets the dead ones apart, and tokenises the documents."""
    documents, dead = parse_chunk(chunk)
    tokens = tokenizer.tokenize_documents([document_text(document.title, document.text) for document in documents])
    return TokenizedChunk(chunk.number, documents, tokens.ids, dead, TruncationCounts.of(tokens.truncations))


def write_chunk(chunk: TokenizedChunk, encoder: Encoder, destination: Destination) -> ChunkEntry:
    """Encodes the token ids, publishes the part and the dead letters, and last the entry that says the chunk is done."""
    part, dead = _write_part(chunk, encoder, destination), write_dead_letters(destination.output, chunk.number, chunk.dead)
    entry = ChunkEntry(number=chunk.number, part=part, dead=dead, truncation=chunk.truncation)
    storage.write_bytes(storage.join(destination.progress, _entry_name(chunk.number)), canonical_json(entry.model_dump(mode="json")))
    return entry


def finished_chunks(destination: Destination) -> Iterator[ChunkEntry]:
    """Entries of the chunks that an earlier run finished and whose files are still there."""
    output = destination.output
    there = {f"{folder}/{name}" for folder in (FOLDER, DEAD_LETTERS) for name in storage.list_names(storage.join(output, folder))}
    for name in _entry_names(destination.progress):
        entry = ChunkEntry.model_validate_json(storage.read_bytes(storage.join(destination.progress, name)))
        if entry.truncation and all(file is None or file.name in there for file in (entry.part, entry.dead)):
            yield entry


def has_entries(progress: str) -> bool:
    """Whether a folder of progress holds finished chunks."""
    return bool(_entry_names(progress))


def _entry_names(progress: str) -> list[str]:
    return [name for name in storage.list_names(progress) if name.startswith("chunk-")]


def _entry_name(number: int) -> str:
    return f"chunk-{number:05d}.json"


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
