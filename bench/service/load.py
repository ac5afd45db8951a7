"""Load and faults of the service: its overhead over a search, its behaviour under overload, and with lost parts.

    python -m bench.service.load --index runs/index --dataset scifact [--output bench/results] [--optimized]

It starts the service on its own Ray cluster on this machine. The client is this process; client and service
share the machine's cores. With --optimized, Ray Serve gets the environment variables that
`python -m serving` sets.
Every answer under faults is compared with a `Searcher` in process.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import ray
import torch
from ray import serve

from bench.faults import service as service_faults
from bench.machine import machine
from bench.service.clients import ask
from ray_lir.corpus.datasets import load_dataset
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation.latency import percentiles_ms
from ray_lir.search.searcher import Searcher
from serving.app import build
from serving.ray_env import RAY_ENV, free_ports, ray_env

K = 10
SETTLE_S = 10.0
"""Seconds to wait after warm-up, because Ray still starts processes meanwhile."""
PAUSE_S = 0.01
"""Seconds about as long as a part of the service is idle between two searches of one client."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--dataset", required=True, help="folder in the BEIR layout")
    parser.add_argument("--output", default="bench/results", help="folder of service.json and service.md")
    parser.add_argument("--engine", default="scan")
    parser.add_argument("--num-groups", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8, help="of each load, and after each fault")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--parts", nargs="+", choices=("load", "faults"), default=["load", "faults"])
    parser.add_argument("--optimized", action="store_true", help="set Ray Serve's environment variables, as python -m serving does")
    options = parser.parse_args()
    if options.optimized and not os.environ.keys() >= RAY_ENV.keys():
        os.execve(sys.executable, [sys.executable, "-m", "bench.service.load", *sys.argv[1:]], os.environ | ray_env())
    texts = list(load_dataset(options.dataset).queries.values())[:200]
    target = Path(options.output) / "service.json"
    report = json.loads(target.read_text()) if target.exists() else {}
    report |= {"machine": machine(), "engine": options.engine, "k": K, "num_groups": options.num_groups}
    mode = "optimized" if options.optimized else "with its defaults"
    if "load" in options.parts:
        loaded: dict[str, Any] = {"load_average_before": os.getloadavg()[0]}
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    [port] = free_ports(1)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        start = partial(run, port)
        if "load" in options.parts:
            url = start({"index": options.index, "num_groups": options.num_groups})
            loaded |= asyncio.run(_loads(url, options.index, texts, options.engine, options.concurrency, options.seconds))
            report["load"] = report.get("load", {}) | {mode: loaded}
            _write(report, target)
        if "faults" in options.parts:
            with tempfile.TemporaryDirectory() as folder:
                found = service_faults.measure(
                    options.index, Path(folder), texts[:20], options.engine, options.num_groups, options.seconds, start
                )
                report["faults"] = {"mode": mode, "found": found}
                _write(report, target)
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(report))


def _write(report: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))


def run(port: int, arguments: dict[str, Any]) -> str:
    """Replace the running application; return the address."""
    serve.run(build(arguments))
    return f"http://127.0.0.1:{port}"


def on_one_core(measure: Callable[[], Any]) -> Any:
    """Use one thread on one core, like every part of the service."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


class InProcess:
    """Encode a query, search, and read the documents' fields, without a service."""

    def __init__(self, index: str, engine: str):
        self.searcher = Searcher.open(index)
        self.encoder = Encoder.for_contract(self.searcher.manifest.contract)
        self.engine = engine

    def seconds(self, text: str, pause: float = 0.0) -> float:
        """Return the milliseconds of one query after a pause, when other data fills the caches."""
        time.sleep(pause)
        start = time.perf_counter()
        [answer] = self.searcher.search(self.encoder.encode_queries([text]), K, self.engine)
        self.searcher.documents(answer.documents)
        return time.perf_counter() - start


