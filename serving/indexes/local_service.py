"""Opens the `Service` of an index in this process: its query encoder and its only shard group are local objects."""

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ray_lir.base.config import EncoderConfig
from ray_lir.embeddings.contract import EncoderContract

from ..handlers.writes import WriteOptions
from ..metrics import Metrics
from ..request_context import RequestContext
from ..service import Service
from ..transport.local import LocalTransport
from ..transport.protocol import ENCODER, WRITER
from ..workers.query_encoder import QueryEncoder
from ..workers.shard_server import ShardServer
from ..workers.versions import Served
from ..workers.writer import MaintenanceOptions, Writer
from .fair_slots import FairSlots

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder

GROUP = "ShardGroup-0"


class Encoders:
    """Loads encoders. Open indexes with equal contracts share one; it is freed when the last of them is closed."""

    def __init__(self) -> None:
        self._loaded: WeakValueDictionary[tuple[str, str], Encoder] = WeakValueDictionary()
        self._loading = threading.Lock()

    def load(self, contract: EncoderContract, config: EncoderConfig) -> "Encoder":
        """Return the encoder of a contract.

        Args:
            contract: The contract to satisfy.
            config: Where the weights are, and how the encoder runs.

        Raises:
            ConfigError: There is no such checkpoint.
            IncompatibleError: The checkpoint does not satisfy the contract.
        """
        from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

        key = (contract.fingerprint, config.model_dump_json(exclude={"checkpoint"}))
        with self._loading:
            encoder = self._loaded.get(key)
            if encoder is None:
                encoder = self._loaded[key] = Encoder.for_contract(contract, config)
            return encoder


class LocalService(Service):
    """The service of one of several indexes. A request waits for a slot before it computes.

    Args:
        name: Name of the index.
        root: Folder or URL of the index.
        served: Versions to serve.
        workers: The query encoder and the shard group.
        writer: Publishes writes. None: the index accepts no writes.
        shared: State that the indexes of the process share.
    """

    def __init__(
        self,
        name: str,
        root: str,
        served: Served,
        workers: tuple[QueryEncoder, ShardServer],
        writer: Writer | None,
        shared: "LocalServices",
    ):
        metrics = shared.metrics.for_index(name)
        transport = LocalTransport(dict(zip((ENCODER, GROUP, WRITER), (*workers, writer), strict=True)), metrics)
        writes = shared.writes if writer else None
        super().__init__(root, served.version, [GROUP], transport, shared.timeout_s, shared.max_requests, metrics, writes)
        self.versions.served = served
        self.name = name
        self.workers = workers
        self.slots = shared.slots

    @property
    def busy(self) -> bool:
        """Whether requests are in progress, or writes wait for publication."""
        return self.admission.running > 0 or (self.writes is not None and self.writes.unpublished > 0)

    def close(self) -> None:
        """Free the files of the index and its part in the encoder. A request in progress opens its version again for itself."""
        self.stop()
        encoder, group = self.workers
        encoder.versions.keep(())
        encoder.encoders.clear()
        group.versions.keep(())

    @asynccontextmanager
    async def _admitted(self, milliseconds: float | None = None, version: int | None = None) -> AsyncIterator[RequestContext]:
        async with super()._admitted(milliseconds, version) as context, self.slots.enter(self.name, context.deadline):
            yield context


@dataclass
class LocalServices:
    """Opens services that share encoders, threads and slots.

    Attributes:
        encoder: Checkpoint of the query encoders. None: the one that each index records.
        verify: Compare the digests of all files when a version is opened.
        cache: Folder for copies of shards of indexes on an object store.
        kernels: Name of the kernels.
        num_threads: Threads that score documents.
        timeout_s: Longest time of a request, in seconds.
        max_requests: Concurrent requests of each index; further requests are refused.
        slots: Divides the processor among the indexes.
        metrics: Metrics of the process.
        writes: Settings of writes. None: no index accepts writes.
        maintenance: When writers compact their indexes, and how many versions they keep.
        residency: auto, memory or disk (ray_lir/index/residency.py).
    """

    encoder: str | None
    verify: bool
    cache: str | None
    kernels: str
    num_threads: int
    timeout_s: float
    max_requests: int
    slots: FairSlots
    metrics: Metrics
    writes: WriteOptions | None = None
    maintenance: MaintenanceOptions = MaintenanceOptions()
    encoders: Encoders = field(default_factory=Encoders)
    residency: str = "auto"

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="search")

    def open(self, name: str, root: str, served: Served) -> LocalService:
        """Return the service of an index.

        Args:
            name: Name of the index.
            root: Folder or URL of the index.
            served: Versions to serve.

        Raises:
            FormatError: The index is damaged.
            ConfigError: Its encoder cannot be loaded.
            IncompatibleError: The encoder is not the one that the index was built with.
        """
        encoder = QueryEncoder(
            root, served.version, self.encoder, self.verify, self.kernels, load=self.encoders.load, residency=self.residency
        )
        group = ShardServer(
            root, served.version, 0, 1, self.num_threads, self.verify, self.cache, self.kernels, pool=self.pool, residency=self.residency
        )
        writer = None if self.writes is None else Writer(root, self.encoder, self.maintenance, self.encoders.load)
        return LocalService(name, root, served, (encoder, group), writer, self)
