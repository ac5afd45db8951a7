"""Service: answers each route of the API. Admits requests and assigns each one to a version of the index."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from ray_lir.api import admin as admin_api
from ray_lir.api import search as search_api
from ray_lir.api import writes as writes_api
from ray_lir.base.errors import Conflict, Forbidden
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.registry import SERVED, VECTOR_ENGINES
from ray_lir.index.metadata_fields import MetadataField
from ray_lir.index.versions import existing_version
from ray_lir.kernels import select
from ray_lir.storage.manifest import manifest_digest

from .handlers import admin, documents, replies
from .handlers.explain import explain_document
from .handlers.rerank import rerank
from .handlers.search import search
from .handlers.writes import WriteOptions, Writes
from .http.admission import Admission
from .http.middleware import REQUEST_ID
from .metrics import Metrics
from .request_context import RequestContext, Snapshot, open_snapshot
from .transport.protocol import ENCODER, WRITER, Transport
from .workers.versions import Served, Versions

HEALTH_TIMEOUT_S = 5.0
FIELDS_TIMEOUT_S = 2.0


class Service:
    """The gateway's work, without HTTP. It merges results; the query encoder plans and the shard groups score.

    Args:
        root: Folder or URL of the index.
        version: Version of the index to serve first.
        groups: Names of the shard groups, in document order.
        transport: Calls the shard groups and the query encoder.
        timeout_s: Longest time of a request, in seconds.
        max_requests: Concurrent requests; further requests are refused.
        metrics: Counts and times requests.
        writes: Settings of writes. None: the service accepts no writes.
    """

    def __init__(
        self,
        root: str,
        version: int,
        groups: Sequence[str],
        transport: Transport,
        timeout_s: float,
        max_requests: int,
        metrics: Metrics,
        writes: WriteOptions | None = None,
    ):
        self.root = root
        self.groups = list(groups)
        self.names = [ENCODER, *groups]
        self.transport = transport
        self.timeout_s = timeout_s
        self.metrics = metrics
        self.admission = Admission(max_requests, metrics)
        self.kernels = select("reference")
        version = existing_version(root, version)
        self.versions: Versions[Snapshot] = Versions(lambda number: open_snapshot(root, number, self.groups), version)
        self.versions.open(version)
        self._changing = asyncio.Lock()
        self._recalled = False
        self._known_fields: dict[int, list[MetadataField]] = {}
        self._following: asyncio.Task[None] | None = None
        self.writes: Writes | None = None
        if writes is not None:
            self.versions.served = self.versions.served._replace(pinned=writes.pinned)
            self.writes = Writes(root, transport, writes, metrics, self._follow, lambda: self.versions.served.reachable)

    def start(self) -> None:
        """Publish and serve writes in the background, until `stop` is called."""
        if self.writes and self._following is None:
            self._following = asyncio.create_task(self.writes.follow())

    def stop(self) -> None:
        """End the work in the background. Unpublished writes stay in the log."""
        if self._following:
            self._following.cancel()
            self._following = None

    @asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """Publish and serve writes for the duration of a `with` block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    async def search(self, request: search_api.SearchRequest) -> search_api.SearchResponse:
        """Answer `POST /search`.

        Raises:
            ConfigError: There is no such engine, or it has no such parameters.
            Overloaded: Too many requests are in progress.
            ShardUnavailable: Too little of the index answered in time.
        """
        async with self._admitted(request.deadline_ms, request.version) as context:
            response = await search(context, request, self.kernels)
        self.metrics.search(response)
        return response

    async def encode(self, request: search_api.EncodeRequest) -> search_api.EncodeResponse:
        """Answer `POST /encode`. Vectors are float16, as in embeddings folders.

        Raises:
            Overloaded: Too many requests are in progress.
            ShardUnavailable: The query encoder does not answer in time.
        """
        async with self._admitted() as context:
            embeddings: TokenEmbeddings = await context.call_encoder("encode", list(request.texts), request.kind)
            truncations = await context.call_encoder("truncations", list(request.texts), request.kind)
        return search_api.EncodeResponse(
            embeddings=[_numbers(matrix) if request.format == "numbers" else _base64(matrix) for matrix in embeddings],
            num_tokens=embeddings.lengths.tolist(),
            dim=embeddings.dim,
            fingerprint=context.snapshot.manifest.contract.fingerprint,
            truncated_texts=replies.truncated(truncations),
        )

    async def rerank(self, request: search_api.RerankRequest) -> search_api.RerankResponse:
        """Answer `POST /rerank`.

        Raises:
            NotFound: The index has no such document.
            Overloaded: Too many requests are in progress.
            ShardUnavailable: The query encoder or a group does not answer in time.
        """
        async with self._admitted() as context:
            return await rerank(context, request, self.kernels)

    async def explain(self, request: search_api.ExplainRequest) -> search_api.Explanation:
        """Answer `POST /explain`.

        Raises:
            ConfigError: There is no such engine, or it has no such parameters.
            NotFound: The index has no such document.
            Overloaded: Too many requests are in progress.
            ShardUnavailable: The query encoder or a group does not answer in time.
        """
        async with self._admitted(version=request.version) as context:
            return await explain_document(context, request, self.kernels)

    async def document(self, doc_id: str) -> search_api.Document:
        """Answer `GET /documents`.

        Raises:
            NotFound: The index has no such document.
            Overloaded: Too many requests are in progress.
            ShardUnavailable: A group does not answer in time.
        """
        async with self._admitted() as context:
            [(group, number)] = (await documents.find(context, [doc_id])).values()
            return await documents.get_document(context, group, number)

    async def write(self, request: writes_api.WriteRequest, key: str | None = None) -> writes_api.WriteResponse:
        """Answer `PUT /documents`, `POST /documents` and `DELETE /documents`.

        Args:
            request: Documents to add and ids to delete.
            key: Idempotency key; None: the request is a new one.

        Raises:
            Forbidden: The service accepts no writes.
            InvalidDocument: No document is usable, or one is not and the request is not partial. Nothing is accepted.
            Conflict: The key was used with another request.
            Overloaded: Too many requests are in progress, or too many writes wait for publication.
            WritesUnavailable: The disk or store of the log failed.
        """
        if self.writes is None:
            raise Forbidden("this service accepts no writes; start it with writes set to true")
        with self.admission.enter():
            return await self.writes.accept(request, key)

    async def health(self) -> admin_api.Health:
        """Answer `GET /health`: ask every deployment whether it is ready. Searches need no writer, so the service is ready without it."""
        deadline = self._deadline(1000 * HEALTH_TIMEOUT_S)
        names = [*self.names, WRITER] if self.writes else self.names
        results = await asyncio.gather(*(self.transport.call(name, deadline, "ready") for name in names), return_exceptions=True)
        states = {name: "ok" if result is None else str(result) for name, result in zip(names, results, strict=True)}
        ready = all(result is None for name, result in zip(names, results, strict=True) if name != WRITER)
        return admin_api.Health(ready=ready, deployments=states)

    async def index(self, version: int | None = None) -> admin_api.IndexFacts:
        """Answer `GET /index`: the served version, its size, its metadata fields and its encoder contract.

        Args:
            version: Another open version to describe. None: the served one.

        Raises:
            ConfigError: The version is not open.
        """
        await self._recall()
        served = self.versions.served
        if version is not None:
            served = served.for_request("", version)
        snapshot = self.versions.get(served)
        manifest = snapshot.manifest
        return admin_api.IndexFacts(
            index=self.root,
            version=served.answering,
            previous=served.previous,
            canary=served.canary,
            traffic_fraction=served.traffic_fraction,
            num_docs=manifest.num_documents,
            num_deleted=sum(shard.num_deleted for shard in manifest.shards),
            num_tokens=manifest.num_tokens,
            num_shards=len(manifest.shards),
            num_groups=len(self.groups),
            num_centroids=manifest.num_centroids,
            nbits=manifest.nbits,
            engines=[name for name in SERVED if manifest.lexical or name in VECTOR_ENGINES],
            fields=await self._fields(RequestContext(self.transport, served, snapshot, self._deadline(1000 * FIELDS_TIMEOUT_S))),
            contract=manifest.contract,
            fingerprint=manifest.contract.fingerprint,
            writes=self.writes.facts(manifest.log_position, not served.pinned) if self.writes else None,
            manifest=manifest_digest(manifest),
        )

    async def change_index(self, change: admin_api.IndexChange) -> admin_api.IndexState:
        """Answer `POST /admin/index`. Requests in progress finish with the version that they started with.

        Raises:
            Conflict: The version cannot be served, or another change is in progress; nothing has changed.
        """
        if self._changing.locked():
            raise Conflict("another change is in progress; try again when it has finished")
        async with self._changing:
            await self._recall()
            served, replicas = await self._change(change)
        return admin_api.IndexState(
            version=served.version,
            previous=served.previous,
            canary=served.canary,
            traffic_fraction=served.traffic_fraction,
            replicas=replicas,
        )

    async def _change(self, change: admin_api.IndexChange) -> tuple[Served, dict[str, int]]:
        """Open a version everywhere and serve it. Return the served versions, and the number of replicas by deployment."""
        served, replicas = await admin.open_everywhere(self.transport, self.names, self.versions.served, change, self.root)
        await asyncio.to_thread(self._serve, served)
        await admin.adopt(self.transport, self.names, served)
        self.versions.keep(served.reachable)
        return served, replicas

    async def _follow(self, version: int) -> int:
        """Serve a new version, unless an operator has chosen the versions or is changing them. Return the served log position."""
        if not self._changing.locked():
            async with self._changing:
                await self._recall()
                served = self.versions.served
                if self._recalled and not served.pinned and version > served.version:
                    await self._change(admin_api.IndexChange(action="load"))  # the latest, which may be newer by now
        return self.versions.get(self.versions.served).manifest.log_position

    @asynccontextmanager
    async def _admitted(self, milliseconds: float | None = None, version: int | None = None) -> AsyncIterator[RequestContext]:
        """Count a request as in progress and yield its context.

        Args:
            milliseconds: Longest time of the request; None for the service's.
            version: Version of the index that the request asks for; None for the served one or the canary.

        Raises:
            ConfigError: The version is not open.
            Overloaded: Too many requests are in progress.
        """
        with self.admission.enter():
            deadline = self._deadline(milliseconds)
            await self._recall()
            self.metrics.served(
                self.versions.served
            )  # set with every request, because Ray's exporter drops gauges that are not set for a while
            served = self.versions.served.for_request(REQUEST_ID.get(""), version)
            yield RequestContext(self.transport, served, self.versions.get(served), deadline)

    async def _fields(self, context: RequestContext) -> list[MetadataField]:
        """Return the metadata fields of a version, from the groups that answer in time. Complete answers are kept."""
        version = context.served.answering
        if version not in self._known_fields:
            fields, complete = await documents.metadata_fields(context)
            if not complete:
                return fields
            self._known_fields = {version: fields}
        return self._known_fields[version]

    async def _recall(self) -> None:
        """Serve the versions that the other deployments remember. Runs once after the gateway starts."""
        if not self._recalled:
            served = await admin.recall(self.transport, self.names, self._deadline(1000 * HEALTH_TIMEOUT_S))
            if served is not None:
                await asyncio.to_thread(self._serve, served)
                self._recalled = True

    def _serve(self, served: Served) -> None:
        """Switch to these versions, and open their manifests before a request needs them."""
        if served.canary is not None:
            self.versions.open(served.canary)
        self.versions.get(served)
        self.metrics.served(self.versions.served)

    def _deadline(self, milliseconds: float | None = None) -> float:
        seconds = self.timeout_s if milliseconds is None else min(self.timeout_s, milliseconds / 1000)
        return asyncio.get_running_loop().time() + seconds


def _numbers(matrix: np.ndarray) -> list[list[float]]:
    return matrix.astype(float).tolist()


def _base64(matrix: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(matrix.astype("<f2")).tobytes()).decode()
