"""Writes through the service on Ray Serve, while its processes are killed at random."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from ray_lir.api.client import Client
from ray_lir.base.errors import RayLirError
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher
from tests.support.served_index import make_index, serve_started

TOKEN = "write-0123456789abcdef"
KILLED = ("Writer", "Gateway", "QueryEncoder", "Writer", "ShardGroup-0")


@pytest.mark.clusters
def test_no_acknowledged_write_is_lost_or_applied_twice_when_processes_are_killed(ray_cluster: None, tmp_path: Path):
    from ray import serve

    from serving.app import build

    index = make_index(tmp_path, num_docs=60, num_shards=1)
    (tmp_path / "tokens.yaml").write_text(f"write: [{TOKEN}]\n")
    arguments = {"index": str(index), "tokens": str(tmp_path / "tokens.yaml"), "writes": True, "encoder_cpus": 0.1, "writer_cpus": 0.1}
    expected: dict[str, str] = {}
    done = threading.Event()

    def write(url: str) -> None:
        rng, number = random.Random(0), 0
        with Client(url, TOKEN, timeout_s=120) as client:
            while not done.is_set():
                number += 1
                doc_id = f"written-{rng.randrange(10)}"
                if rng.random() < 0.3:
                    client.delete([doc_id], wait_s=0)
                    expected.pop(doc_id, None)
                else:
                    client.add([{"_id": doc_id, "text": f"token {number}"}], wait_s=0)
                    expected[doc_id] = f"token {number}"
                time.sleep(0.05)

    with serve_started() as url:
        serve.run(build(arguments))
        writing = threading.Thread(target=write, args=(url,))
        writing.start()
        for part in KILLED:
            time.sleep(1.5)
            _kill(part)
        done.set()
        writing.join()
        with Client(url, TOKEN, timeout_s=120) as client:
            client.add([{"_id": "last", "text": "token"}], wait_s=120)
            served = client.index()
            assert _answered(lambda: client.document("last").text) == "token" and served.writes and served.writes.unpublished == 0
    searcher = Searcher.open(str(index))
    numbers = [number for shard in searcher.shards for number in (shard.first_document + shard.found_documents).tolist()]
    found = {each["doc_id"]: each["text"] for each in searcher.documents(numbers)}
    assert {doc_id: text for doc_id, text in found.items() if doc_id.startswith("written-")} == expected
    assert len(found) == len(numbers) == 60 + len(expected) + 1
    assert read_version(str(index)).log_position > 0


def _kill(part: str) -> None:
    """SIGKILL to the process of a deployment, as soon as it runs."""
    import ray

    end = time.monotonic() + 60
    while time.monotonic() < end:
        actors = ray._private.state.actors().values()
        for each in actors:
            if f"#{part}#" in each["Name"] and each["State"] == "ALIVE" and each["Pid"]:
                os.kill(each["Pid"], signal.SIGKILL)
                return
        time.sleep(0.1)
    pytest.fail(f"no process of {part} runs")


def _answered(ask) -> object:
    """The answer, once the service can give one."""
    end = time.monotonic() + 60
    while True:
        try:
            return ask()
        except RayLirError:
            assert time.monotonic() < end
            time.sleep(0.2)
