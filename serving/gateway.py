"""Gateway: the HTTP side of the service. Plans once, sends every stage to all shard groups, merges what they answer."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_lir.engines.plan import QueryPlan, TopK, merge
from ray_lir.errors import RayLirError, ShardUnavailable
from ray_lir.kernels import select
from ray_lir.search import finish, read_version

from .api import Health, Hit, IndexFacts, SearchRequest, SearchResponse, Timings, routes
from .query_encoder import Planned

HEALTH_TIMEOUT_S = 5.0


@serve.ingress()
class Gateway:
    """Does no arithmetic but merging: encoding and planning belong to the query encoder, scores to the shard groups.

    Args:
        encoder: the query encoder.
        groups: the shard groups by name, in document order.
        first_documents: the number of each group's first document.
        timeout_s: how long a search may take.
    """

    def __init__(
        self,
        root: str,
        version: int,
        encoder: DeploymentHandle,
        groups: dict[str, DeploymentHandle],
        first_documents: Sequence[int],
        timeout_s: float,
    ):
        self.root = root
        self.version = version
        self.manifest = read_version(root, version)
        self.handles = {encoder.deployment_name: encoder, **groups}
        self.encoder = encoder.deployment_name
        self.groups = list(groups)
        self.first_documents = np.asarray(first_documents)
        self.timeout_s = timeout_s
        self.kernels = select("reference")

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes(self)

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Raises ConfigError if the request cannot be answered, ShardUnavailable if a deployment did not answer in time."""
        start = time.perf_counter()
        deadline = _deadline(self.timeout_s)
        planned: Planned = await self._ask(self.encoder, deadline, "plan", request.texts, request.k, request.chosen_engine())
        answers, stages = await self._run_stages(planned.plans, deadline)
        searched = time.perf_counter()
        documents = await self._documents(answers, request.include, deadline)
        end = time.perf_counter()
        seconds = {"encode": planned.encode, "plan": planned.plan, "documents": end - searched, "total": end - start}
        return SearchResponse(
            results=[_hits(answer, documents) for answer in answers],
            engine=planned.plans[0].params.engine,
            params=[answer.params for answer in answers],
            timings=Timings(stages=[_ms(stage) for stage in stages], **{name: _ms(value) for name, value in seconds.items()}),
            index_version=self.version,
        )

    async def health(self) -> Health:
        """Asks every deployment whether it is ready."""
        deadline = _deadline(min(HEALTH_TIMEOUT_S, self.timeout_s))
        asked = await asyncio.gather(*(self._ask(name, deadline, "ready") for name in self.handles), return_exceptions=True)
        states = {name: "ok" if answer is None else str(answer) for name, answer in zip(self.handles, asked, strict=True)}
        return Health(ready=all(answer is None for answer in asked), deployments=states)

    async def index(self) -> IndexFacts:
        manifest = self.manifest
        return IndexFacts(
            index=self.root,
            version=self.version,
            num_docs=manifest.num_docs,
            num_tokens=manifest.num_tokens,
            num_shards=len(manifest.shards),
            num_groups=len(self.groups),
            num_centroids=manifest.num_centroids,
            nbits=manifest.nbits,
            contract=manifest.contract,
            fingerprint=manifest.contract.fingerprint,
        )

    async def _run_stages(self, plans: list[QueryPlan], deadline: float) -> tuple[list[TopK], list[float]]:
        """The answer to each plan, and the seconds of each stage. The best of a stage over *all* groups go on to the next."""
        documents: list[np.ndarray | None] = [None] * len(plans)
        seconds = []
        for number in range(len(plans[0].keeps)):
            start = time.perf_counter()
            parts = await asyncio.gather(*(self._ask(group, deadline, "run_stage", plans, number, documents) for group in self.groups))
            best = [merge(answers, plan.keeps[number], self.kernels) for plan, *answers in zip(plans, *parts, strict=True)]
            documents = [np.sort(top.documents) for top in best]
            seconds.append(time.perf_counter() - start)
        return finish(plans, best), seconds

    async def _documents(self, answers: Sequence[TopK], fields: Sequence[str], deadline: float) -> dict[int, dict[str, Any]]:
        """Documents by number, from the groups that hold them, one call a group."""
        numbers = np.unique(np.concatenate([answer.documents for answer in answers]))
        owners = np.searchsorted(self.first_documents, numbers, side="right") - 1
        shares = {self.groups[owner]: numbers[owners == owner] for owner in np.unique(owners)}
        asked = await asyncio.gather(*(self._ask(group, deadline, "documents", mine, fields) for group, mine in shares.items()))
        found: dict[int, dict[str, Any]] = {}
        for mine, rows in zip(shares.values(), asked, strict=True):
            found.update(zip(mine.tolist(), rows, strict=True))
        return found

    async def _ask(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """Calls a method of a deployment."""
        response = getattr(self.handles[name], method).remote(*args)
        try:
            async with asyncio.timeout_at(deadline):
                return await response
        except TimeoutError:
            response.cancel()
            raise ShardUnavailable(f"{name} did not answer in time; try again, or start the service with a longer timeout_s") from None
        except (RayActorError, RayServeException) as error:
            raise ShardUnavailable(f"{name} is not running ({type(error).__name__}); try again in a few seconds") from error
        except RayTaskError as error:
            if isinstance(error.cause, RayLirError):
                raise error.cause from None  # without the traceback that Ray puts into its message
            raise


def _hits(answer: TopK, documents: dict[int, dict[str, Any]]) -> list[Hit]:
    return [_hit(score, number, documents[number]) for score, number in zip(answer.scores.tolist(), answer.documents.tolist(), strict=True)]


def _hit(score: float, number: int, document: dict[str, Any]) -> Hit:
    metadata = document.get("metadata")
    return Hit(**{**document, "metadata": None if metadata is None else json.loads(metadata)}, score=score, number=number)


def _deadline(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
