"""One torch thread per batch, so that no result depends on the number of cores or on concurrent work.

Which results are equal to the bit, for the same checkpoint, precision and library versions:

* On a CPU, a text's vectors and weights do not depend on the number of threads, the other texts of the call, or concurrent calls.
* Another instruction set (AVX2, AVX-512, AMX), precision or torch release changes the last bits.
* On a GPU, the last bits can also depend on the texts that are encoded together.
* A continued training gives the same weights as an uninterrupted one with the same number of torch threads.
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
"""Marks threads that have used `one_torch_thread` before."""


@contextmanager
def one_torch_thread() -> Iterator[int]:
    """Let torch use one CPU thread in the calling thread; yield the previous number of threads.

    The setting belongs to a thread. But a thread that uses torch for the first time inherits the latest setting of any thread. So a thread
    that enters for the first time while others are inside gets the number that the first of them found.
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
    """Reset the state in a forked process, where no other thread runs. OpenMP threads do not survive a fork, so torch uses one thread."""
    global _users
    _users = 0
    torch.set_num_threads(1)


def spread(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """Yield the result of `work` for each item, in order and without gradients; on a CPU, each item uses one torch thread.

    As many items run at once as torch has threads. Two threads on one item would split a product and add its parts in another order; they
    would also wait for each other after every product.

    Args:
        work: The function to run.
        items: Its arguments.
        device: Device of the work; threads are used only on a CPU.
    """
    if device.type != "cpu":
        yield from map(torch.inference_mode()(work), items)
        return

    def alone(item: Item) -> Result:
        torch.get_num_threads()  # the first call in a thread copies the global setting, which must not overwrite the next line
        torch.set_num_threads(1)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # torch stores both settings for each thread
            return work(item)

    with one_torch_thread() as num_threads:
        if num_threads == 1 or len(items) < 2:
            yield from map(alone, items)
        else:
            yield from threads(alone, items, min(num_threads, len(items)))