async def _one_client(url: str, index: str, texts: list[str], engine: str, rounds: int = 5) -> dict[str, Any]:
    """Measure searches of one client and the same searches in process, alternately, so that other work affects both."""
    local = InProcess(index, engine)
    on_one_core(lambda: [local.seconds(text) for text in texts])  # to warm up
    inside: dict[str, list[float]] = {"one core": [], "one core, after pauses": [], "all cores": []}
    taken: list[float] = []
    empty: list[float] = []
    timings: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(url) as client:
        for _ in range(rounds):
            inside["one core"] += on_one_core(lambda: [local.seconds(text) for text in texts])
            inside["one core, after pauses"] += on_one_core(lambda: [local.seconds(text, PAUSE_S) for text in texts])
            inside["all cores"] += [local.seconds(text) for text in texts]
            for text in texts:
                start = time.perf_counter()
                async with client.post("/search", json={"query": text, "k": K, "engine": engine}) as reply:
                    answer = await reply.json()
                taken.append(time.perf_counter() - start)
                timings.append(answer["timings"])
            for _ in texts:
                start = time.perf_counter()
                async with client.get("/health/live") as reply:
                    await reply.read()
                empty.append(time.perf_counter() - start)

    def middle(value: Any) -> float:
        return round(sorted(map(value, timings))[len(timings) // 2], 2)

    return {
        "in_process_ms": {cores: percentiles_ms(each) for cores, each in inside.items()},
        "latency_ms": percentiles_ms(taken),
        "encode": middle(lambda each: each["encode"]),
        "plan": middle(lambda each: each["plan"]),
        "stages": middle(lambda each: sum(each["stages"])),
        "documents": middle(lambda each: each["documents"]),
        "in_gateway": middle(lambda each: each["total"]),
        "empty_request": percentiles_ms(empty)["p50"],
    }


async def _loads(url: str, index: str, texts: list[str], engine: str, levels: list[int], seconds: float) -> dict[str, Any]:
    await _load(url, texts, engine, 2, 3)  # to warm up
    await asyncio.sleep(SETTLE_S)
    return {
        "one_client": await _one_client(url, index, texts[:40], engine),
        "load": [await _load(url, texts, engine, each, seconds) for each in levels],
    }


async def _load(url: str, texts: list[str], engine: str, concurrency: int, seconds: float) -> dict[str, Any]:
    bodies = [{"query": text, "k": K, "engine": engine} for text in texts]
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=concurrency)) as client:
        answers = await ask(client, "/search", bodies, concurrency, seconds)
    return {
        "concurrency": concurrency,
        "queries_per_second": answers.per_second,
        "latency_ms": percentiles_ms(answers.seconds),
        "statuses": {str(status): number for status, number in sorted(answers.statuses.items())},
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""
    about = report["machine"]
    lines = [
        "# The service under load and faults",
        "",
        f"scifact (5,183 documents), engine {report['engine']}, k {report['k']}, {report['num_groups']} shard groups; {about['cpu']}, "
        f"{about['cores']} cores, shared by the client and all parts of the service.",
        "",
    ]
    for mode, loaded in report.get("load", {}).items():
        lines += load_lines(mode, loaded)
    if "faults" in report:
        lines += [
            f"Serve {report['faults']['mode']}, under a steady load of two clients that require full coverage within 2 s (strict) and "
            "two that accept a tenth of the index (lenient):",
            "",
            "| fault | clients | requests | failed | partial | wrong | last failure or partial answer after | longest request |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for fault in report["faults"]["found"]:
            for kind in ("strict", "lenient"):
                each = fault[kind]
                lines.append(
                    f"| {fault['fault']} | {kind} | {each['requests']} | {each['failed_share']:.2%} | {each['partial']} | {each['wrong']} "
                    f"| {each['recovered_after_s']:.1f} s | {each['longest_s']:.1f} s |"
                )
    return "\n".join(lines) + "\n"


def load_lines(mode: str, loaded: dict[str, Any]) -> list[str]:
    """Return the rows of one mode of Serve under load."""
    one = loaded["one_client"]
    inside = "; ".join(f"p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms on {cores}" for cores, ms in one["in_process_ms"].items())
    lines = [
        f"## Serve {mode}",
        "",
        "One query at a time, alternately in process and served. "
        f"In process: {inside}. "
        f"Served: p50 {one['latency_ms']['p50']:.1f} ms, "
        f"p99 {one['latency_ms']['p99']:.1f} ms (a request without a search: {one['empty_request']:.1f} ms). "
        f"The load average before was {loaded['load_average_before']:.1f}.",
        "",
        "| clients | answers/s | p50 ms | p95 ms | p99 ms | answered | 429 | others |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in loaded["load"]:
        statuses, ms = each["statuses"], each["latency_ms"]
        failed = sum(statuses.values()) - statuses.get("200", 0) - statuses.get("429", 0)
        lines.append(
            f"| {each['concurrency']} | {each['queries_per_second']} | {ms['p50']:.1f} | {ms['p95']:.1f} | {ms['p99']:.1f} "
            f"| {statuses.get('200', 0)} | {statuses.get('429', 0)} | {failed} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
