import copy
import gc
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from ray_lir.base.derived import derived

CALLS: list[int] = []


@dataclass(frozen=True)
class Owner:
    number: int

    @property
    @derived
    def lock(self) -> object:
        """A value that cannot be pickled."""
        CALLS.append(self.number)
        return threading.Lock()


@derived
def pair(owner: Owner, other: object) -> tuple[int, object]:
    CALLS.append(owner.number)
    return owner.number, other


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def test_a_derived_value_is_computed_once_for_each_object() -> None:
    one, two = Owner(1), Owner(1)
    assert one == two and one.lock is one.lock and one.lock is not two.lock
    assert CALLS == [1, 1]


def test_copies_and_pickles_leave_the_derived_value_out() -> None:
    owner = Owner(1)
    for other in (pickle.loads(pickle.dumps(owner)), copy.deepcopy(owner), copy.copy(owner), replace(owner)):
        assert other == owner and other.lock is not owner.lock


def test_another_argument_replaces_the_value() -> None:
    owner, first, second = Owner(1), [0], [0]
    assert pair(owner, first)[1] is first and pair(owner, first)[1] is first and CALLS == [1]
    assert pair(owner, second)[1] is second and CALLS == [1, 1], "arguments are compared by identity"


def test_a_derived_value_is_freed_with_its_object_and_by_forget() -> None:
    owner = Owner(1)
    pair(owner, None)
    pair.forget(owner)
    assert owner not in pair and not len(pair)
    pair(owner, None)
    assert owner in pair and len(pair) == 1
    del owner
    gc.collect()
    assert len(pair) == 0
    assert not pair._entries


def test_threads_wait_for_one_computation() -> None:
    @derived
    def slow(owner: Owner) -> object:
        CALLS.append(owner.number)
        time.sleep(0.05)
        return object()

    owner = Owner(7)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(slow, [owner] * 8))
    assert CALLS == [7] and all(value is values[0] for value in values)


def test_a_stored_value_is_returned() -> None:
    @derived
    def value_of(owner: Owner) -> str:
        return "computed"

    owner = Owner(1)
    value_of.put(owner, "put")
    assert value_of(owner) == "put"


def test_derived_values_of_different_objects_are_computed_concurrently() -> None:
    both_compute = threading.Barrier(2, timeout=20)

    @derived
    def waits(owner: Owner) -> int:
        both_compute.wait()  # the barrier breaks if one computation waits for the other
        return owner.number

    owners = [Owner(1), Owner(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(waits, owners)) == [1, 2]
