"""One torch thread for each batch, so that no result depends on the number of cores or on what runs beside it.

Where bits are promised and where they are not, for the same checkpoint, precision and library versions:

* On a CPU a text's vectors and weights are the same whatever the number of threads, the other texts of the call, and concurrent calls.
* Another instruction set (AVX2, AVX-512, AMX), another precision or another release of torch changes the last bits.
* On a GPU the last bits can also depend on the texts that are encoded together.
* A training that is continued gives the same weights as one that was not interrupted, with the same number of torch threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from ray_lir.base.forking import after_fork, fork_safe
from ray_lir.base.parallel import threads

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = fork_safe(threading.Lock())
_users = 0
_usual_threads = 1
_known = threading.local()
"""Threads that have been here before."""


@contextmanager
def one_torch_thread() -> Iterator[int]:
    """Lets torch compute on one thread of the CPU in the calling thread; yields the number of threads that it was set to.

    The setting belongs to a thread, but a thread that uses torch for the first time takes over the latest setting of any thread. So a
    thread that enters for the first time while others are inside is given the number that the first of them found.
    """
    global _users, _usual_threads
    with _lock:
        own = torch.get_num_threads()
        if _users == 0:
            _usual_threads = own
        elif not hasattr(_known, "before"):
            own = _usual_threads
        _known.before = True
        _users += 1
    torch.set_num_threads(1)
    try:
        yield own
    finally:
        torch.set_num_threads(own)
        with _lock:
            _users -= 1


@after_fork
def _leave() -> None:
    """In a forked process nobody is inside. It has none of its parent's OpenMP threads, and would wait for them: it uses one."""
    global _users
    _users = 0
    torch.set_num_threads(1)


def spread(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """The work on each item, in their order and without gradients; on a CPU on one torch thread each.

    As many items as torch has threads are worked on at once. Two threads on one item would split a product, and the parts add up in
    another order; they would also wait for each other after every product.
    """
    if device.type != "cpu":
        yield from map(torch.inference_mode()(work), items)
        return

    def alone(item: Item) -> Result:
        torch.get_num_threads()  # torch reads the common setting once in each thread, and would overwrite this thread's later
        torch.set_num_threads(1)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # settings of each thread
            return work(item)

    with one_torch_thread() as num_threads:
        if num_threads == 1 or len(items) < 2:
            yield from map(alone, items)
        else:
            yield from threads(alone, items, min(num_threads, len(items)))
