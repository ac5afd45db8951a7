"""Capacity planning: the fewest machines that serve a collection at a given load within a given latency.

A service is fast enough if the 95th percentile of its simulated latencies is within the limit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ray_lir.engines import registry
from ray_lir.engines.choice import automatic_engines
from ray_lir.engines.cost import QueryCost
from ray_lir.planning.latency_simulation import Service, simulate
from ray_lir.planning.sizes import Collection, codec_memory, posting_memory, predict_bytes
from ray_lir.planning.workload import query_work

ENGINES = automatic_engines()
PROBING = tuple(name for name in ENGINES if registry.ENGINES[name].postings)
"""The engines that hold posting lists in memory."""
UTILISATION = 0.6
"""Highest allowed fraction of a replica's time that is busy. Above it, waiting makes up most of the latency."""
MEMORY_FRACTION = 0.75
"""Fraction of a machine's memory for arrays. The rest is for the operating system, Ray and requests."""
SIMULATED_CALLS = 12_000
MIN_REQUESTS = 200
GROWTH = 1.4
MAX_GROUPS = 512
"""Largest number of groups that is tried, unless memory needs more. Every search waits for the slowest group."""
MAX_MACHINES = 10_000
"""An engine that needs more machines than this is left out, unless it is the only one."""


@dataclass(frozen=True)
class Load:
    """Load and latency limit of a service.

    Attributes:
        qps: Searches a second.
        p95_ms: Limit of the 95th percentile of a request's latency, in milliseconds.
        before_ms: Milliseconds to encode a query.
        hop_ms: Milliseconds of a round of messages between gateway and groups.
        k: Documents returned for each search.
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
        cores: Physical cores; two hardware threads of one core count once.
        memory_bytes: Bytes of memory.
        kernels: Name of a kernel set in engines.cost.COSTS.
    """

    cores: int
    memory_bytes: float
    kernels: str


@dataclass(frozen=True)
class Capacity:
    """A service and its simulated latency. Each replica of each group has a machine of its own.

    Attributes:
        engine: Engine of all searches.
        work: Milliseconds of one core for one query.
        service: Groups, replicas and times, as simulated.
        memory_a_group: Bytes of memory that one group needs.
        percentiles: Simulated p50, p95 and p99, in milliseconds.
        enough: Whether p95 is within the limit.
    """

    engine: str
    work: QueryCost
    service: Service
    memory_a_group: float
    percentiles: dict[str, float]
    enough: bool

    @property
    def nodes(self) -> int:
        """Machines for the shard groups."""
        return self.service.groups * self.service.replicas


def smallest(of: Collection, load: Load, machine: Machine, engines: tuple[str, ...] = ENGINES) -> Capacity:
    """Return the service with the fewest machines that is fast enough; if none is, the one with the lowest p95.

    Args:
        of: The collection.
        load: Searches a second and the latency limit.
        machine: Type of the machines.
        engines: Engines to choose from.
    """
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


def _busy_machines(work: QueryCost, load: Load, machine: Machine) -> float:
    return load.qps * sum(work.stages) / 1000 / machine.cores / UTILISATION


def alternatives(found: Capacity, load: Load) -> dict[str, dict[str, float]]:
    """Return the latency percentiles of the same service with hedging, with one more replica, and with both."""
    service = found.service
    more = replace(service, replicas=service.replicas + 1)
    late = 2.5 * max(service.stages)
    choices = {"one replica more": more, "one more and hedging": replace(more, hedge=late)}
    if service.replicas > 1:
        choices = {"hedging": replace(service, hedge=late)} | choices
    return {name: percentiles_of(choice, load.qps) for name, choice in choices.items()}


def with_fewer_centroids(of: Collection) -> Iterator[Collection]:
    """Yield the collection with a half, a quarter, ... of the centroids. Queries are planned faster, and clusters are larger."""
    return (replace(of, num_centroids=of.num_centroids >> shift) for shift in range(1, 7) if of.num_centroids >> shift)


def array_memory(of: Collection, engine: str) -> int:
    """Return the bytes that all groups together hold in memory to search with an engine."""
    return predict_bytes(of).arrays + (posting_memory(of) if engine in PROBING else 0)


def groups_for_memory(of: Collection, machine: Machine, engine: str) -> int:
    """Return the number of groups for which the arrays fit into memory.

    Args:
        of: The collection.
        machine: Type of the machines.
        engine: Engine of all searches.

    Returns:
        At least 1; 0 if not even the codec fits into a machine's memory.
    """
    room = MEMORY_FRACTION * machine.memory_bytes - codec_memory(of)
    return max(1, math.ceil(array_memory(of, engine) / room)) if room > 0 else 0


def _with_engine(engine: str, of: Collection, load: Load, machine: Machine, work: QueryCost) -> Capacity:
    """Adds groups, each with enough replicas for the load, until the simulated service is fast enough."""
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


def measure(engine: str, of: Collection, load: Load, machine: Machine, work: QueryCost, groups: int) -> Capacity:
    """Simulate a service.

    Args:
        engine: Engine of all searches.
        of: The collection.
        load: Searches a second and the latency limit.
        machine: Type of the machines.
        work: Milliseconds of one core for one query.
        groups: Number of shard groups.
    """
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
    """Return simulated p50, p95 and p99 latencies, in milliseconds."""
    requests = max(MIN_REQUESTS, SIMULATED_CALLS // (service.groups * len(service.stages)))
    latencies = simulate(service, qps, requests)
    return {f"p{percent}": round(float(np.percentile(latencies, percent)), 2) for percent in (50, 95, 99)}
