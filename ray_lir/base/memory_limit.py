"""The memory that this process may use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the smallest limit of its control groups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _limit_files():
        with suppress(OSError, ValueError):  # no such group, or "max", which means no limit
            total = min(total, int(file.read_text()))
    return total


def _limit_files() -> Iterator[Path]:
    """Yield the files with the limits of this process's groups and of all groups around them, for both versions of control groups."""
    lines = ["0::/", "0:memory:/"]  # the groups of a container, which sees its own groups as the root
    with suppress(OSError):
        lines += MEMBERSHIP.read_text().splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        group = PurePosixPath(path)
        for each in (group, *group.parents):
            inside = str(each).lstrip("/")
            if not controllers:
                yield from (CGROUPS / inside / "memory.max", CGROUPS / "unified" / inside / "memory.max")
            elif "memory" in controllers.split(","):
                yield CGROUPS / "memory" / inside / "memory.limit_in_bytes"
