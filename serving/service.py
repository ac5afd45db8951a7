"""Service: what stands behind each route of the API. Lets requests in, and gives each the version that is served."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from ray_lir.api import admin as operation
from ray_lir.api import search as messages
from ray_lir.base.engine_params import SERVED
from ray_lir.base.errors import Conflict
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.kernels import select

from .handlers import admin as changes
from .handlers import documents as lookup
from .handlers import explain as explaining
from .handlers import replies
from .handlers import search as searching
from .http.admission import Admission
from .http.middleware import REQUEST_ID
from .metrics import Metrics
from .request_context import Snapshot, Turn, open_snapshot
from .transport.ray import ENCODER, Calls
from .workers.versions import Served, Versions

HEALTH_TIMEOUT_S = 5.0


class Service:
    """Does no arithmetic but merging: encoding and planning belong to the query encoder, scores to the shard groups.

    Args:
        root: folder of the index.
        version: the version that is served first.
        groups: names of the shard groups, in document order.
        calls: reaches them, and the query encoder.
        timeout_s: what a request may take.
        max_requests: requests that are worked on at a time; more are refused.
        metrics: where to count them.
    """

    def __init__(self, root: str, version: int, groups: Sequence[str], calls: Calls, timeout_s: float, max_requests: int, metrics: Metrics):
        self.root = root
        self.groups = list(groups)
        self.names = [ENCODER, *groups]
        self.calls = calls
        self.timeout_s = timeout_s
        self.metrics = metrics
        self.admission = Admission(max_requests, metrics)
        self.kernels = select("reference")
        self.versions: Versions[Snapshot] = Versions(lambda number: open_snapshot(root, number, self.groups), version)
        self.versions.open(version)
        self._changing = asyncio.Lock()
        self._recalled = False

    async def search(self, request: messages.SearchRequest) -> messages.SearchResponse:
        async with self._turn(request.deadline_ms) as turn:
            response = await searching.search(turn, request, self.kernels)
        self.metrics.search(response)
        return response

    async def encode(self, request: messages.EncodeRequest) -> messages.EncodeResponse:
        """In float16, the precision that embeddings have everywhere."""
        async with self._turn() as turn:
            embeddings: TokenEmbeddings = await turn.encoder("encode", list(request.texts), request.kind)
            truncations = await turn.encoder("truncations", list(request.texts), request.kind)
        return messages.EncodeResponse(
            embeddings=[_numbers(matrix) if request.format == "numbers" else _base64(matrix) for matrix in embeddings],
            num_tokens=embeddings.lengths.tolist(),
            dim=embeddings.dim,
            fingerprint=turn.snapshot.manifest.contract.fingerprint,
            truncated_texts=replies.truncated(truncations),
        )

    async def rerank(self, request: messages.RerankRequest) -> messages.RerankResponse:
        async with self._turn() as turn:
            return await lookup.rerank(turn, request, self.kernels)

    async def explain(self, request: messages.ExplainRequest) -> messages.Explanation:
        async with self._turn() as turn:
            return await explaining.explain_document(turn, request, self.kernels)

    async def document(self, doc_id: str) -> messages.Document:
        async with self._turn() as turn:
            [(group, number)] = (await lookup.find(turn, [doc_id])).values()
            return await lookup.get_document(turn, group, number)

    async def health(self) -> operation.Health:
        """Asks every deployment whether it is ready."""
        deadline = self._deadline(1000 * HEALTH_TIMEOUT_S)
        asked = await asyncio.gather(*(self.calls.ask(name, deadline, "ready") for name in self.names), return_exceptions=True)
        states = {name: "ok" if answer is None else str(answer) for name, answer in zip(self.names, asked, strict=True)}
        return operation.Health(ready=all(answer is None for answer in asked), deployments=states)

    async def index(self) -> operation.IndexFacts:
        await self._recall()
        served = self.versions.served
        manifest = self.versions.get(served).manifest
        return operation.IndexFacts(
            index=self.root,
            version=served.version,
            previous=served.previous,
            canary=served.canary,
            share=served.share,
            num_docs=manifest.num_docs,
            num_deleted=sum(shard.num_deleted for shard in manifest.shards),
            num_tokens=manifest.num_tokens,
            num_shards=len(manifest.shards),
            num_groups=len(self.groups),
            num_centroids=manifest.num_centroids,
            nbits=manifest.nbits,
            engines=list(SERVED),
            contract=manifest.contract,
            fingerprint=manifest.contract.fingerprint,
        )

    async def change_index(self, change: operation.IndexChange) -> operation.IndexState:
        """Requests that are being worked on end with the version that they began with.

        Raises:
            Conflict: if the version cannot be served, or another change is going on; nothing has changed.
        """
        if self._changing.locked():
            raise Conflict("another change is going on; wait for its end")
        async with self._changing:
            await self._recall()
            served, replicas = await changes.stage(self.calls, self.names, self.versions.served, change, self.root)
            await asyncio.to_thread(self._serve, served)
            await changes.adopt(self.calls, self.names, served)
            self.versions.keep(served.reachable)
        return operation.IndexState(
            version=served.version, previous=served.previous, canary=served.canary, share=served.share, replicas=replicas
        )

    @asynccontextmanager
    async def _turn(self, milliseconds: float | None = None) -> AsyncIterator[Turn]:
        """Raises Overloaded if too many requests are being worked on."""
        with self.admission.enter():
            deadline = self._deadline(milliseconds)
            await self._recall()
            self.metrics.served(self.versions.served)  # again and again: an exporter forgets what is not said for a while
            served = self.versions.served.for_request(REQUEST_ID.get(""))
            yield Turn(self.calls, served, self.versions.get(served), deadline)

    async def _recall(self) -> None:
        """After a start: the version that was served before it, if the other deployments were there."""
        if not self._recalled:
            served = await changes.recall(self.calls, self.names, self._deadline(1000 * HEALTH_TIMEOUT_S))
            if served is not None:
                await asyncio.to_thread(self._serve, served)
                self._recalled = True

    def _serve(self, served: Served) -> None:
        """From now on. Opens what the gateway needs of it before a request does."""
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
