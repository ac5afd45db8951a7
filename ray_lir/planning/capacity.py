"""How many machines a collection, a load and a latency take: the smallest service whose simulated 95th percentile is in time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ray_lir.planning.latency_simulation import Service, simulate
from ray_lir.planning.sizes import Collection, codec_memory, posting_memory, predict_bytes
from ray_lir.planning.workload import QueryWork, query_work

ENGINES = ("exact", "scan", "warp")
PROBING = ("warp",)
"""Those of them that hold postings in memory."""
UTILISATION = 0.6
"""Of a replica's time, at most: beyond it queues make most of the latency."""
MEMORY_SHARE = 0.75
"""Of a machine's memory that arrays may fill; the rest is for the system, Ray and requests."""
SIMULATED_CALLS = 12_000
MIN_REQUESTS = 200
GROWTH = 1.4
MAX_GROUPS = 512
"""More are not tried, unless memory asks for them: every search waits for the slowest of them all."""
MAX_MACHINES = 10_000
"""An engine that keeps more than these busy is left out, unless it is the only one."""


@dataclass(frozen=True)
class Load:
    """What is asked of the service.

    Attributes:
        p95_ms: a request's 95th percentile, from arrival to answer.
        before_ms: encoding a query.
        hop_ms: a round of messages between gateway and groups.
    """

    qps: float
    p95_ms: float
    before_ms: float
    hop_ms: float
    k: int = 10


@dataclass(frozen=True)
class Machine:
    """A machine of the service.

    Attributes:
        cores: that compute; two hardware threads of one core count once.
        kernels: name of a set in engines.cost.COSTS.
    """

    cores: int
    memory_bytes: float
    kernels: str


@dataclass(frozen=True)
class Capacity:
    """A service: one replica of one group fills a machine.

    Attributes:
        percentiles: simulated p50, p95 and p99 in milliseconds.
        enough: whether p95 is in time.
    """

    engine: str
    work: QueryWork
    service: Service
    memory_a_group: float
    percentiles: dict[str, float]
    enough: bool

    @property
    def nodes(self) -> int:
        return self.service.groups * self.service.replicas


def smallest(of: Collection, load: Load, machine: Machine, engines: tuple[str, ...] = ENGINES) -> Capacity:
    """The fewest machines that are in time with any of the engines; if none is, what comes nearest."""
    work = {engine: query_work(engine, of, machine.kernels, load.k) for engine in engines}
    found: list[Capacity] = []
    for engine in sorted(engines, key=lambda name: sum(work[name].stages)):
        best = min((capacity.nodes for capacity in found if capacity.enough), default=math.inf)
        busy = _busy_machines(work[engine], load, machine)
        if not found or busy < min(best, MAX_MACHINES):
            found.append(_with_engine(engine, of, load, machine, work[engine]))
    in_time = [capacity for capacity in found if capacity.enough]
    if in_time:
        return min(in_time, key=lambda capacity: capacity.nodes)
    return min(found, key=lambda capacity: capacity.percentiles["p95"])


def _busy_machines(work: QueryWork, load: Load, machine: Machine) -> float:
    return load.qps * sum(work.stages) / 1000 / machine.cores / UTILISATION


def alternatives(found: Capacity, load: Load) -> dict[str, dict[str, float]]:
    """The same service with hedging, with one replica more, and with both."""
    service = found.service
    more = replace(service, replicas=service.replicas + 1)
    late = 2.5 * max(service.stages)
    choices = {"one replica more": more, "one more and hedging": replace(more, hedge=late)}
    if service.replicas > 1:
        choices = {"hedging": replace(service, hedge=late)} | choices
    return {name: percentiles_of(choice, load.qps) for name, choice in choices.items()}


def with_fewer_centroids(of: Collection) -> Iterator[Collection]:
    """The same collection with a half, a quarter, ... of the centroids: plans are made sooner, and cells are larger."""
    return (replace(of, num_centroids=of.num_centroids >> shift) for shift in range(1, 7) if of.num_centroids >> shift)


def array_memory(of: Collection, engine: str) -> int:
    """Bytes that all groups together hold in memory to search with an engine."""
    return predict_bytes(of).arrays + (posting_memory(of) if engine in PROBING else 0)


def groups_for_memory(of: Collection, machine: Machine, engine: str) -> int:
    """Groups among which the arrays fit into memory.

    Returns 0 if not even the codec does.
    """
    room = MEMORY_SHARE * machine.memory_bytes - codec_memory(of)
    return max(1, math.ceil(array_memory(of, engine) / room)) if room > 0 else 0


def _with_engine(engine: str, of: Collection, load: Load, machine: Machine, work: QueryWork) -> Capacity:
    """Groups are added, each with as many replicas as the load takes, until the simulation is in time."""
    left = load.p95_ms - load.before_ms - work.plan / machine.cores - len(work.stages) * load.hop_ms
    for_time = math.ceil(sum(work.stages) / machine.cores / left) if left > 0 else 1
    for_memory = groups_for_memory(of, machine, engine)
    most = min(of.num_shards, max(MAX_GROUPS, for_memory))
    groups = min(most, max(1, for_memory, for_time))
    while True:
        capacity = measure(engine, of, load, machine, work, groups)
        if capacity.enough or groups == most or left <= 0:
            return capacity
        groups = min(most, math.ceil(groups * GROWTH))


def measure(engine: str, of: Collection, load: Load, machine: Machine, work: QueryWork, groups: int) -> Capacity:
    """Simulates a service of so many groups."""
    service = Service(
        groups=groups,
        replicas=1,
        stages=tuple(stage / groups / machine.cores for stage in work.stages),
        before=load.before_ms + work.plan / machine.cores,
        hop=load.hop_ms,
    )
    service = replace(service, replicas=max(1, math.ceil(load.qps * service.utilisation_per_qps / UTILISATION)))
    percentiles = percentiles_of(service, load.qps)
    memory = array_memory(of, engine) / groups + codec_memory(of)
    return Capacity(engine, work, service, memory, percentiles, percentiles["p95"] <= load.p95_ms)


def percentiles_of(service: Service, qps: float) -> dict[str, float]:
    """Simulated p50, p95 and p99 in milliseconds."""
    requests = max(MIN_REQUESTS, SIMULATED_CALLS // (service.groups * len(service.stages)))
    latencies = simulate(service, qps, requests)
    return {f"p{share}": round(float(np.percentile(latencies, share)), 2) for share in (50, 95, 99)}
