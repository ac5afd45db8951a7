"""Many small indexes in one service: memory of each, time of its first request, and the effect of a noisy neighbour.

    python -m bench.service.many_indexes --dataset scifact [--indexes 100] [--documents 300] [--output bench/results]

Builds one index of the first documents of the dataset, copies it, and serves the copies with `python -m serving --indexes`. Each copy has
files of its own, so no memory is shared between them except the encoder. Clients and service share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import httpx

import ray_lir
from bench.machine import machine
from bench.service.clients import ask
from ray_lir.corpus.datasets import load_dataset
from ray_lir.evaluation.latency import percentiles_ms
from serving.ray_env import free_ports
from tests.support.processes import descendants

K = 10
IDLE_S = 120
NOISY_CLIENTS = 32
QUIET_PAUSE_S = 0.05
QUIET_TOKEN, NOISY_TOKEN, LIMITED_TOKEN = (f"{name}-0123456789abcdef" for name in ("quiet", "noisy", "limited"))
TOKENS = {
    "read": [QUIET_TOKEN, NOISY_TOKEN, {"token": LIMITED_TOKEN, "indexes": ["index-001"], "requests_per_second": 10}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder in the BEIR layout")
    parser.add_argument("--indexes", type=int, default=100)
    parser.add_argument("--documents", type=int, default=300, help="of each index")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--output", default="bench/results", help="folder of many_indexes.json and many_indexes.md")
    options = parser.parse_args()
    dataset = load_dataset(options.dataset)
    queries = list(dataset.queries.values())[:200]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        index = ray_lir.Index.create(folder / "index", list(islice(rows(options.dataset), options.documents)), encoder="all-MiniLM-L6-v2")
        (folder / "indexes").mkdir()
        names = [f"index-{number:03}" for number in range(options.indexes)]
        for name in names:
            shutil.copytree(folder / "index", folder / "indexes" / name)
        (folder / "tokens.yaml").write_text(json.dumps(TOKENS))
        report = {
            "machine": machine(),
            "load_average_before": os.getloadavg()[0],
            "dataset": dataset.name,
            "documents": options.documents,
            "tokens": index.searcher.manifest.num_tokens,
            "file_bytes": sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file()),
            "indexes": options.indexes,
        }
        with served("--indexes", str(folder / "indexes"), "--tokens", str(folder / "tokens.yaml"), "--idle_s", str(IDLE_S)) as (url, pid):
            report["open"] = _opening(url, pid, names, queries)
            report["neighbour"] = asyncio.run(_neighbours(url, names[0], names[1], queries, options.seconds))
            time.sleep(IDLE_S + 15)
            report["idle"] = {"open": _num_open(url), **memory(pid)}
        with served("--index", str(folder / "index")) as (url, pid):
            httpx.post(f"{url}/search", json={"query": queries[0]}, timeout=60).raise_for_status()
            report["one_index"] = {**memory(pid), "processes": len(replicas(pid))}
    target = Path(options.output) / "many_indexes.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(json.dumps(report))


def rows(dataset: str) -> Iterator[dict[str, str]]:
    """Documents of a dataset in the BEIR layout, with id, title and text."""
    [corpus] = Path(dataset).glob("corpus.jsonl*")
    with gzip.open(corpus, "rt") if corpus.suffix == ".gz" else corpus.open() as lines:
        for line in lines:
            row = json.loads(line)
            yield {name: row.get(name, "") for name in ("_id", "title", "text")}


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run `python -m serving` and yield its address and process id."""
    [port] = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *arguments, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout and "is ready" in process.stdout.readline(), "the service did not start"
        time.sleep(10)  # Ray still starts and registers things
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def replicas(pid: int) -> list[int]:
    """Processes that hold parts of the service."""
    return [child for child, name in descendants(pid).items() if name.startswith("ray::ServeReplica")]


def memory(pid: int) -> dict[str, float]:
    """MB of all replicas: `private` is their own memory, and `mapped` their part of mapped files, such as indexes and libraries."""
    total = {"private_mb": 0.0, "mapped_mb": 0.0}
    for child in replicas(pid):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()[1:])
        kb = {name: int(fields[name].split()[0]) for name in ("Pss", "Pss_Anon")}
        total["private_mb"] += kb["Pss_Anon"] / 1000
        total["mapped_mb"] += (kb["Pss"] - kb["Pss_Anon"]) / 1000
    return {name: round(value, 1) for name, value in total.items()}


def _num_open(url: str) -> int:
    reply = httpx.get(f"{url}/indexes", headers=_bearer(QUIET_TOKEN))
    return sum(each["state"] == "open" for each in reply.json()["indexes"])


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _opening(url: str, pid: int, names: Sequence[str], queries: Sequence[str]) -> dict[str, Any]:
    """Search each index once and again, and measure the memory on the way."""
    first, second, seen = [], [], {0: memory(pid)}
    with httpx.Client(base_url=url, headers=_bearer(QUIET_TOKEN), timeout=120) as client:
        for number, name in enumerate(names, 1):
            for seconds in (first, second):
                start = time.perf_counter()
                client.post(f"/indexes/{name}/search", json={"query": queries[number % len(queries)], "k": K}).raise_for_status()
                seconds.append(time.perf_counter() - start)
            if number in (1, 2, 10, 50, len(names)):
                seen[number] = memory(pid)
        estimated = max(each["num_bytes"] or 0 for each in client.get("/indexes").json()["indexes"])
    return {
        "memory": seen,
        "estimated_mb_each": round(estimated / 1e6, 2),
        "very_first_ms": round(1000 * first[0], 1),
        "first_ms": percentiles_ms(first[1:]),
        "second_ms": percentiles_ms(second[1:]),
    }


