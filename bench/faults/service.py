"""Faults of the service under a steady load: failures, time to recover, and wrong answers."""

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
"""Seconds of load after a change of version, which needs no recovery."""
DEADLINE_MS = 2000
PAUSE_S = 4.0
TOLERANCE = 2e-3
"""Relative tolerance of scores: the last bits of a query's vectors depend on the encoder's batch."""
READ, ADMIN = "read-0123456789abcdef", "admin-0123456789abcdef"

Truth = dict[tuple[int, frozenset[str], str], tuple[TopK, float]]
"""The best documents and the coverage, by version, missing groups and query."""


def measure(
    index: str, folder: Path, texts: list[str], engine: str, num_groups: int, seconds: float, start: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Measure the service under each fault. Version 2 of the index lacks a tenth of the documents; version 3 is damaged.

    Args:
        index: Folder of the index; a copy gets the other versions.
        folder: Folder for the copy and the tokens.
        texts: Texts of the queries.
        engine: Engine of the searches.
        num_groups: Groups of shards.
        seconds: Seconds of load after a fault.
        start: Starts the service with these arguments and returns its URL.

    Returns:
        One record for each fault: requests, failures, wrong answers and seconds to recover.
    """
    copy = versions(index, folder)
    truth = _truths(copy, texts, engine, num_groups)
    (folder / "tokens.yaml").write_text(f"read: [{READ}]\nadmin: [{ADMIN}]\n")
    arguments = {"index": copy, "version": 1, "num_groups": num_groups, "tokens": str(folder / "tokens.yaml")}
    losses = {
        "a group is killed": killing("ShardGroup-0"),
        "the encoder is killed": killing("QueryEncoder"),
        "the gateway is killed": killing("Gateway"),
        f"a group is stopped for {PAUSE_S:.0f} s": stopping("ShardGroup-1"),
    }
    changes = {
        "a damaged version is loaded": refused,
        "another version is loaded": lambda admin: admin.load_version(2),
        "the version is rolled back": lambda admin: admin.roll_back(),
        "a canary answers half of the requests": lambda admin: admin.load_version(2, traffic_fraction=0.5),
        "the canary is promoted": lambda admin: admin.promote(),
    }
    losses_of_two = {
        "one of a group's two replicas is killed": killing("ShardGroup-0"),
        f"one of a group's two replicas is stopped for {PAUSE_S:.0f} s": stopping("ShardGroup-1"),
    }
    found = []
    for replicas, faults, length in ((1, losses, seconds), (1, changes, CHANGE_S), (2, losses_of_two, seconds)):
        url = start({**arguments, "replicas": replicas})
        found += [asyncio.run(_under_load(url, name, fault, truth, texts, engine, length)) for name, fault in faults.items()]
    return found


def versions(index: str, folder: Path) -> str:
    """Return a copy of the index with two more versions."""
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


def _truths(index: str, texts: list[str], engine: str, num_groups: int) -> Truth:
    """Search in process for every set of missing groups, except all groups.

    The rankings have 3 K documents, so that a document that rounding moves into the top K is known too.
    """
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


def _is_true(response: SearchResponse, text: str, truth: Truth) -> bool:
    top, coverage = truth[response.index_version, frozenset(response.missing), text]
    hits = response.results[0]
    scores = dict(zip(top.documents.tolist(), top.scores.tolist(), strict=True))
    ranks = np.allclose([hit.score for hit in hits], top.scores[: len(hits)], rtol=TOLERANCE)
    known = all(abs(hit.score - scores.get(hit.number, np.inf)) <= TOLERANCE * abs(hit.score) for hit in hits)
    return len(hits) == K and bool(ranks) and known and abs(response.coverage - coverage) < 1e-9


async def _under_load(
    url: str, name: str, fault: Callable[[AsyncClient], Awaitable[Any]], truth: Truth, texts: list[str], engine: str, seconds: float
) -> dict[str, Any]:
    """Run strict and lenient clients before, during and after a fault."""
    async with AsyncClient(url, READ) as client, AsyncClient(url, ADMIN) as admin:
        await _until_answered(client)
        length = BEFORE_S + seconds
        strict = asyncio.create_task(_steady(client, truth, texts, engine, 1.0, length))
        lenient = asyncio.create_task(_steady(client, truth, texts, engine, 0.1, length))
        await asyncio.sleep(BEFORE_S)
        began = time.perf_counter()
        await fault(admin)
        took = time.perf_counter() - began
        return {
            "fault": name,
            "took_s": round(took, 2),
            "strict": _summary(await strict, began),
            "lenient": _summary(await lenient, began),
        }


async def _until_answered(client: AsyncClient) -> None:
    for _ in range(300):
        try:
            await client.search("a question", k=1)
            return
        except RayLirError:
            await asyncio.sleep(0.2)
    raise RuntimeError("the service does not answer")


async def _steady(
    client: AsyncClient, truth: Truth, texts: list[str], engine: str, min_coverage: float, seconds: float
) -> list[dict[str, Any]]:
    """Run two searches at a time; return time, failure, coverage and correctness of each."""
    seen: list[dict[str, Any]] = []
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        while time.perf_counter() < end:
            number += 1
            text = texts[number % len(texts)]
            start = time.perf_counter()
            try:
                response = await client.search(text, k=K, engine=engine, min_coverage=min_coverage, deadline_ms=DEADLINE_MS)
                outcome = {"failed": False, "coverage": response.coverage, "wrong": not _is_true(response, text, truth)}
            except RayLirError:
                outcome = {"failed": True, "coverage": 0.0, "wrong": False}
                await asyncio.sleep(0.05)
            now = time.perf_counter()
            seen.append({"at": now, "took": now - start, **outcome})

    await asyncio.gather(ask(0), ask(7))
    return seen


def _summary(seen: list[dict[str, Any]], began: float) -> dict[str, Any]:
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
    """Return a fault that sends SIGKILL to the process of a replica."""

    async def kill(_: AsyncClient) -> None:
        os.kill(_process_of(part), signal.SIGKILL)

    return kill


def stopping(part: str) -> Callable[[AsyncClient], Awaitable[None]]:
    """Return a fault that stops a replica with SIGSTOP for longer than any deadline, then continues it."""

    async def stop(_: AsyncClient) -> None:
        process = _process_of(part)
        os.kill(process, signal.SIGSTOP)
        try:
            await asyncio.sleep(PAUSE_S)
        finally:
            os.kill(process, signal.SIGCONT)

    return stop


async def refused(admin: AsyncClient) -> None:
    """Try to load the damaged version; raise RuntimeError if the service accepts it."""
    try:
        await admin.load_version(3)
    except Conflict:
        return
    raise RuntimeError("a version with a damaged file was loaded")


def _process_of(part: str) -> int:
    actors = ray._private.state.actors().values()
    return next(each["Pid"] for each in actors if f"#{part}#" in each["Name"] and each["State"] == "ALIVE")
