"""Training data for the workers of a cluster: every machine keeps one copy on its disk, which its workers map into memory."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_lir.base.errors import FormatError
from ray_lir.storage.manifest import FileEntry
from ray_lir.training.data import TrainingData
from ray_lir.training.data_cache import CachedData, cache_entry, cache_folder
from ray_lir.training.manifest import TrainingDataManifest

BLOCK_BYTES = 32 << 20
"""Bytes that travel from the driver's machine at a time."""


@dataclass(frozen=True)
class SharedData:
    """Training data in the cache of the driver's machine, for workers on any machine.

    Attributes:
        folder: Folder of the entry on the driver's machine.
        manifest: Counts, digest and files.
        node_id: Ray's id of the driver's machine.
        cache: Folder of the cache on every machine; None: the default folder of each machine.
    """

    folder: str
    manifest: TrainingDataManifest
    node_id: str
    cache: str | None

    @classmethod
    def of(cls, cached: CachedData, cache: str | None) -> "SharedData":
        """Return the entry as the workers get it; this process is the driver and is connected to Ray."""
        return cls(str(cached.folder), cached.manifest, ray.get_runtime_context().get_node_id(), cache)

    def open(self) -> TrainingData:
        """Return the data, mapped into memory. The first worker of another machine copies the files from the driver's machine.

        Raises:
            ConfigError: The disk of this machine is full, or cannot be written.
            FormatError: A file changed on its way.
        """
        if ray.get_runtime_context().get_node_id() == self.node_id:
            return CachedData(Path(self.folder), self.manifest).open()
        with cache_entry(cache_folder(self.cache) / self.manifest.digest[:16], self._copy, check_content=False) as cached:
            return cached.open()

    def _copy(self, folder: Path) -> TrainingDataManifest:
        names = {Path(file.name).parent.name for file in self.manifest.files}
        for file in self.manifest.files:
            self._copy_file(file, folder / Path(file.name).name)
        os.replace(folder, folder.parents[1] / names.pop())
        return self.manifest

    def _copy_file(self, file: FileEntry, target: Path) -> None:
        there = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        sha256 = hashlib.sha256()
        with open(target, "wb") as copy:
            for start in range(0, file.size, BLOCK_BYTES):
                block = ray.get(_read_block.options(scheduling_strategy=there).remote(f"{self.folder}/{file.name}", start))
                sha256.update(block)
                copy.write(block)
        if sha256.hexdigest() != file.sha256:
            raise FormatError(f"{self.folder}/{file.name}", f"sha256 {file.sha256[:16]}", sha256.hexdigest()[:16], "run the command again")


@ray.remote(num_cpus=0)
def _read_block(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(BLOCK_BYTES)
