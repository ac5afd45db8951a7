"""QueryEncoder: turns query texts into query plans, once for all shard groups."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ray import serve

from ray_lir.config import Config, EncoderConfig
from ray_lir.engines.plan import QueryPlan
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.search import open_planner, read_version

from .api import MAX_QUERIES


@dataclass(frozen=True)
class Planned:
    """Plans of one request's queries, and the seconds that they took."""

    plans: list[QueryPlan]
    encode: float
    plan: float


def _num_texts(requests: Sequence[Sequence[str]]) -> int:
    return sum(len(texts) for texts in requests)


class QueryEncoder:
    """Holds the encoder that the index was made with, and the index's planner.

    Args:
        checkpoint: where the encoder's weights lie now; None: where the index's contract says.

    Raises:
        IncompatibleError: if the checkpoint is not the encoder that the index was made with.
    """

    def __init__(self, root: str, version: int, checkpoint: str | None):
        from ray_lir.models.encoder import Encoder  # torch is loaded in this process alone

        manifest = read_version(root, version)
        self.encoder = Encoder.for_contract(manifest.contract, EncoderConfig(checkpoint=checkpoint or manifest.contract.checkpoint))
        self.planner = open_planner(root, manifest)
        self.planner.plan(self.encoder.encode_queries(["warm up"]))

    async def plan(self, texts: list[str], k: int, engine: str | Config) -> Planned:
        """A plan for each text, all of the same engine. The texts of requests that wait together are encoded together."""
        start = time.perf_counter()
        embeddings = await self._encode(texts)
        encoded = time.perf_counter()
        plans = await asyncio.to_thread(self.planner.plan, embeddings, k, engine)
        return Planned(plans, encoded - start, time.perf_counter() - encoded)

    # Waiting 0 s for company delays nobody: a batch is what came in while the last one was encoded.
    @serve.batch(max_batch_size=MAX_QUERIES, batch_wait_timeout_s=0, batch_size_fn=_num_texts)
    async def _encode(self, requests: list[list[str]]) -> list[TokenEmbeddings]:
        texts = [text for request in requests for text in request]
        embeddings = await asyncio.to_thread(self.encoder.encode_queries, texts)
        ends = np.cumsum([len(request) for request in requests]).tolist()
        return [embeddings.slice(end - len(request), end) for request, end in zip(requests, ends, strict=True)]

    async def ready(self) -> None:
        """Answers as soon as the encoder is loaded."""
