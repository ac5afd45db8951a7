"""Admission: which requests are refused, and their Retry-After times."""

import pytest

from ray_lir.base.errors import Overloaded
from serving.http.admission import LONGEST_WAIT_S, Admission
from serving.metrics import Metrics
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(100)


def answer(admission: Admission, clock: Clock, number: int, seconds: float) -> None:
    for _ in range(number):
        with admission.enter():
            clock.now += seconds


def refusals(admission: Admission, number: int) -> list[int]:
    """Return the Retry-After seconds of this many refused requests."""
    retry_times = []
    for _ in range(number):
        with pytest.raises(Overloaded) as refused, admission.enter():
            pass
        retry_times.append(refused.value.retry_after_s)
    return retry_times


def test_admission_stops_at_the_limit_and_frees_a_place_after_a_failure(clock):
    admission = Admission(2, Metrics(), clock)
    with admission.enter():
        with pytest.raises(ZeroDivisionError), admission.enter():
            raise ZeroDivisionError
        with admission.enter():
            assert refusals(admission, 1) == [1]
    with admission.enter():
        assert admission.running == 1


def test_retry_times_follow_the_order_of_refusals(clock):
    admission = Admission(4, Metrics(), clock)
    answer(admission, clock, 10, 0.5)
    admission.running = 4
    retry_times = refusals(admission, 20)
    assert (
        retry_times[0] == 2 and retry_times[-1] == 11 and retry_times == sorted(retry_times)
    )  # 2 a second: 4 before the first, 23 before the last
    admission.running = 0
    answer(admission, clock, 12, 0.5)
    admission.running = 4
    assert refusals(admission, 1)[0] < retry_times[-1]  # clients with a retry time within these 6 seconds no longer wait


def test_the_retry_time_is_bounded_and_one_second_at_first(clock):
    admission = Admission(1, Metrics(), clock)
    admission.running = 1
    assert refusals(admission, 3) == [1, 1, 1]
    admission.running = 0
    answer(admission, clock, 2, 4.0)
    admission.running = 1
    assert refusals(admission, 50)[-1] == LONGEST_WAIT_S
