"""Locks and state that stay usable in a process that was forked from a running one (gunicorn --preload, uWSGI, multiprocessing).

Only the thread that forks exists in the child. A lock that another thread holds at that moment would stay locked in the child.
"""

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

_locks: "WeakSet[Any]" = WeakSet()


def fork_safe(lock: Any) -> Any:
    """Return the `threading.Lock` or `RLock`, and make it unlocked in every process that is forked later."""
    _locks.add(lock)
    return lock


def after_fork(function: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call a function without arguments first in every forked process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


@after_fork
def _open_locks() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()
