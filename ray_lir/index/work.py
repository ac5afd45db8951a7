"""What the steps of a build share: the Build they all know, and the Work folder where each leaves arrays for the next."""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.config import IndexConfig
from ray_lir.formats import storage
from ray_lir.formats.manifest import EmbeddingPart


@dataclass(frozen=True)
class Work:
    """A scratch folder, so that a build that was killed continues. Each file is written in one atomic step.

    It is named after the configuration, so another build never reads it, and removed when the index is published.
    """

    root: str

    def has(self, name: str) -> bool:
        return storage.exists(storage.join(self.root, name))

    def save(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        storage.write_bytes(storage.join(self.root, name), buffer.getvalue())

    def load(self, name: str) -> np.ndarray:
        return np.load(io.BytesIO(storage.read_bytes(storage.join(self.root, name))), allow_pickle=False)

    def save_record(self, name: str, record: Any) -> None:
        storage.write_bytes(storage.join(self.root, name), json.dumps(record).encode())

    def load_record(self, name: str) -> Any:
        return json.loads(storage.read_bytes(storage.join(self.root, name)))


@dataclass(frozen=True)
class Build:
    """What every step of a build knows: where to read, where to write, and how.

    Attributes:
        embeddings: folder or URL of the token embeddings.
        parts: their files, in document order.
        output: folder or URL of the index.
        dim: of the vectors.
        num_centroids: wanted; a sample smaller than this gives fewer.
    """

    embeddings: str
    parts: tuple[EmbeddingPart, ...]
    output: str
    config: IndexConfig
    dim: int
    num_docs: int
    num_tokens: int
    num_shards: int
    num_centroids: int
    work: Work

    def part_url(self, number: int) -> str:
        return storage.join(self.embeddings, self.parts[number].name)
