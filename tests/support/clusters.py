"""A Ray cluster of several machines, each a raylet on this one. Machines can be lost and added; jobs run in other processes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ray._common.utils import get_default_ray_temp_dir
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.support.processes import descendants
from tests.support.repository import REPOSITORY

OBJECT_STORE_BYTES = 80 << 20
NOTICED_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Lets Ray notice a lost machine after 2 seconds instead of 15."""


class Machines:
    """A head without CPUs, on which jobs start, and machines with one CPU each."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster

    @property
    def head(self) -> Node:
        return self._cluster.head_node

    @property
    def workers(self) -> list[Node]:
        return list(self._cluster.worker_nodes)

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self._cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    def lose(self, machine: Node) -> None:
        """End the machine's processes at once; their objects are lost."""
        self._cluster.remove_node(machine, allow_graceful=False)

    def running(self, sign: str) -> list[tuple[Node, int]]:
        """Return the machines and their processes with `sign` in the name."""
        return [
            (machine, pid)
            for machine in self.workers
            for pid, name in descendants(machine.all_processes["raylet"][0].process.pid).items()
            if sign in name
        ]

    def start(self, verb: str, *words: object, stderr: IO | int = subprocess.PIPE, **variables: str) -> subprocess.Popen:
        """Start a job with its driver on the head."""
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{verb}", *map(str, words)],
            cwd=REPOSITORY,
            env=os.environ | {"RAY_ADDRESS": self._cluster.address} | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


@contextmanager
def machines(count: int, object_store_bytes: int = OBJECT_STORE_BYTES, **settings: object) -> Iterator[Machines]:
    """Yield a head and `count` machines; `settings` are system settings of Ray.

    Ray's workers have the lowest priority by default and hardly start on a busy machine. Here they have the usual priority.
    """
    folder = tempfile.mkdtemp(prefix="ray-")  # socket paths have a length limit
    os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # Cluster stores its address here; it must be private to this cluster
    head = {"num_cpus": 0, "object_store_memory": object_store_bytes, "temp_dir": folder, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": {"worker_niceness": 0} | settings})
    try:
        found = Machines(cluster)
        found.add(count)
        yield found
    finally:
        for machine in reversed(cluster.list_all_nodes()):  # Cluster.shutdown would also reset the test session's cluster
            cluster.remove_node(machine, allow_graceful=False)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_files(job: subprocess.Popen, folder: Path, pattern: str, count: int = 1, patience_s: float = 200) -> None:
    """Wait until `count` files exist; the job may still run."""
    deadline = time.monotonic() + patience_s
    while len(list(folder.glob(pattern))) < count:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
