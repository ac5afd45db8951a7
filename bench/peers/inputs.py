"""The input of every system: token embeddings of the documents and queries of one size, as NumPy files.

T tokens in all, N texts, D dimensions. This folder does not import ray_lir, except for its adapter and `assembled`:
peers run in environments without it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOKEN_IDS = "documents-token-ids.npy"
"""File of the vocabulary id of each document token, [T] int64, for systems that cluster by token."""


@dataclass(frozen=True)
class Texts:
    """Concatenated token embeddings of N texts: values [T, D] float16, offsets [N + 1] int64."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the [tokens, D] vectors of one text."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def dim(self) -> int:
        return self.values.shape[1]


def save(folder: Path, name: str, texts: Texts) -> None:
    """Write NAME.npy and NAME-offsets.npy.

    Args:
        folder: Folder of the files; made if it is missing.
        name: `documents` or `queries`.
        texts: Token embeddings to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}-offsets.npy", texts.offsets)
    np.save(folder / f"{name}.npy", texts.values)


def load(folder: Path, name: str) -> Texts:
    """Map NAME.npy; only accessed pages are read."""
    return Texts(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}-offsets.npy"))


def in_memory(texts: Texts) -> Texts:
    """Return the texts with values in memory, for libraries that need arrays."""
    return Texts(np.asarray(texts.values).copy(), texts.offsets)
