"""Hedging: late and lost calls are repeated, the first reply counts, and other calls are cancelled."""

import asyncio
from typing import Any

import pytest

from ray_lir.base.errors import ConfigError, ShardUnavailable
from serving.app import ServeConfig, hedge_percentile
from serving.transport.hedged import MIN_CALLS, HedgedTransport
from serving.workers.versions import Served

SERVED = Served(0, 1)
LATE, USUAL = 20.0, 0.01


class Counted:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def hedged(self, target: str, method: str) -> None:
        self.calls.append((target, method))


class Replicas:
    """Answers each call by the next step of a script: seconds to wait, then a value to return or an error to raise."""

    def __init__(self, *script: tuple[float, Any]):
        self.script = [(USUAL, "usual")] * MIN_CALLS + list(script)
        self.num_calls = 0
        self.cancelled: list[int] = []

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        number = self.num_calls
        self.num_calls += 1
        seconds, answer = self.script[number] if number < len(self.script) else (USUAL, "usual")
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(number - MIN_CALLS)
            raise
        except TimeoutError:
            raise ShardUnavailable(f"{name} did not answer in time") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        return [await self.call(name, deadline, method, *args)] * 2


def answers(replicas: Replicas, *groups: str, percentile: float = 100, seconds: float = 5) -> tuple[list[Any], Counted]:
    """Return the replies or errors of calls to `groups`, after enough calls of usual time."""

    async def scene() -> list[Any]:
        deadline = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"]) for _ in range(MIN_CALLS)))
        results = []
        for name in groups:
            [each] = await asyncio.gather(calls.call(name, deadline, "find", SERVED, ["b"]), return_exceptions=True)
            results.append(each)
        await asyncio.sleep(0)
        return results

    counted = Counted()
    calls = HedgedTransport(replicas, ["ShardGroup-0"], percentile, counted)
    return asyncio.run(scene()), counted


def test_a_late_call_is_hedged_and_the_first_reply_counts():
    replicas = Replicas((LATE, "slow"), (USUAL, "fast"))
    assert answers(replicas, "ShardGroup-0")[0] == ["fast"]
    assert replicas.cancelled == [0]


def test_the_hedged_call_may_still_win():
    replicas = Replicas((0.3, "slow"), (LATE, "slower"))
    results, counted = answers(replicas, "ShardGroup-0")
    assert (results, replicas.cancelled, counted.calls) == (["slow"], [1], [("ShardGroup-0", "find")])


def test_a_call_to_a_lost_replica_is_retried():
    replicas = Replicas((0, ShardUnavailable("gone")), (USUAL, "there"))
    results, counted = answers(replicas, "ShardGroup-0")
    assert (results, len(counted.calls)) == (["there"], 1)
    results, _ = answers(Replicas((0, ShardUnavailable("one")), (0.2, ShardUnavailable("two"))), "ShardGroup-0")
    assert [str(each) for each in results] == ["two"]


def test_a_failed_hedged_call_does_not_end_the_first():
    results, _ = answers(Replicas((0.5, "slow"), (0, ShardUnavailable("gone"))), "ShardGroup-0")
    assert results == ["slow"]


def test_a_deterministic_error_is_not_retried_on_another_replica():
    results, counted = answers(Replicas((0, ConfigError("wrong"))), "ShardGroup-0")
    assert ([str(each) for each in results], counted.calls) == (["wrong"], [])


def test_single_replicas_and_timely_calls_are_not_hedged():
    replicas = Replicas((0.2, "slow"), (0, "quick"))
    results, counted = answers(replicas, "ShardGroup-1", "ShardGroup-0")
    assert (results, counted.calls, replicas.num_calls) == (["slow", "quick"], [], MIN_CALLS + 2)


def test_each_kind_of_call_has_its_own_hedging_delay():
    async def scene() -> None:
        deadline = asyncio.get_running_loop().time() + 5
        for _ in range(MIN_CALLS):
            await calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"])
        assert await calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"] * 500) == "large"

    counted = Counted()
    calls = HedgedTransport(Replicas((0.2, "large")), ["ShardGroup-0"], 100, counted)
    asyncio.run(scene())
    assert counted.calls == []


def test_hedging_stops_if_every_call_is_slow():
    """The times of hedged calls count too, so the percentile rises."""
    slow = [(0.05, "slow")] * 400

    async def scene() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        for _ in range(MIN_CALLS):
            await calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"])
        for _ in range(10):
            await asyncio.gather(*(calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"]) for _ in range(12)))

    counted = Counted()
    calls = HedgedTransport(Replicas(*slow), ["ShardGroup-0"], 90, counted)
    asyncio.run(scene())
    assert 1 <= len(counted.calls) < 60


def test_both_calls_of_a_hedge_end_at_the_deadline():
    replicas = Replicas((LATE, "slow"), (LATE, "slow"))
    results, _ = answers(replicas, "ShardGroup-0", seconds=0.6)
    assert isinstance(results[0], ShardUnavailable) and "did not answer in time" in str(results[0])


def test_calls_are_cancelled_with_their_caller():
    async def scene() -> list[int]:
        replicas = Replicas((LATE, "slow"), (LATE, "slow"))
        calls = HedgedTransport(replicas, ["ShardGroup-0"], 90, Counted())
        deadline = asyncio.get_running_loop().time() + 60
        for _ in range(MIN_CALLS):
            await calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"])
        asking = asyncio.create_task(calls.call("ShardGroup-0", deadline, "find", SERVED, ["a"]))
        await asyncio.sleep(0.3)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0)
        return replicas.cancelled

    assert asyncio.run(scene()) == [0, 1]


@pytest.mark.parametrize(
    ("options", "percentile"),
    [
        ({}, None),
        ({"replicas": 2}, 95),
        ({"max_replicas": 3, "hedge_percentile": 90}, 90),
        ({"replicas": 2, "hedge_percentile": 100}, None),
    ],
)
def test_hedging_is_off_where_there_is_no_other_replica(options, percentile):
    assert hedge_percentile(ServeConfig(index="index", **options)) == percentile
