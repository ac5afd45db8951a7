"""Resident: what kernels make of a shard or a codec once, kept for as long as it is there."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ray_lir.base.forking import fork_safe

Value = TypeVar("Value")


class Resident(Generic[Value]):
    """Remembers what was made of an object until the object is gone; objects are told apart by identity.

    Args:
        make: called once an object.
    """

    def __init__(self, make: Callable[[Any], Value]):
        self._make = make
        self._values: dict[int, Value] = {}
        self._lock = fork_safe(threading.Lock())

    def __call__(self, owner: Any) -> Value:
        with self._lock:
            if id(owner) not in self._values:
                self._keep(owner, self._make(owner))
            return self._values[id(owner)]

    def put(self, owner: Any, value: Value) -> None:
        """Remembers a value that was made elsewhere."""
        with self._lock:
            self._keep(owner, value)

    def _keep(self, owner: Any, value: Value) -> None:
        self._values[id(owner)] = value
        weakref.finalize(owner, self._values.pop, id(owner), None)

    def __len__(self) -> int:
        return len(self._values)
