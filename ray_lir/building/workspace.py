"""What the steps of a build share: the Build they all know, and the Work folder where each leaves arrays for the next."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.config import IndexConfig, parse_json
from ray_lir.base.errors import FormatError
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.manifest import EmbeddingPart
from ray_lir.index.arrays import array_bytes, read_array

WORK = "_work"
"""Folder of an index where its jobs work; each has a folder of its own in it."""
GARBAGE = "garbage.json"
"""File of the work folder: names to remove with versions that are removed already."""


@dataclass(frozen=True)
class Work:
    """A scratch folder, so that a job that was killed continues. Each file is written in one atomic step.

    It is named after the configuration, so another job never reads it, and removed when the index is published.
    """

    root: str

    def has(self, name: str) -> bool:
        return storage.exists(storage.join(self.root, name))

    def save(self, name: str, array: np.ndarray) -> None:
        storage.write_bytes(storage.join(self.root, name), array_bytes(array))

    def load(self, name: str) -> np.ndarray:
        return read_array(storage.join(self.root, name))

    def save_record(self, name: str, record: Any) -> None:
        storage.write_bytes(storage.join(self.root, name), json.dumps(record).encode())

    def load_record(self, name: str) -> Any:
        url = storage.join(self.root, name)
        try:
            return parse_json(storage.read_bytes(url))
        except ValueError as error:
            raise FormatError(url, "JSON", f"{error!r:.120}", "remove the folder it is in, and run the job again") from None


def tidy(index: str, done: Callable[[str], bool]) -> None:
    """Removes the work folders whose names are `done`, and the folder that holds them if it is empty then."""
    root = storage.join(index, WORK)
    for name in filter(done, storage.list_names(root)):
        storage.remove_tree(storage.join(root, name))
    if storage.is_local(root):
        with suppress(OSError):  # not empty: somebody works there
            storage.local_path(root).rmdir()


@dataclass(frozen=True)
class Build:
    """What every step of a build knows: where to read, where to write, and how.

    Attributes:
        embeddings: folder or URL of the token embeddings.
        contract: of their encoder.
        parts: their files, in document order.
        output: folder or URL of the index.
        dim: of the vectors.
        num_centroids: wanted; a sample smaller than this gives fewer.
    """

    embeddings: str
    contract: EncoderContract
    parts: tuple[EmbeddingPart, ...]
    output: str
    config: IndexConfig
    dim: int
    num_docs: int
    num_tokens: int
    num_shards: int
    num_centroids: int
    work: Work

    @property
    def weighed(self) -> bool:
        """Whether the scorer weighs document tokens."""
        return "documents" in self.contract.weighs

    def part_url(self, number: int) -> str:
        return storage.join(self.embeddings, self.parts[number].name)
