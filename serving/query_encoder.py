"""QueryEncoder: turns texts into token embeddings, and query texts into query plans, once for all shard groups."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ray_lir.config import Config, EncoderConfig
from ray_lir.engines import read_tuning
from ray_lir.engines.plan import QueryPlan
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.search import Planner, open_planner, read_version

from .batching import Batcher
from .versions import Served, Versions

if TYPE_CHECKING:
    from ray_lir.models.encoder import Encoder  # torch is loaded in this deployment alone

MAX_BATCH_TOKENS = 4096

Spans = tuple[list[str], np.ndarray]
"""The pieces of a text's tokens, and [T, 2] first and end characters, -1 for tokens that are not in the text."""


@dataclass(frozen=True)
class Planned:
    """Plans of one request's queries, and the seconds that they took."""

    plans: list[QueryPlan]
    encode: float
    plan: float


class QueryEncoder:
    """Holds the encoder that the index was made with, and the index's planner, for each version that is open.

    Args:
        checkpoint: where the encoder's weights lie now; None: where the index's contract says.

    Raises:
        IncompatibleError: if the checkpoint is not the encoder that the index was made with.
    """

    def __init__(self, root: str, version: int, checkpoint: str | None, verify: bool):
        self.root = root
        self.checkpoint = checkpoint
        self.verify = verify
        self.encoders: dict[str, Encoder] = {}
        self.versions = Versions(self._open, version)
        self.encode_queries = Batcher(self._encode_queries, self._cost, MAX_BATCH_TOKENS)
        self.versions.open(version)

    async def plan(self, served: Served, texts: list[str], k: int, engine: str | Config, quality: str) -> Planned:
        """A plan for each text, all of the same engine. The texts of requests that wait together are encoded together."""
        start = time.perf_counter()
        embeddings = await self.encode_queries((served, texts))
        encoded = time.perf_counter()
        _, planner = self.versions.get(served)
        plans = await asyncio.to_thread(planner.plan, embeddings, k, engine, quality)
        return Planned(plans, encoded - start, time.perf_counter() - encoded)

    async def encode(self, served: Served, texts: list[str], kind: Literal["query", "document"]) -> TokenEmbeddings:
        """Token embeddings of texts."""
        if kind == "query":
            return await self.encode_queries((served, texts))
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(encoder.encode_documents, texts)

    async def score(self, served: Served, query: str, texts: list[str]) -> np.ndarray:
        """[texts] float32, what the index's scorer gives the query and each text, nothing compressed; -inf for a text without tokens."""
        queries = await self.encode_queries((served, [query]))
        documents = await self.encode(served, texts, "document")
        encoder, _ = self.versions.get(served)
        [scores] = await asyncio.to_thread(encoder.scores, queries, documents)
        return scores

    async def spans(self, served: Served, queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
        """Where the vectors of these texts come from in them."""
        encoder, _ = self.versions.get(served)
        return await asyncio.to_thread(_spans, encoder, queries, documents)

    async def stage(self, version: int) -> None:
        """Opens a version so that it can be served. Raises if it is damaged, or made with another encoder than there is."""
        await asyncio.to_thread(self.versions.open, version)

    async def adopt(self, served: Served) -> None:
        """Remembers what is served from now on, and lets go of versions that no request reaches any more."""
        await asyncio.to_thread(self.versions.get, served)
        used = {planner.manifest.contract.fingerprint for _, planner in self.versions.keep(served.reachable)}
        self.encoders = {fingerprint: encoder for fingerprint, encoder in self.encoders.items() if fingerprint in used}

    async def remembered(self) -> Served:
        """What was served when this was last asked for something."""
        return self.versions.served

    async def ready(self) -> None:
        """Answers as soon as the encoder is loaded."""

    def _open(self, version: int) -> "tuple[Encoder, Planner]":
        manifest = read_version(self.root, version)
        planner = open_planner(self.root, manifest, self.verify, tuning=read_tuning(self.root, version))
        encoder = self.encoders.get(manifest.contract.fingerprint)
        if encoder is None:
            from ray_lir.models.encoder import Encoder

            config = EncoderConfig(checkpoint=self.checkpoint or manifest.contract.checkpoint)
            encoder = self.encoders[manifest.contract.fingerprint] = Encoder.for_contract(manifest.contract, config)
        planner.plan(encoder.encode_queries(["warm up"]))
        return encoder, planner

    def _cost(self, item: tuple[Served, list[str]]) -> int:
        """Tokens, at most: none is shorter than a character."""
        served, texts = item
        longest = self.versions.get(served)[0].contract.query_length
        return sum(min(longest, len(text) + 3) for text in texts)

    def _encode_queries(self, items: Sequence[tuple[Served, list[str]]]) -> list[TokenEmbeddings]:
        encoders = [self.versions.get(served)[0] for served, _ in items]
        results: list[TokenEmbeddings | None] = [None] * len(items)
        for encoder in dict.fromkeys(encoders):  # more than one only while versions with different encoders change over
            mine = [number for number, each in enumerate(encoders) if each is encoder]
            embeddings = encoder.encode_queries([text for number in mine for text in items[number][1]])
            ends = np.cumsum([len(items[number][1]) for number in mine]).tolist()
            for number, end in zip(mine, ends, strict=True):
                results[number] = embeddings.slice(end - len(items[number][1]), end)
        return results


def _spans(encoder: "Encoder", queries: list[str], documents: list[str]) -> tuple[list[Spans], list[Spans]]:
    of_queries = [encoder.tokenizer.query_spans(text) for text in queries]
    of_documents = [encoder.tokenizer.document_spans(text) for text in documents]
    return [(each.pieces, each.spans) for each in of_queries], [(each.pieces, each.spans) for each in of_documents]
