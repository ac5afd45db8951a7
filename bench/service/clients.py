"""Clients that send requests to a service without pauses, and count and time the answers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answers:
    """The results of some clients.

    Attributes:
        seconds: Seconds of each request with status 200.
        per_second: Rate of these requests until the last of them.
        statuses: Number of replies by status.
    """

    seconds: list[float]
    per_second: float
    statuses: Counter[int]


async def ask(client: aiohttp.ClientSession, path: str, bodies: Sequence[Any], clients: int, seconds: float) -> Answers:
    """Send requests from several clients for some seconds; a client obeys Retry-After.

    Args:
        client: Session with the address of the service.
        path: Path of the route.
        bodies: JSON bodies; each client sends every n-th of them, for n clients.
        clients: Number of concurrent clients.
        seconds: Seconds after which no request starts.
    """
    taken: list[float] = []
    ended: list[float] = []
    statuses: Counter[int] = Counter()
    texts = [json.dumps(body) for body in bodies]
    began = time.perf_counter()

    async def one(number: int) -> None:
        while time.perf_counter() < began + seconds:
            number += clients
            start = time.perf_counter()
            async with client.post(path, data=texts[number % len(texts)], headers=HEADERS) as reply:
                await reply.read()
            statuses[reply.status] += 1
            if reply.status == 200:
                ended.append(time.perf_counter())
                taken.append(ended[-1] - start)
            else:
                await asyncio.sleep(float(reply.headers.get("Retry-After", 0)))

    await asyncio.gather(*(one(number) for number in range(clients)))
    return Answers(taken, round(len(ended) / (ended[-1] - began), 1), statuses)
