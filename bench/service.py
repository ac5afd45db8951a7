"""Load and faults of the service: what it adds to a search, what it does when too much is asked, and when parts are lost.

    python bench/service.py --index runs/index --queries scifact/queries.jsonl [--output bench/results/service.json]

Starts the service on a Ray cluster of its own on this machine; the client is this process, the service is others.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

from ray_lir.client import AsyncClient
from ray_lir.errors import Overloaded, RayLirError
from ray_lir.evaluation.latency import percentiles_ms
from ray_lir.models.encoder import Encoder
from ray_lir.search import Searcher
from serving.app import build

K = 10
FAULTS = ("ShardGroup-0", "QueryEncoder", "Gateway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--queries", required=True, help="JSON lines with a field text")
    parser.add_argument("--output", default="bench/results/service.json")
    parser.add_argument("--engine", default="scan")
    parser.add_argument("--num-groups", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="of each load, and before and after each fault")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in Path(options.queries).read_text().splitlines()][:200]
    report = {
        "index": options.index,
        "engine": options.engine,
        "k": K,
        "num_groups": options.num_groups,
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine(), "load_before": os.getloadavg()},
        "in_process": in_process(options.index, texts, options.engine),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"index": options.index, "num_groups": options.num_groups}))
    try:
        url = f"http://127.0.0.1:{port}"
        report["load"] = [asyncio.run(load(url, texts, options.engine, number, options.seconds)) for number in options.concurrency]
        report["faults"] = [asyncio.run(fault(url, texts, options.engine, part, options.seconds)) for part in FAULTS]
    finally:
        serve.shutdown()
        ray.shutdown()
    Path(options.output).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def in_process(index: str, texts: list[str], engine: str) -> dict[str, Any]:
    """Milliseconds of encoding and searching one query at a time, without a service."""
    searcher = Searcher.open(index)
    encoder = Encoder.for_contract(searcher.manifest.contract)
    seconds = []
    for text in texts[:50]:
        start = time.perf_counter()
        [answer] = searcher.search(encoder.encode_queries([text]), K, engine)
        searcher.documents(answer.documents)
        seconds.append(time.perf_counter() - start)
    return percentiles_ms(seconds[5:])


async def load(url: str, texts: list[str], engine: str, concurrency: int, seconds: float) -> dict[str, Any]:
    """Clients that ask without a pause; those that are refused wait a tenth of a second, as polite ones would."""
    taken: list[float] = []
    outcomes: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    async def ask(client: AsyncClient, number: int) -> None:
        while time.perf_counter() < end:
            number += concurrency
            start = time.perf_counter()
            try:
                await client.search(texts[number % len(texts)], k=K, engine=engine)
                taken.append(time.perf_counter() - start)
                outcomes["ok"] += 1
            except Overloaded:
                outcomes["refused"] += 1
                await asyncio.sleep(0.1)
            except RayLirError as error:
                outcomes[type(error).__name__] += 1

    async with AsyncClient(url, max_connections=concurrency) as client:
        await asyncio.gather(*(ask(client, number) for number in range(concurrency)))
    return {
        "concurrency": concurrency,
        "queries_per_second": round(outcomes["ok"] / seconds, 1),
        "latency_ms": percentiles_ms(taken),
        "outcomes": dict(outcomes),
    }


async def fault(url: str, texts: list[str], engine: str, part: str, seconds: float) -> dict[str, Any]:
    """A replica is killed under a steady load of strict searches and of searches that can do with part of the index."""
    truth = {}
    async with AsyncClient(url) as client:
        for text in texts[:20]:
            truth[text] = ids(await client.search(text, k=K, engine=engine))
        strict = asyncio.create_task(steady(client, truth, engine, 1.0, 2 * seconds))
        lenient = asyncio.create_task(steady(client, truth, engine, 0.1, 2 * seconds))
        await asyncio.sleep(seconds)
        killed = time.perf_counter()
        kill(part)
        return {"killed": part, "strict": summary(await strict, killed), "lenient": summary(await lenient, killed)}


def ids(response: Any) -> list[str]:
    return [hit.doc_id for hit in response.results[0]]


async def steady(
    client: AsyncClient, truth: dict[str, list[str]], engine: str, min_coverage: float, seconds: float
) -> list[dict[str, Any]]:
    """Four searches at a time; each one's moment, whether it failed, its coverage, and whether a whole answer is the true one."""
    seen: list[dict[str, Any]] = []
    end = time.perf_counter() + seconds

    async def ask() -> None:
        while time.perf_counter() < end:
            for text, expected in truth.items():
                try:
                    response = await client.search(text, k=K, engine=engine, min_coverage=min_coverage, deadline_ms=2000)
                    wrong = response.coverage == 1 and len(set(ids(response)) & set(expected)) < K - 1
                    seen.append({"at": time.perf_counter(), "failed": False, "coverage": response.coverage, "wrong": wrong})
                except RayLirError:
                    seen.append({"at": time.perf_counter(), "failed": True, "coverage": 0.0, "wrong": False})
                    await asyncio.sleep(0.02)

    await asyncio.gather(*(ask() for _ in range(4)))
    return seen


def summary(seen: list[dict[str, Any]], killed: float) -> dict[str, Any]:
    after = [each for each in seen if each["at"] >= killed]
    hurt = [each["at"] - killed for each in after if each["failed"] or each["coverage"] < 1]
    return {
        "requests": len(seen),
        "failed": sum(each["failed"] for each in seen),
        "partial": sum(0 < each["coverage"] < 1 for each in seen),
        "wrong": sum(each["wrong"] for each in seen),
        "recovered_after_s": round(max(hurt, default=0.0), 2),
        "mean_coverage_after": round(float(np.mean([each["coverage"] for each in after])), 4) if after else None,
    }


def kill(part: str) -> None:
    """Ends one replica of a deployment as a lost machine would."""
    name = next(each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if f"#{part}#" in each["name"])
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


if __name__ == "__main__":
    main()
