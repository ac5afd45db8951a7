"""One torch thread for each computation, so that no result depends on the number of cores or on what runs beside it.

Where bits are promised and where they are not, for the same checkpoint, precision and library versions:

* On a CPU a text's vectors and weights are the same whatever the number of threads, the other texts of the call, and concurrent calls.
* Another instruction set (AVX2, AVX-512, AMX), another precision or another release of torch changes the last bits.
* On a GPU the last bits can also depend on the texts that are encoded together.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_lock = Lock()
_users = 0
_before = 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Computes on one torch thread until the last of its users has left.

    OpenMP's number of threads belongs to the calling thread, MKL's to the process. So it is restored by the last user only.
    """
    global _users, _before
    with _lock:
        if _users == 0:
            _before = torch.get_num_threads()
        _users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_before)


def _after_fork() -> None:
    """In a child process: nobody computes here yet, whatever the parent was doing."""
    global _lock, _users
    _lock, _users = Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
