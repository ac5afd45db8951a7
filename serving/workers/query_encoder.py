"""QueryEncoder: turns texts into token embeddings, and query texts into query plans, once for all shard groups."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_lir.base.config import EncoderConfig
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines import read_tuning
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import QueryPlan
from ray_lir.index.versions import existing_version, read_version
from ray_lir.search.highlights import matched_spans
from ray_lir.search.searcher import Planner, open_planner

from .batching import Batcher
from .replica import Replica
from .versions import Served, Versions

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder  # only this deployment loads torch

MAX_BATCH_TOKENS = 4096
SMALL_BATCH_TOKENS = 128
"""Batches of up to this many tokens run in the event loop; encoding them takes about ten milliseconds."""

Load = Callable[[EncoderContract, EncoderConfig], "Encoder"]
"""Returns the encoder of a contract."""
Spans = tuple[list[str], np.ndarray]
"""The tokens of a text as the vocabulary spells them, and [T, 2] first and end characters; -1 for tokens that are not in the text."""

Matched = tuple[np.ndarray, np.ndarray | None, str, str]
"""Of a document: the matched tokens [n], their windows [n, 3], the title and the text."""


@dataclass(frozen=True)
class Planned:
    """Plans of one request's queries.

    Attributes:
        plans: One plan for each query.
        encode: Seconds of encoding, including the wait for a batch.
        plan: Seconds of planning.
        truncations: Number of tokens of each query, and how many were encoded.
    """

    plans: list[QueryPlan]
    encode: float
    plan: float
    truncations: list[Truncation]


@dataclass(frozen=True)
class EncodeCall:
    """One request's texts, waiting for a batch.

    Attributes:
        served: Versions that the request carries.
        texts: Texts to encode.
        then: Computes the result from the embeddings, on the same thread: a change of threads takes several times as long as a plan.
    """

    served: Served
    texts: list[str]
    then: Callable[[TokenEmbeddings], Any]


class QueryEncoder(Replica["tuple[Encoder, Planner]"]):
    """Holds, for each open version, the index's planner and the encoder that the index was built with.

    Args:
        checkpoint: Folder of the encoder's checkpoint. None: the folder in the index's contract.
        kernels: Kernels that make query plans.
        shard_kernels: Kernels of the shard groups, from which `auto` chooses the engine.
        load: Returns the encoder of a contract. None: load it from its checkpoint.
        residency: auto, memory or disk (ray_lir/index/residency.py), from which `auto` chooses the engine.

    Raises:
        IncompatibleError: The index was built with another encoder than the checkpoint.
    """

    def __init__(
        self,
        root: str,
        version: int,
        checkpoint: str | None,
        verify: bool,
        kernels: str = "auto",
        shard_kernels: str = "auto",
        load: Load | None = None,
        residency: str = "auto",
    ):
        self.kernels = kernels
        self.load = load or load_encoder
        self.shard_kernels = shard_kernels
        self.residency = residency
        super().__init__()
        self.root = root
        self.checkpoint = checkpoint
        self.verify = verify
        self.encoders: dict[str, Encoder] = {}
        version = existing_version(root, version)
        self.versions = Versions(self._open, version)
        self._in_batches = Batcher(self._encode_queries, self._cost, MAX_BATCH_TOKENS, SMALL_BATCH_TOKENS)
        self.versions.open(version)

    async def plan(self, served: Served, texts: list[str], k: int, engine: str | EngineConfig, quality: str) -> Planned:
        """Return a plan for each text, all of the same engine. Texts of concurrent requests are encoded in one batch.

        Args:
            served: Versions that the request carries.
            texts: Query texts.
            k: Documents to return for each query.
            engine: Name or parameters of the engine.
            quality: For the engine auto: how closely it must follow the exact ranking.
        """
        start = time.perf_counter()

        def planned(embeddings: TokenEmbeddings) -> Planned:
            encoded = time.perf_counter()
            encoder, planner = self.versions.get(served)
            plans = planner.plan(embeddings, k, engine, quality)
            return Planned(plans, encoded - start, time.perf_counter() - encoded, encoder.tokenizer.query_truncations(texts))

        return await self._in_batches(EncodeCall(served, texts, planned))

    async def encode(self, served: Served, texts: list[str], kind: Literal["query", "document"]) -> TokenEmbeddings:
        """Return token embeddings of texts.

        Args:
            served: Versions that the request carries.
            texts: Texts to encode.
            kind: Whether the texts are queries or documents.
        """
        if kind == "query":
            return await self._encoded(served, texts)
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(encoder.encode_documents, texts)

    async def score(self, served: Served, query: str, texts: list[str]) -> np.ndarray:
        """Return the scores of texts for a query, from uncompressed vectors.

        Args:
            served: Versions that the request carries.
            query: Text of the query.
            texts: Texts to score.

        Returns:
            [texts] float32; -inf for a text without tokens.
        """
        queries = await self._encoded(served, [query])
        documents = await self.encode(served, texts, "document")
        encoder, _ = self.versions.get(served)
        [scores] = await asyncio.to_thread(encoder.scores, queries, documents)
        return scores

    async def spans(self, served: Served, queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
        """Return the tokens of queries and documents, with their positions in the texts.

        Args:
            served: Versions that the request carries.
            queries: Texts of queries.
            documents: Texts of documents.
        """
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(_spans, encoder, queries, documents)

    async def matched_spans(self, served: Served, documents: list[Matched]) -> list[np.ndarray]:
        """Return the positions of matched tokens in documents, which are stored in windows (`search.highlights.matched_spans`).

        Args:
            served: Versions that the request carries.
            documents: For each document its matched tokens [n], their windows [n, 3], its title and its text.

        Returns:
            For each document [n, 2] int64.
        """
        tokenizer = self.versions.get(served)[0].tokenizer
        return await asyncio.to_thread(lambda: [matched_spans(tokenizer, *document) for document in documents])

    async def truncations(self, served: Served, texts: list[str], kind: Literal["query", "document"]) -> list[Truncation]:
        """Return how many tokens each text has, and how many of them are encoded.

        Args:
            served: Versions that the request carries.
            texts: Texts of queries or documents.
            kind: Whether the texts are queries or documents.
        """
        tokenizer = self.versions.get(served)[0].tokenizer
        return await asyncio.to_thread(tokenizer.query_truncations if kind == "query" else tokenizer.document_truncations, texts)

    async def open_version(self, version: int) -> None:
        """Open a version so that it can be served.

        Raises:
            FormatError: The version is damaged.
            IncompatibleError: The version was built with another encoder.
        """
        await asyncio.to_thread(self.versions.open, version)

    async def adopt(self, served: Served) -> None:
        """Store the served versions, and close versions that no request can reach."""
        await asyncio.to_thread(self.versions.get, served)
        used = {planner.manifest.contract.fingerprint for _, planner in self.versions.keep(served.reachable)}
        self.encoders = {fingerprint: encoder for fingerprint, encoder in self.encoders.items() if fingerprint in used}

    async def ready(self) -> None:
        """Return as soon as the encoder is loaded."""

    def _open(self, version: int) -> "tuple[Encoder, Planner]":
        manifest = read_version(self.root, version)
        opened = next((planner for _, planner in reversed(self.versions.opened())), None)
        tuning = read_tuning(self.root, version)
        residency = "memory" if self.shard_kernels == "cuda" else self.residency  # GPUs hold whole shards
        planner = open_planner(self.root, manifest, self.verify, self.kernels, tuning, opened, residency)
        if self.shard_kernels != "auto":
            planner = replace(planner, shard_kernels=self.shard_kernels)
        encoder = self.encoders.get(manifest.contract.fingerprint)
        if encoder is None:
            config = EncoderConfig(checkpoint=self.checkpoint or manifest.contract.checkpoint)
            encoder = self.encoders[manifest.contract.fingerprint] = self.load(manifest.contract, config)
        planner.plan(encoder.encode_queries(["warm up"]))
        return encoder, planner

    async def _encoded(self, served: Served, texts: list[str]) -> TokenEmbeddings:
        return await self._in_batches(EncodeCall(served, texts, lambda embeddings: embeddings))

    def _cost(self, call: EncodeCall) -> int:
        """Return an upper bound of the number of tokens: a token has at least one character."""
        longest = self.versions.get(call.served)[0].contract.query_length
        return sum(min(longest, len(text) + 3) for text in call.texts)

    def _encode_queries(self, batch: Sequence[EncodeCall]) -> list[Any]:
        encoders = [self.versions.get(call.served)[0] for call in batch]
        results: list[Any] = [None] * len(batch)
        for encoder in dict.fromkeys(encoders):  # several only while the service switches between versions with different encoders
            numbers = [number for number, each in enumerate(encoders) if each is encoder]
            embeddings = encoder.encode_queries([text for number in numbers for text in batch[number].texts])
            ends = np.cumsum([len(batch[number].texts) for number in numbers]).tolist()
            for number, end in zip(numbers, ends, strict=True):
                results[number] = _attempt(batch[number].then, embeddings.slice(end - len(batch[number].texts), end))
        return results


def load_encoder(contract: EncoderContract, config: EncoderConfig) -> "Encoder":
    from ray_lir.encoder.encoder import Encoder

    return Encoder.for_contract(contract, config)


def _attempt(then: Callable[[TokenEmbeddings], Any], embeddings: TokenEmbeddings) -> Any:
    """Return the result of `then`, or its exception, so that one failed call does not affect the others of the batch."""
    try:
        return then(embeddings)
    except Exception as error:
        return error


def _spans(encoder: "Encoder", queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
    of_queries = [encoder.tokenizer.query_spans(text) for text in queries]
    of_documents = [encoder.tokenizer.document_spans(text) for text in documents]
    return [(each.pieces, each.spans) for each in of_queries], [(each.pieces, each.spans) for each in of_documents]
