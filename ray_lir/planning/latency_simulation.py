"""A simulation of the service under load: requests scatter to groups, wait for the slowest, and go on to the next stage.

The slowest of many decides, so the tail of one group is the middle of a hundred (Dean and Barroso, "The Tail at Scale", 2013).
Hedging sends a call that is late to a second replica; the first answer counts.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

ARRIVE, FINISH, HEDGE = range(3)


@dataclass(frozen=True)
class Service:
    """What is simulated. Times are milliseconds.

    Attributes:
        groups: all of them are asked, in every stage.
        replicas: copies of each group; each works on one call at a time.
        stages: what one group computes in each stage, on average.
        before: what precedes the first stage (encoding and planning).
        hop: a message there and back.
        sigma: spread of computing times, which are lognormal; 0 for none.
        straggler: share of calls that take `slowdown` times as long.
        hedge: after how long a late call is sent to another replica; None for never.
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
        """Share of a replica's time that one query a second takes, without stragglers and hedges."""
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
    queue: deque = field(default_factory=deque)

    @property
    def load(self) -> int:
        return len(self.queue) + self.busy


def simulate(service: Service, qps: float, num_requests: int = 2000, seed: int = 0) -> np.ndarray:
    """[num_requests] milliseconds from arrival to answer; requests arrive at random (Poisson) at `qps` a second.

    The first tenth is simulated too and left out: queues are empty when it begins.
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
        self.order = itertools.count()  # events at one time happen in the order in which they were made
        self.events = [(time + service.before, next(self.order), ARRIVE, request) for request, time in enumerate(self.arrivals.tolist())]
        self.noise = self._noise()

    def _noise(self) -> Iterator[float]:
        """Factors of computing times, with mean 1 but for stragglers."""
        service = self.service
        while True:
            factors = np.exp(self.rng.normal(-(service.sigma**2) / 2, service.sigma, 4096)) if service.sigma else np.ones(4096)
            yield from np.where(self.rng.random(4096) < service.straggler, factors * service.slowdown, factors).tolist()

    def run(self) -> np.ndarray:
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
            two = range(len(replicas)) if len(replicas) <= 2 else self.choices.sample(range(len(replicas)), 2)  # as Ray Serve does
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
        """Begins the first waiting call that nobody has answered meanwhile."""
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
