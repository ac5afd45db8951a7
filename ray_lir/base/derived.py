"""The one way in ray_lir to compute something from an object once and keep it as long as the object lives."""

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

from ray_lir.base.forking import fork_safe

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


class derived(Generic[Owner, Arguments, Value]):
    """Decorator: compute a function's value once for each object, and keep it until the object is freed.

    The first argument is the owner of the value. Owners are compared by identity, so they need no hash, but they must support weak
    references. Further arguments are compared by identity too: a call with other arguments computes the value again and replaces it.
    Under `@property` the decorated function is a cached attribute:

        @property
        @derived
        def centroids_f32(self) -> np.ndarray: ...

    Values are kept beside the owner and not in it. Frozen dataclasses can own values; copies and pickles of an owner start without them.
    A value must not refer to its owner, because then neither would be freed. Threads that ask for the same
    object wait for one computation; values of different objects are computed at the same time. A forked process can go on using all values.
    """

    def __init__(self, function: Callable[Concatenate[Owner, Arguments], Value]):
        self._function = function
        self._entries: dict[int, tuple[tuple[object, ...], Value] | None] = {}
        self._lock = fork_safe(threading.RLock())
        self._owner_locks: dict[int, threading.RLock] = {}
        functools.update_wrapper(self, function)

    def __call__(self, owner: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        arguments = (*args, *kwargs.values())
        found = self._entries.get(id(owner))
        if found is None or (found[0] is not arguments and not _same(found[0], arguments)):
            with self._owner_lock(owner):
                found = self._entries.get(id(owner))
                if found is None or not _same(found[0], arguments):
                    found = (arguments, self._function(owner, *args, **kwargs))
                    self._entries[id(owner)] = found
        return found[1]

    def put(self, owner: Owner, value: Value) -> None:
        """Keep a value that was computed elsewhere, for calls without further arguments."""
        with self._owner_lock(owner):
            self._entries[id(owner)] = ((), value)

    def forget(self, owner: Owner) -> None:
        """Drop the value of an object, so that the next call computes it again."""
        with self._owner_lock(owner):
            if id(owner) in self._entries:
                self._entries[id(owner)] = None

    def __contains__(self, owner: Owner) -> bool:
        """Return whether the value of an object has been computed."""
        return self._entries.get(id(owner)) is not None

    def __len__(self) -> int:
        """Return the number of living objects with a value."""
        return sum(entry is not None for entry in self._entries.values())

    def _owner_lock(self, owner: Owner) -> "threading.RLock":
        with self._lock:
            lock = self._owner_locks.get(id(owner))
            if lock is None:
                lock = self._owner_locks[id(owner)] = fork_safe(threading.RLock())
                weakref.finalize(owner, self._forget_owner, id(owner)).atexit = False
            return lock

    def _forget_owner(self, number: int) -> None:
        self._entries.pop(number, None)
        self._owner_locks.pop(number, None)


def _same(kept: tuple[object, ...], arguments: tuple[object, ...]) -> bool:
    return len(kept) == len(arguments) and all(a is b for a, b in zip(kept, arguments, strict=True))
