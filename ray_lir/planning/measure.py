"""Measures a collection for planning: tokens, dimensions and bytes of text of a document."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_lir import storage
from ray_lir.base.errors import ConfigError
from ray_lir.base.progress import track
from ray_lir.corpus.records import BadRow, corpus_files, document_text, parse_document, read_rows
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import read_texts, texts_table
from ray_lir.index.documents import FILE
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import MANIFEST, read_manifest

SAMPLED_DOCS = 1000
"""Documents of a corpus to tokenise."""
SAMPLED_PARTS = 8
"""Parts of embeddings to read texts from."""


class Tokenizes(Protocol):
    """The part of an encoder's tokenizer that `measure_corpus` uses."""

    contract: EncoderContract

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each document."""
        ...


@dataclass(frozen=True)
class Measured:
    """The measures of a collection.

    Attributes:
        num_docs: Number of documents.
        tokens_per_doc: Mean number of token vectors of a document.
        dim: Dimensions of a token vector.
        text_bytes: Mean number of bytes of a document's id, title, text and metadata.
        num_sampled: Number of documents behind the means. None: all of them.
    """

    num_docs: int
    tokens_per_doc: float
    dim: int
    text_bytes: float
    num_sampled: int | None = None


def measure_corpus(corpus: str, tokenizer: Tokenizes) -> Measured:
    """Count the rows of a corpus, and tokenise a random sample of its documents.

    Raises:
        ConfigError: There is no corpus, or no row of the sample is a valid document.
        FormatError: A file is truncated or damaged.
    """
    choose = random.Random(0)
    sample: list[bytes] = []
    num_rows = 0
    rows = (row for file in corpus_files(corpus) for _, row in read_rows(file))
    for row in track(rows, "scan the corpus", None, lambda _: 1, unit="rows"):
        num_rows += 1
        place = len(sample) if len(sample) < SAMPLED_DOCS else choose.randrange(num_rows)
        if place == len(sample):
            sample.append(row)
        elif place < SAMPLED_DOCS:
            sample[place] = row
    documents = []
    for row in sample:
        try:
            documents.append(parse_document(row))
        except BadRow:
            continue
    if not documents:
        raise ConfigError(f"{corpus} holds no documents; give rows that are JSON objects with the strings _id and text")
    contract = tokenizer.contract
    token_ids = tokenizer.documents([document_text(document.title, document.text) for document in documents])
    tokens = sum(_num_vectors(int((~np.isin(ids, contract.skip_tokens)).sum()), contract.pooling_factor) for ids in token_ids)
    columns = zip(*((each.doc_id, each.title, each.text, json.dumps(each.metadata, ensure_ascii=False)) for each in documents), strict=True)
    text_bytes = texts_table(*map(list, columns)).nbytes / len(documents)
    num_docs = round(num_rows * len(documents) / len(sample))
    return Measured(num_docs, tokens / len(documents), contract.dim, text_bytes, len(documents))


def measure_embeddings(folder: str) -> Measured:
    """Measure a folder of embeddings by its manifest, and by the texts of some of its parts.

    Raises:
        FormatError: There are no embeddings, or they are damaged.
    """
    folder = storage.absolute(folder)
    manifest = read_manifest(storage.join(folder, MANIFEST), EmbeddingsManifest, "jobs.encode")
    parts = [part for part in manifest.parts if part.num_docs]
    numbers = np.unique(np.linspace(0, len(parts) - 1, SAMPLED_PARTS).astype(int)).tolist()
    tables = [read_texts(storage.join(folder, parts[number].name)) for number in numbers]
    text_bytes = sum(table.nbytes for table in tables) / max(1, sum(len(table) for table in tables))
    return Measured(manifest.num_docs, manifest.num_tokens / max(1, manifest.num_docs), manifest.dim, text_bytes)


def measure_index(folder: str) -> Measured:
    """Measure an index by the manifest of its latest version.

    Raises:
        FormatError: There is no index.
    """
    manifest = read_version(storage.absolute(folder))
    sizes = [file.size for shard in manifest.shards for file in shard.files if file.name.endswith(FILE)]
    stored = sum(shard.num_docs for shard in manifest.shards)
    tokens_per_doc = manifest.num_tokens / max(1, manifest.num_docs)
    return Measured(manifest.num_docs, tokens_per_doc, manifest.dim, sum(sizes) / max(1, stored))


def _num_vectors(num_tokens: int, pooling_factor: int) -> int:
    """Vectors of a document after pooling, which leaves the first token unchanged."""
    return num_tokens if pooling_factor == 1 or num_tokens < 2 else 1 + -(-(num_tokens - 1) // pooling_factor)
