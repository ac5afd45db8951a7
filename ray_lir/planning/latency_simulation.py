"""Simulates the service under load: in each stage a request calls all groups and waits for the slowest.

With many groups, rare slow calls of one group delay most requests (Dean and Barroso, "The Tail at Scale", 2013). Hedging sends a late
call to a second replica; the first result counts.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ARRIVE, FINISH, HEDGE = range(3)


@dataclass(frozen=True)
class Service:
    """The simulated service. Times are in milliseconds.

    Attributes:
        groups: Number of groups; every stage calls all of them.
        replicas: Replicas of each group; each runs one call at a time.
        stages: Mean computing time of one group in each stage.
        before: Time before the first stage (encoding and planning).
        hop: Time of a message and its reply.
        sigma: Standard deviation of the logarithm of computing times, which are lognormal; 0 for constant times.
        straggler: Fraction of the calls that are stragglers.
        slowdown: Factor by which stragglers take longer.
        hedge: Time after which a late call is sent to another replica. None: never.
    """

    groups: int
    replicas: int
    stages: tuple[float, ...]
    before: float = 0.0
    hop: float = 0.0
    sigma: float = 0.25
    straggler: float = 0.002
    slowdown: float = 8.0
    hedge: float | None = None

    @property
    def utilisation_per_qps(self) -> float:
        """Fraction of a replica's time that one query a second uses, without stragglers and hedged calls."""
        return sum(self.stages) / 1000 / self.replicas


@dataclass
class _Call:
    """One stage of one request on one group."""

    request: int
    group: int
    replica: int
    done: bool = False


@dataclass
class _Replica:
    busy: bool = False
    queue: deque[_Call] = field(default_factory=deque)

    @property
    def load(self) -> int:
        return len(self.queue) + self.busy


def simulate(service: Service, qps: float, num_requests: int = 2000, seed: int = 0) -> np.ndarray:
    """Return the latencies of requests that arrive at random (a Poisson process).

    The first tenth of all requests is simulated but left out, because queues are empty when it starts.

    Args:
        service: The service.
        qps: Requests a second.
        num_requests: Number of latencies to return.
        seed: Seed of arrivals, computing times and replica choices.

    Returns:
        [num_requests] float64, milliseconds from arrival to reply.
    """
    return _Simulation(service, qps, num_requests, seed).run()


class _Simulation:
    def __init__(self, service: Service, qps: float, num_requests: int, seed: int):
        self.service = service
        self.rng = np.random.default_rng(seed)
        self.choices = random.Random(seed)
        self.warmup = num_requests // 9
        total = num_requests + self.warmup
        self.arrivals = np.cumsum(self.rng.exponential(1000 / qps, total))
        self.answered = np.zeros(total)
        self.stage = [0] * total
        self.waiting = [0] * total
        self.replicas = [[_Replica() for _ in range(service.replicas)] for _ in range(service.groups)]
        self.order = itertools.count()  # events with equal times are processed in the order of their creation
        self.events: list[tuple[float, int, int, Any]] = [
            (time + service.before, next(self.order), ARRIVE, request) for request, time in enumerate(self.arrivals.tolist())
        ]
        self.noise = self._noise()

    def _noise(self) -> Iterator[float]:
        """Factors of computing times, with mean 1 except for stragglers."""
        service = self.service
        while True:
            factors = np.exp(self.rng.normal(-(service.sigma**2) / 2, service.sigma, 4096)) if service.sigma else np.ones(4096)
            yield from np.where(self.rng.random(4096) < service.straggler, factors * service.slowdown, factors).tolist()

    def run(self) -> np.ndarray:
        """Process all events and return the latencies."""
        heapq.heapify(self.events)
        while self.events:
            now, _, kind, subject = heapq.heappop(self.events)
            if kind == ARRIVE:
                self._scatter(now, subject)
            elif kind == FINISH:
                self._finish(now, *subject)
            elif not subject.done:
                self._send(now, subject, (subject.replica + 1) % self.service.replicas)
        return (self.answered - self.arrivals)[self.warmup :]

    def _at(self, time: float, kind: int, subject: object) -> None:
        heapq.heappush(self.events, (time, next(self.order), kind, subject))

    def _scatter(self, now: float, request: int) -> None:
        self.waiting[request] = self.service.groups
        for group, replicas in enumerate(self.replicas):
            two = range(len(replicas)) if len(replicas) <= 2 else self.choices.sample(range(len(replicas)), 2)  # as Ray Serve chooses
            replica = min(two, key=lambda number: replicas[number].load)
            call = _Call(request, group, replica)
            self._send(now, call, replica)
            if self.service.hedge is not None and len(replicas) > 1:
                self._at(now + self.service.hedge, HEDGE, call)

    def _send(self, now: float, call: _Call, number: int) -> None:
        replica = self.replicas[call.group][number]
        replica.queue.append(call)
        if not replica.busy:
            self._next(now, replica)

    def _next(self, now: float, replica: _Replica) -> None:
        """Starts the first waiting call that the other replica has not answered yet."""
        while replica.queue:
            call = replica.queue.popleft()
            if not call.done:
                replica.busy = True
                self._at(now + self.service.stages[self.stage[call.request]] * next(self.noise), FINISH, (replica, call))
                return
        replica.busy = False

    def _finish(self, now: float, replica: _Replica, call: _Call) -> None:
        self._next(now, replica)
        if call.done:
            return  # the other replica was faster
        call.done = True
        self.waiting[call.request] -= 1
        if self.waiting[call.request] == 0:
            self.stage[call.request] += 1
            after = now + self.service.hop
            if self.stage[call.request] < len(self.service.stages):
                self._at(after, ARRIVE, call.request)
            else:
                self.answered[call.request] = after