async def _neighbours(url: str, quiet: str, noisy: str, queries: Sequence[str], seconds: float) -> dict[str, Any]:
    """Latency of one client of an index, alone and beside clients without pauses: of another index, of the same one, and with a rate."""
    return {
        "alone": await _beside(url, quiet, None, queries, seconds),
        "another index": await _beside(url, quiet, (noisy, NOISY_TOKEN), queries, seconds),
        "another index, 10 requests a second": await _beside(url, quiet, (noisy, LIMITED_TOKEN), queries, seconds),
        "the same index": await _beside(url, quiet, (quiet, NOISY_TOKEN), queries, seconds),
    }


async def _beside(url: str, quiet: str, noisy: tuple[str, str] | None, queries: Sequence[str], seconds: float) -> dict[str, Any]:
    bodies = [{"query": query, "k": K} for query in queries]
    found: dict[str, Any] = {}

    async def load() -> None:
        if noisy:
            name, token = noisy
            async with aiohttp.ClientSession(url, headers=_bearer(token), connector=aiohttp.TCPConnector(limit=NOISY_CLIENTS)) as client:
                answers = await ask(client, f"/indexes/{name}/search", bodies, NOISY_CLIENTS, seconds + 1)
            found["noisy"] = {"per_second": answers.per_second, "statuses": {str(each): n for each, n in sorted(answers.statuses.items())}}

    async def measure() -> None:
        await asyncio.sleep(0.5)
        taken, end = [], time.perf_counter() + seconds
        async with aiohttp.ClientSession(url, headers=_bearer(QUIET_TOKEN)) as client:
            number = 0
            while time.perf_counter() < end:
                start = time.perf_counter()
                async with client.post(f"/indexes/{quiet}/search", json=bodies[number % len(bodies)]) as reply:
                    await reply.read()
                    reply.raise_for_status()
                taken.append(time.perf_counter() - start)
                number += 1
                await asyncio.sleep(QUIET_PAUSE_S)
        found["requests"], found["latency_ms"] = len(taken), percentiles_ms(taken)

    await asyncio.gather(load(), measure())
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    about, opened = report["machine"], report["open"]
    seen = opened["memory"]
    last, begin = seen[max(seen)], seen[1]
    alone = report["one_index"]
    each = (last["private_mb"] - begin["private_mb"] + last["mapped_mb"] - begin["mapped_mb"]) / (max(seen) - 1)
    lines = [
        "# Many small indexes in one service",
        "",
        f"{report['indexes']} indexes of {report['documents']} {report['dataset']} documents each ({report['tokens']:,} tokens, "
        f"{report['file_bytes'] / 1e6:.1f} MB of files), all-MiniLM-L6-v2, k {K}; {about['cpu']}, {about['cores']} cores, which "
        f"clients and service share. Load average before: {report['load_average_before']:.1f}.",
        "",
        "## Memory",
        "",
        "| open indexes | private MB | mapped MB |",
        "|---|---|---|",
        *(f"| {number} | {at['private_mb']} | {at['mapped_mb']} |" for number, at in seen.items()),
        f"| {report['idle']['open']}, after {IDLE_S} s without requests | {report['idle']['private_mb']} | {report['idle']['mapped_mb']} |",
        "",
        f"Each index takes {each:.2f} MB, mapped files included; `memory_gb` counts {opened['estimated_mb_each']} MB. "
        f"A service of one of these indexes has {alone['processes']} processes with {alone['private_mb']} MB of private and "
        f"{alone['mapped_mb']} MB of mapped memory.",
        "",
        "## First request",
        "",
        "| request | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|",
        f"| very first of the service, which loads the encoder | {opened['very_first_ms']} | | |",
        *(
            f"| {name} of an index | {opened[key]['p50']} | {opened[key]['p95']} | {opened[key]['p99']} |"
            for name, key in (("first", "first_ms"), ("second", "second_ms"))
        ),
        "",
        "## A noisy neighbour",
        "",
        f"One client with pauses of {1000 * QUIET_PAUSE_S:.0f} ms, beside {NOISY_CLIENTS} clients without pauses.",
        "",
        "| the other clients use | p50 ms | p95 ms | p99 ms | their answers/s |",
        "|---|---|---|---|---|",
    ]
    for name, found in report["neighbour"].items():
        latency, noisy = found["latency_ms"], found.get("noisy", {}).get("per_second", "")
        kind = "no index" if name == "alone" else name
        lines.append(f"| {kind} | {latency['p50']} | {latency['p95']} | {latency['p99']} | {noisy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
