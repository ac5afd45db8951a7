"""Faults of the service under a steady load: what fails, how long it takes to recover, and whether any answer is wrong."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ray_lir.api.client import AsyncClient
from ray_lir.api.search import SearchResponse
from ray_lir.base.errors import Conflict, RayLirError
from ray_lir.building.update import update_index
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.plan import TopK
from ray_lir.index.shard_groups import split_shards
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, describe_file, write_manifest

K = 10
BEFORE_S = 3.0
CHANGE_S = 5.0
"""After a change of the version, which leaves nothing to recover from."""
DEADLINE_MS = 2000
PAUSE_S = 4.0
TOLERANCE = 2e-3
"""Of scores, as a share: which queries share a batch of the encoder decides about the last bits of their vectors."""
READ, ADMIN = "read-0123456789abcdef", "admin-0123456789abcdef"

Truth = dict[tuple[int, frozenset[str], str], tuple[TopK, float]]
"""By version, groups that are missing, and query: the best documents, and the coverage."""


def measure(
    index: str, folder: Path, texts: list[str], engine: str, num_groups: int, seconds: float, start: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """One record a fault. Version 2 of the index lacks a tenth of the documents; version 3 is damaged."""
    copy = versions(index, folder)
    truth = truths(copy, texts, engine, num_groups)
    (folder / "tokens.yaml").write_text(f"read: [{READ}]\nadmin: [{ADMIN}]\n")
    arguments = {"index": copy, "version": 1, "num_groups": num_groups, "tokens": str(folder / "tokens.yaml")}
    losses = {
        "a group is killed": killing("ShardGroup-0"),
        "the encoder is killed": killing("QueryEncoder"),
        "the gateway is killed": killing("Gateway"),
        f"a group stands still for {PAUSE_S:.0f} s": stopping("ShardGroup-1"),
    }
    changes = {
        "a damaged version is loaded": refused,
        "another version is loaded": lambda admin: admin.load_version(2),
        "it is rolled back": lambda admin: admin.roll_back(),
        "another version answers half of the requests": lambda admin: admin.load_version(2, traffic_fraction=0.5),
        "and then all": lambda admin: admin.promote(),
    }
    losses_of_two = {
        "one of a group's two replicas is killed": killing("ShardGroup-0"),
        f"one of a group's two replicas stands still for {PAUSE_S:.0f} s": stopping("ShardGroup-1"),
    }
    found = []
    for replicas, faults, length in ((1, losses, seconds), (1, changes, CHANGE_S), (2, losses_of_two, seconds)):
        url = start({**arguments, "replicas": replicas})
        found += [asyncio.run(under_load(url, name, fault, truth, texts, engine, length)) for name, fault in faults.items()]
    return found


def versions(index: str, folder: Path) -> str:
    """A copy of the index with two more versions."""
    copy = str(folder / "index")
    shutil.copytree(index, copy, copy_function=os.link)
    searcher = Searcher.open(copy)
    update_index(copy, delete=searcher.doc_ids(np.arange(0, searcher.manifest.num_numbers, 10)))
    manifest = read_version(copy, 1)
    shard = manifest.shards[-1]
    shutil.copytree(Path(copy, shard.name), Path(copy, "shards/damaged"))
    files = tuple(describe_file(copy, f"shards/damaged/{Path(file.name).name}") for file in shard.files)
    codes = Path(copy, "shards/damaged/codes.npy")
    altered = bytearray(codes.read_bytes())
    altered[len(altered) // 2] ^= 1
    codes.write_bytes(altered)
    damaged = shard.model_copy(update={"name": "shards/damaged", "files": files})
    write_manifest(f"{copy}/versions/3/{MANIFEST}", manifest.model_copy(update={"shards": (*manifest.shards[:-1], damaged)}))
    return copy


def truths(index: str, texts: list[str], engine: str, num_groups: int) -> Truth:
    """What the in-process Searcher answers, with every set of groups but all of them missing; three times as many documents as
    are asked for, so that a document that is rounded into an answer is known."""
    truth: Truth = {}
    for version in (1, 2):
        searcher = Searcher.open(index, version)
        queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(texts)
        params = searcher.search(queries, K, engine)[0].params
        runs = split_shards(searcher.manifest.shards, num_groups)
        for num_missing in range(num_groups):
            for missing in combinations(range(num_groups), num_missing):
                left = [number for group, run in enumerate(runs) if group not in missing for number in run]
                part = Searcher(searcher.planner, tuple(searcher.shards[number] for number in left), searcher.kernels)
                coverage = sum(searcher.manifest.shards[number].num_live for number in left) / searcher.manifest.num_docs
                names = frozenset(f"ShardGroup-{group}" for group in missing)
                for text, top in zip(texts, part.search(queries, 3 * K, params), strict=True):
                    truth[version, names, text] = (top, coverage)
    return truth


def is_true(response: SearchResponse, text: str, truth: Truth) -> bool:
    top, coverage = truth[response.index_version, frozenset(response.missing), text]
    hits = response.results[0]
    scores = dict(zip(top.documents.tolist(), top.scores.tolist(), strict=True))
    ranks = np.allclose([hit.score for hit in hits], top.scores[: len(hits)], rtol=TOLERANCE)
    known = all(abs(hit.score - scores.get(hit.number, np.inf)) <= TOLERANCE * abs(hit.score) for hit in hits)
    return len(hits) == K and bool(ranks) and known and abs(response.coverage - coverage) < 1e-9


async def under_load(
    url: str, name: str, fault: Callable[[AsyncClient], Awaitable[Any]], truth: Truth, texts: list[str], engine: str, seconds: float
) -> dict[str, Any]:
    """Strict and lenient clients ask before, during and after a fault."""
    async with AsyncClient(url, READ) as client, AsyncClient(url, ADMIN) as admin:
        await until_answered(client)
        length = BEFORE_S + seconds
        strict = asyncio.create_task(steady(client, truth, texts, engine, 1.0, length))
        lenient = asyncio.create_task(steady(client, truth, texts, engine, 0.1, length))
        await asyncio.sleep(BEFORE_S)
        began = time.perf_counter()
        await fault(admin)
        took = time.perf_counter() - began
        return {
            "fault": name,
            "took_s": round(took, 2),
            "strict": summary(await strict, began),
            "lenient": summary(await lenient, began),
        }


async def until_answered(client: AsyncClient) -> None:
    for _ in range(300):
        try:
            await client.search("a question", k=1)
            return
        except RayLirError:
            await asyncio.sleep(0.2)
    raise RuntimeError("the service does not answer")


async def steady(
    client: AsyncClient, truth: Truth, texts: list[str], engine: str, min_coverage: float, seconds: float
) -> list[dict[str, Any]]:
    """Two searches at a time; each one's moment, whether it failed, its coverage, and whether its answer is the true one."""
    seen: list[dict[str, Any]] = []
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        while time.perf_counter() < end:
            number += 1
            text = texts[number % len(texts)]
            start = time.perf_counter()
            try:
                response = await client.search(text, k=K, engine=engine, min_coverage=min_coverage, deadline_ms=DEADLINE_MS)
                outcome = {"failed": False, "coverage": response.coverage, "wrong": not is_true(response, text, truth)}
            except RayLirError:
                outcome = {"failed": True, "coverage": 0.0, "wrong": False}
                await asyncio.sleep(0.05)
            now = time.perf_counter()
            seen.append({"at": now, "took": now - start, **outcome})

    await asyncio.gather(ask(0), ask(7))
    return seen


