"""Encoding as a service: POST /encode against PyLate's server, with the same checkpoint, texts and clients.

    python -m bench.service.encode --index runs/index --dataset scifact [--work runs/bench] [--output bench/results]

The servers run on this machine one after the other, and clients share its cores. PyLate's server only encodes; it has
its own environment, made on first use. Clients send queries one by one without a pause.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from bench.comparison.environments import python_of
from bench.comparison.systems import TORCH
from bench.machine import machine
from bench.service.clients import ask
from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation.latency import percentiles_ms
from ray_lir.search.searcher import Searcher
from serving.ray_env import free_ports

CLIENTS = (1, 4, 16, 64)
STARTS_WITHIN_S = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--dataset", required=True, help="folder in the BEIR layout")
    parser.add_argument("--seconds", type=float, default=8, help="of each number of clients")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    texts = list(load_dataset(options.dataset).queries.values())[:200]
    checkpoint = saved(options.index, options.work / "served-checkpoint")
    python = python_of("pylate-server", options.work, TORCH)
    [port] = free_ports(1)
    servers = {
        "ray_lir": ([sys.executable, "-m", "serving", "--index", options.index, "--port", str(port)], "/encode", _request_body),
        "pylate": (
            [str(python), "-m", "pylate.server.server", "--host", "127.0.0.1", "--port", str(port), "--model", str(checkpoint)],
            "/v1/embeddings",
            lambda text: {"input": [text], "is_query": True, "model": str(checkpoint)},
        ),
    }
    rows, vectors = [], {}
    for name, (command, path, body) in servers.items():
        with running(command):
            rows += asyncio.run(_measure(name, f"http://127.0.0.1:{port}", path, [body(text) for text in texts], options.seconds, vectors))
    report = {"machine": machine(), "rows": rows, "cosine": agreement(vectors)}
    (options.output / "encoding_service.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "encoding_service.md").write_text(markdown(report))
    print(json.dumps(report))


def _request_body(text: str) -> dict[str, Any]:
    return {"texts": [text], "kind": "query"}


def saved(index: str, folder: Path) -> Path:
    """Save the index's checkpoint in a layout that PyLate loads."""
    if not folder.exists():
        contract = Searcher.open(index).manifest.contract
        Encoder.load(EncoderConfig(checkpoint=contract.checkpoint, precision="float32")).save(folder)
    return folder.absolute()


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a server in its own process group inside the context."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


async def _measure(
    name: str, url: str, path: str, bodies: list[dict[str, Any]], seconds: float, vectors: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return one row for each number of clients; store the vectors of the first text in `vectors`."""
    async with aiohttp.ClientSession(url) as client:
        vectors[name] = _first_matrix(await _started(client, path, bodies[0]))
        await _load(client, path, bodies, 4, 3)  # to warm up
        return [{"system": name} | await _load(client, path, bodies, each, seconds) for each in CLIENTS]


async def _started(client: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Wait for the first answer of a starting server."""
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        try:
            async with client.post(path, json=body) as reply:
                if reply.status == 200:
                    return await reply.json()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    sys.exit(f"error: {path} did not answer within {STARTS_WITHIN_S} seconds")


async def _load(client: aiohttp.ClientSession, path: str, bodies: list[dict[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    answers = await ask(client, path, bodies, clients, seconds)
    return {
        "clients": clients,
        "answers_per_second": answers.per_second,
        "latency_ms": percentiles_ms(answers.seconds),
        "not_200": answers.statuses.total() - answers.statuses[200],
    }


def _first_matrix(answer: dict[str, Any]) -> np.ndarray:
    matrix = answer["embeddings"][0] if "embeddings" in answer else answer["data"][0]["embedding"]
    return np.asarray(matrix, np.float32)


def agreement(vectors: dict[str, np.ndarray]) -> float | None:
    """Return the mean cosine of both servers' token vectors; None if their tokens differ."""
    a, b = vectors.values()
    return round(float((a * b).sum(axis=1).mean()), 5) if a.shape == b.shape else None


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    about = report["machine"]
    lines = [
        f"Queries of scifact, one in each request; {about['cpu']}, {about['cores']} cores, shared by clients and server. "
        f"Mean cosine of both servers' vectors: {report['cosine']}.",
        "",
        "| system | clients | answers/s | p50 ms | p99 ms | failed |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ms = row["latency_ms"]
        figures = f"{row['answers_per_second']} | {ms['p50']:.1f} | {ms['p99']:.1f} | {row['not_200']}"
        lines.append(f"| {row['system']} | {row['clients']} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
