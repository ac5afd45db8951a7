"""What every system is given: the token embeddings of the documents and the queries of one size, as NumPy files.

T tokens in all, N texts, D dimensions. Nothing here, or in any script beside it, imports ray_lir (its own adapter and `assembled` apart):
peers run in environments where it is not installed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Texts:
    """Token embeddings of N texts, one after another: values [T, D] float16, offsets [N + 1] int64."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """[tokens, D] of one text."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def dim(self) -> int:
        return self.values.shape[1]


def save(folder: Path, name: str, texts: Texts) -> None:
    """Writes NAME.npy and NAME-offsets.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}-offsets.npy", texts.offsets)
    np.save(folder / f"{name}.npy", texts.values)


def load(folder: Path, name: str) -> Texts:
    """Maps NAME.npy: only what is touched is read."""
    return Texts(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}-offsets.npy"))


def in_memory(texts: Texts) -> Texts:
    """The same with its values read into memory, for a library that must be handed arrays."""
    return Texts(np.asarray(texts.values).copy(), texts.offsets)
