"""QueryEncoder: turns texts into token embeddings, and query texts into query plans, once for all shard groups."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_lir.base.config import EncoderConfig
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines import read_tuning
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Planner, open_planner

from ..transport.unix_socket import UnixListener
from .batching import Batcher
from .versions import Served, Versions

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder  # torch is loaded in this deployment alone

MAX_BATCH_TOKENS = 4096
SMALL_BATCH_TOKENS = 128
"""Are encoded in some ten milliseconds."""

Spans = tuple[list[str], np.ndarray]
"""The pieces of a text's tokens, and [T, 2] first and end characters, -1 for tokens that are not in the text."""


@dataclass(frozen=True)
class Planned:
    """Plans of one request's queries, the seconds that they took, and how many tokens of each query were kept."""

    plans: list[QueryPlan]
    encode: float
    plan: float
    truncations: list[Truncation]


@dataclass(frozen=True)
class Wanted:
    """Texts of one request to be encoded, and what is to be made of their embeddings on the same thread: going to another would take
    several times as long as a plan."""

    served: Served
    texts: list[str]
    then: Callable[[TokenEmbeddings], Any]


class QueryEncoder:
    """Holds the encoder that the index was made with, and the index's planner, for each version that is open.

    Args:
        checkpoint: where the encoder's weights lie now; None: where the index's contract says.
        kernels: kernels that make query plans.
        shard_kernels: kernels of the shard groups, by which `auto` chooses the engine.

    Raises:
        IncompatibleError: if the checkpoint is not the encoder that the index was made with.
    """

    def __init__(self, root: str, version: int, checkpoint: str | None, verify: bool, kernels: str = "auto", shard_kernels: str = "auto"):
        self.kernels = kernels
        self.shard_kernels = shard_kernels
        self.listener = UnixListener(self)
        self.root = root
        self.checkpoint = checkpoint
        self.verify = verify
        self.encoders: dict[str, Encoder] = {}
        self.versions = Versions(self._open, version)
        self._in_batches = Batcher(self._encode_queries, self._cost, MAX_BATCH_TOKENS, SMALL_BATCH_TOKENS)
        self.versions.open(version)

    async def plan(self, served: Served, texts: list[str], k: int, engine: str | EngineConfig, quality: str) -> Planned:
        """A plan for each text, all of the same engine. The texts of requests that wait together are encoded together."""
        start = time.perf_counter()

        def planned(embeddings: TokenEmbeddings) -> Planned:
            encoded = time.perf_counter()
            encoder, planner = self.versions.get(served)
            plans = planner.plan(embeddings, k, engine, quality)
            return Planned(plans, encoded - start, time.perf_counter() - encoded, encoder.tokenizer.query_truncations(texts))

        return await self._in_batches(Wanted(served, texts, planned))

    async def encode(self, served: Served, texts: list[str], kind: Literal["query", "document"]) -> TokenEmbeddings:
        """Token embeddings of texts."""
        if kind == "query":
            return await self._encoded(served, texts)
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(encoder.encode_documents, texts)

    async def score(self, served: Served, query: str, texts: list[str]) -> np.ndarray:
        """[texts] float32, what the index's scorer gives the query and each text, nothing compressed; -inf for a text without tokens."""
        queries = await self._encoded(served, [query])
        documents = await self.encode(served, texts, "document")
        encoder, _ = self.versions.get(served)
        [scores] = await asyncio.to_thread(encoder.scores, queries, documents)
        return scores

    async def spans(self, served: Served, queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
        """Where the vectors of these texts come from in them."""
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(_spans, encoder, queries, documents)

    async def truncations(self, served: Served, texts: list[str], kind: Literal["query", "document"]) -> list[Truncation]:
        """How many tokens each text has, and how many of them are encoded."""
        tokenizer = self.versions.get(served)[0].tokenizer
        return await asyncio.to_thread(tokenizer.query_truncations if kind == "query" else tokenizer.document_truncations, texts)

    async def open_version(self, version: int) -> None:
        """Opens a version so that it can be served. Raises if it is damaged, or made with another encoder than there is."""
        await asyncio.to_thread(self.versions.open, version)

    async def adopt(self, served: Served) -> None:
        """Remembers what is served from now on, and lets go of versions that no request reaches any more."""
        await asyncio.to_thread(self.versions.get, served)
        used = {planner.manifest.contract.fingerprint for _, planner in self.versions.keep(served.reachable)}
        self.encoders = {fingerprint: encoder for fingerprint, encoder in self.encoders.items() if fingerprint in used}

    async def last_served(self) -> Served:
        """What was served when this was last asked for something."""
        return self.versions.served

    async def address(self) -> str:
        """Where the gateway can reach this replica without Serve, if it is on the same machine."""
        return await self.listener.address()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Serve awaits it before it ends a replica: what came in over the line is answered first."""
        return self.listener.close() if self.listener.is_open else None

    async def ready(self) -> None:
        """Answers as soon as the encoder is loaded."""

    def _open(self, version: int) -> "tuple[Encoder, Planner]":
        manifest = read_version(self.root, version)
        planner = open_planner(self.root, manifest, self.verify, self.kernels, read_tuning(self.root, version))
        if self.shard_kernels != "auto":
            planner = replace(planner, shard_kernels=self.shard_kernels)
        encoder = self.encoders.get(manifest.contract.fingerprint)
        if encoder is None:
            from ray_lir.encoder.encoder import Encoder

            config = EncoderConfig(checkpoint=self.checkpoint or manifest.contract.checkpoint)
            encoder = self.encoders[manifest.contract.fingerprint] = Encoder.for_contract(manifest.contract, config)
        planner.plan(encoder.encode_queries(["warm up"]))
        return encoder, planner

    async def _encoded(self, served: Served, texts: list[str]) -> TokenEmbeddings:
        return await self._in_batches(Wanted(served, texts, lambda embeddings: embeddings))

    def _cost(self, wanted: Wanted) -> int:
        """Tokens, at most: none is shorter than a character."""
        longest = self.versions.get(wanted.served)[0].contract.query_length
        return sum(min(longest, len(text) + 3) for text in wanted.texts)

    def _encode_queries(self, batch: Sequence[Wanted]) -> list[Any]:
        encoders = [self.versions.get(wanted.served)[0] for wanted in batch]
        results: list[Any] = [None] * len(batch)
        for encoder in dict.fromkeys(encoders):  # more than one only while versions with different encoders change over
            mine = [number for number, each in enumerate(encoders) if each is encoder]
            embeddings = encoder.encode_queries([text for number in mine for text in batch[number].texts])
            ends = np.cumsum([len(batch[number].texts) for number in mine]).tolist()
            for number, end in zip(mine, ends, strict=True):
                results[number] = _attempt(batch[number].then, embeddings.slice(end - len(batch[number].texts), end))
        return results


def _attempt(then: Callable[[TokenEmbeddings], Any], embeddings: TokenEmbeddings) -> Any:
    """What it returns, or raises: that concerns none of the others in the batch."""
    try:
        return then(embeddings)
    except Exception as error:
        return error


def _spans(encoder: "Encoder", queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
    of_queries = [encoder.tokenizer.query_spans(text) for text in queries]
    of_documents = [encoder.tokenizer.document_spans(text) for text in documents]
    return [(each.pieces, each.spans) for each in of_queries], [(each.pieces, each.spans) for each in of_documents]