def summary(seen: list[dict[str, Any]], began: float) -> dict[str, Any]:
    hurt = [each["at"] - began for each in seen if each["failed"] or each["coverage"] < 1]
    failed = sum(each["failed"] for each in seen)
    return {
        "requests": len(seen),
        "failed": failed,
        "failed_share": round(failed / len(seen), 4),
        "partial": sum(0 < each["coverage"] < 1 for each in seen),
        "wrong": sum(each["wrong"] for each in seen),
        "recovered_after_s": round(max(hurt, default=0.0), 2),
        "longest_s": round(max(each["took"] for each in seen if each["at"] >= began), 2),
    }


def killing(part: str) -> Callable[[AsyncClient], Awaitable[None]]:
    """SIGKILL to the process of one of its replicas."""

    async def kill(_: AsyncClient) -> None:
        os.kill(process_of(part), signal.SIGKILL)

    return kill


def stopping(part: str) -> Callable[[AsyncClient], Awaitable[None]]:
    """SIGSTOP, and SIGCONT a few seconds later: slower than any deadline, and yet there."""

    async def stop(_: AsyncClient) -> None:
        process = process_of(part)
        os.kill(process, signal.SIGSTOP)
        try:
            await asyncio.sleep(PAUSE_S)
        finally:
            os.kill(process, signal.SIGCONT)

    return stop


async def refused(admin: AsyncClient) -> None:
    """Raises RuntimeError if the damaged version is served after all."""
    try:
        await admin.load_version(3)
    except Conflict:
        return
    raise RuntimeError("a version with a damaged file was loaded")


def process_of(part: str) -> int:
    actors = ray._private.state.actors().values()
    return next(each["Pid"] for each in actors if f"#{part}#" in each["Name"] and each["State"] == "ALIVE")
