"""A request takes the walk of ARCHITECTURE.md: each listed file calls the next one."""

import asyncio
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest
from httpx import ASGITransport, AsyncClient

from serving.http.routes import routes
from serving.metrics import Metrics
from serving.transport.unix import UnixTransport
from tests.support.local_service import local_service
from tests.support.repository import REPOSITORY
from tests.support.served_index import make_index

MOST_FILES = 14
BODY = {"query": "what is late interaction?", "k": 5, "engine": "scan"}


def listed_walks() -> tuple[list[str], list[str]]:
    """Return the files of the walk, and the last files of the plan's way to the query encoder."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    tables = text[text.index("## Walk 1") : text.index("## Walk 2")].split("The plan of step 3")
    walk, planning = (re.findall(r"^\| \d+ \| `([^`]+)`", table, re.MULTILINE) for table in tables)
    return walk, planning


def source_of(frame: FrameType) -> str | None:
    """Return the file of a frame relative to the repository; None outside its packages."""
    file = Path(frame.f_code.co_filename)
    if not file.is_relative_to(REPOSITORY) or file.relative_to(REPOSITORY).parts[0] not in ("serving", "ray_lir"):
        return None
    return file.relative_to(REPOSITORY).as_posix()


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Return the pairs (calling file, called file) of one search over HTTP and Unix sockets."""
    service, local = local_service(make_index(tmp_path_factory.mktemp("walk")), num_groups=2)
    service.transport = UnixTransport(local, service.names, Metrics())
    found: set[tuple[str, str]] = set()

    def observe(frame: FrameType, event: str, _: object) -> None:
        called = source_of(frame) if event == "call" else None
        caller = frame.f_back
        while called and caller and (source := source_of(caller)) in (None, called):
            caller = caller.f_back
        if called and caller and source:
            found.add((source, called))

    async def requests() -> None:
        async with AsyncClient(transport=ASGITransport(routes(service)), base_url="http://walk") as client:
            for _ in range(3):  # the first requests open the sockets
                assert (await client.post("/search", json=BODY)).status_code == 200
                await asyncio.sleep(0.2)
            threading.setprofile(observe)
            sys.setprofile(observe)
            for server in local.deployments.values():
                if hasattr(server, "pool"):
                    server.pool = ThreadPoolExecutor(1)  # the profiler observes only new threads
            assert (await client.post("/search", json=BODY)).status_code == 200
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    asyncio.run(requests())
    return found


def test_a_query_passes_each_listed_file_once_and_in_order(calls: set[tuple[str, str]]) -> None:
    walk, planning = listed_walks()
    assert walk[0] == "serving/http/routes.py" and len(walk) <= MOST_FILES and len(set(walk)) == len(walk)
    *python_files, compiled = walk
    assert compiled.endswith(".cpp") and (REPOSITORY / compiled).exists()
    assert python_files[-1].startswith("ray_lir/kernels/")
    way_to_the_encoder = [*walk[:3], *walk[4:7], *planning]
    for way in (python_files, way_to_the_encoder):
        missing = [f"{caller} calls {called}" for caller, called in pairwise(way) if (caller, called) not in calls]
        assert not missing, f"the walk of ARCHITECTURE.md is not that of a request: {missing}"
