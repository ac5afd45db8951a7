"""The data caches of this machine's processor."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of a core's caches. The defaults are the smallest of x86 servers since 2015.

    Attributes:
        first: First-level data cache.
        second: Second-level cache.
    """

    first: int = 32 << 10
    second: int = 256 << 10


@cache
def cache_sizes() -> CacheSizes:
    """Return the cache sizes that Linux reports. A size that it does not report, as in some containers, is the default."""
    sizes = _in_sysfs()
    return CacheSizes(sizes.get(1, CacheSizes.first), sizes.get(2, CacheSizes.second))


def _in_sysfs() -> dict[int, int]:
    """Return the bytes of data caches by level; empty if the files are missing or cannot be read."""
    sizes = {}
    for folder in CACHES.glob("index*"):
        with suppress(OSError, ValueError, KeyError, IndexError):
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction" and int(size[:-1]) > 0:
                sizes[int(level)] = int(size[:-1]) * UNITS[size[-1]]
    return sizes
