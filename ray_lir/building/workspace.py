"""Shared by the steps of a build: its inputs and settings (`Build`), and the scratch folder where each step saves arrays for the next."""

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

WORKSPACES = "_work"
"""Folder of an index that holds the workspaces of its jobs."""
GARBAGE = "garbage.json"
"""File in the folder of workspaces with the names that belonged to removed versions and must still be removed."""


@dataclass(frozen=True)
class Workspace:
    """The scratch folder of a job, from which a killed job continues. Each file is written atomically.

    The folder's name holds a digest of the configuration, so no other job reads it. It is removed when the index is published.

    Attributes:
        root: Folder or URL.
    """

    root: str

    def has(self, name: str) -> bool:
        """Return whether a file was saved."""
        return storage.exists(storage.join(self.root, name))

    def save(self, name: str, array: np.ndarray) -> None:
        """Save an array."""
        storage.write_bytes(storage.join(self.root, name), array_bytes(array))

    def load(self, name: str) -> np.ndarray:
        """Return a saved array.

        Raises:
            FormatError: The file is missing or damaged.
        """
        return read_array(storage.join(self.root, name))

    def save_record(self, name: str, record: object) -> None:
        """Save a value as JSON."""
        storage.write_bytes(storage.join(self.root, name), json.dumps(record).encode())

    def load_record(self, name: str) -> Any:
        """Return a value that was saved as JSON.

        Raises:
            FormatError: The file is not JSON.
        """
        url = storage.join(self.root, name)
        try:
            return parse_json(storage.read_bytes(url))
        except ValueError as error:
            raise FormatError(url, "JSON", f"{error!r:.120}", "remove the folder it is in, and run the job again") from None


def remove_workspaces(index: str, done: Callable[[str], bool]) -> None:
    """Remove the workspaces for which `done(name)` is true, and the folder around them if it is empty then."""
    root = storage.join(index, WORKSPACES)
    for name in filter(done, storage.list_names(root)):
        storage.remove_tree(storage.join(root, name))
    if storage.is_local(root):
        with suppress(OSError):  # not empty: another job works there
            storage.local_path(root).rmdir()


@dataclass(frozen=True)
class Build:
    """The inputs and settings that every step of a build needs.

    Attributes:
        embeddings: Folder or URL of the token embeddings.
        contract: The contract of their encoder.
        parts: Their files, in document order.
        output: Folder or URL of the index.
        config: The configuration of the index.
        dim: Dimensions of the vectors.
        num_docs: Documents of the embeddings.
        num_tokens: Tokens of the embeddings.
        num_shards: Shards to assemble.
        num_centroids: Centroids to train; a smaller sample gives fewer.
        workspace: Scratch folder of the build.
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
    workspace: Workspace

    @property
    def has_token_weights(self) -> bool:
        """Whether the scorer weights document tokens."""
        return "documents" in self.contract.weighs

    def part_url(self, number: int) -> str:
        """Return the URL of a part of the embeddings."""
        return storage.join(self.embeddings, self.parts[number].name)
