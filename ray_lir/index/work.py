"""The scratch folder of a build: arrays and records that each step leaves for the next, and for a run after a kill.

It is named after the configuration, so another build never reads it, and removed when the index is published.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.formats import storage


@dataclass(frozen=True)
class Work:
    """Files below `root`; each is written in one atomic step."""

    root: str

    def has(self, name: str) -> bool:
        return storage.exists(storage.join(self.root, name))

    def save(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        storage.write_bytes(storage.join(self.root, name), buffer.getvalue())

    def load(self, name: str) -> np.ndarray:
        """The array; mapped where the folder is on a local disk."""
        url = storage.join(self.root, name)
        if storage.is_local(url):
            array = np.load(storage.local_path(url), allow_pickle=False)
            return array
        with storage.open_input(url) as file:
            return np.load(file, allow_pickle=False)

    def save_record(self, name: str, record: Any) -> None:
        storage.write_bytes(storage.join(self.root, name), json.dumps(record).encode())

    def load_record(self, name: str) -> Any:
        return json.loads(storage.read_bytes(storage.join(self.root, name)))
