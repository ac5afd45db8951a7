"""A process forked after its parent used the library gives the parent's answers (gunicorn --preload, uWSGI, multiprocessing).

Each parent is a new process, in which no other test has used OpenMP or a lock. It uses several threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.engines import VECTOR_ENGINES
from tests.support import translated_words
from tests.support.repository import REPOSITORY
from tests.support.synthetic import collection

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
SECONDS = 60
PRELUDE = f"""
import faulthandler, os, pickle, signal, sys, threading, time

def in_child(function):
    # What the function returns in a forked process; one that hangs is killed.
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        faulthandler.dump_traceback_later({SECONDS}, exit=True)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(function(), pipe)
            pipe.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child died or hung"
    return pickle.loads(answer)
"""
SEARCHER = """
from ray_lir.search import Searcher
from tests.support.synthetic import collection, queries_about

index, engine, kernels = sys.argv[1:]
documents = collection(300)
QUERIES = queries_about(documents, [0, 5, 41, 99, 150, 222, 299])
searcher = Searcher.open(index, kernels=kernels)

def search():
    answers = []
    for queries in (QUERIES, QUERIES.slice(0, 1)):
        for filters in (None, "year >= 20"):
            answers += [(top.documents.tolist(), top.scores.tolist()) for top in searcher.search(queries, 5, engine, filters=filters)]
    return answers
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    config = IndexConfig(num_shards=3, clustering=ClusteringConfig(num_centroids=128))
    build_index(collection(300), folder, config, texts=["t"] * 300, metadata=[{"year": number % 30} for number in range(300)])
    return folder


def run(program: str, *arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-c", PRELUDE + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=5 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_a_forked_process_gets_the_same_hits(index, kernels):
    run(
        f"""{SEARCHER}
for engine in {[*VECTOR_ENGINES]}:
    expected = search()
    assert in_child(search) == expected, engine
    assert search() == expected, engine
""",
        index,
        "",
        kernels,
    )


def test_a_process_forked_during_searches_does_not_deadlock(index):
    run(
        f"""{SEARCHER}
expected, running = search(), True

def keep_searching():
    while running:
        assert search() == expected

threads = [threading.Thread(target=keep_searching) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(12):
    assert in_child(search) == expected
running = False
for thread in threads:
    thread.join()
""",
        index,
        "plaid",
        "reference",
    )


def test_locks_of_other_threads_are_free_in_a_forked_process(index):
    run(
        f"""{SEARCHER}
from ray_lir.base import parallel
from ray_lir.engines import token_index
from ray_lir.index import arrays
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import native

expected = search()
held = [parallel._blas_lock, token_index.token_index._lock, arrays._header_lock, native.distinct_codes._lock]
held += [shard._filtered._lock for shard in searcher.shards]
held += [value.lock for value in vars(IndexShard).values() if hasattr(value, "lock")]

def hold():
    for lock in held:
        lock.acquire()
    ready.set()
    threading.Event().wait()

ready = threading.Event()
threading.Thread(target=hold, daemon=True).start()
ready.wait()

def open_and_search():
    global searcher
    searcher = Searcher.open(index, kernels=kernels)
    return search()

assert in_child(search) == expected
assert in_child(open_and_search) == expected
""",
        index,
        "xtr",
        "reference",
    )


def test_a_process_forked_from_a_search_has_all_its_blas_threads():
    run(
        """
import numpy
from threadpoolctl import threadpool_info
from ray_lir.base.parallel import one_blas_thread

def num_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

def search_and_return():
    with one_blas_thread():
        assert num_threads() == [1] * len(before)
    return num_threads()

def keep():
    with one_blas_thread():
        entered.set()
        leave.wait()

before, entered, leave = num_threads(), threading.Event(), threading.Event()
assert max(before) > 1
thread = threading.Thread(target=keep)
thread.start()
entered.wait()
assert in_child(num_threads) == before
assert in_child(search_and_return) == before
with one_blas_thread():
    assert in_child(num_threads) == before
leave.set()
thread.join()
assert num_threads() == before
"""
    )


def test_a_forked_process_builds_the_same_index(tmp_path):
    run(
        """
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from tests.support.synthetic import collection

documents = collection(900)
config = IndexConfig(clustering=ClusteringConfig(num_centroids=2100))

def build(name):
    return build_index(documents, f"{sys.argv[1]}/{name}", config).model_dump()

expected = build("parent")
assert in_child(lambda: build("child")) == expected
""",
        tmp_path,
    )


def test_a_forked_process_encodes_to_the_same_vectors(tmp_path):
    run(
        """
from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.encoder import Encoder

encoder = Encoder.load(EncoderConfig(checkpoint=sys.argv[1], device="cpu"))

def encode():
    documents = encoder.encode_documents([f"mot{i} mot{i + 1} mot{i + 2}" for i in range(90)])
    return encoder.encode_queries(["word1 word2"]).values.tobytes(), documents.values.tobytes()

expected = encode()
assert in_child(encode) == expected
assert encode() == expected
""",
        translated_words.write_checkpoint(tmp_path / "tiny"),
    )


def test_a_forked_client_opens_its_own_connections():
    run(
        """
import asyncio, http.server
from ray_lir.api.client import AsyncClient, Client

ports = set()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        ports.add(self.client_address[1])
        body = b'{"status": "ok", "problems": []}'
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
from ray_lir.base.errors import FormatError

def ask(client):
    try:
        client.health()
    except FormatError:
        return True

async def ask_async(client):
    try:
        await client.health()
    except FormatError:
        return True

client = Client(url)
assert ask(client) and ask(client) and len(ports) == 1
assert in_child(lambda: ask(client) and client.close() is None)
assert len(ports) == 2, "parent and child shared a connection"
assert ask(client) and len(ports) == 2, "the child closed the parent's connection"

async def main():
    async with AsyncClient(url) as client:
        assert await ask_async(client)
        assert in_child(lambda: thread_answer(client))
        assert await ask_async(client)

def thread_answer(client):
    # An event loop runs in the thread that forked, so the child asks from another one.
    answers = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask_async(client))))
    thread.start()
    thread.join()
    return answers == [True]

before = len(ports)
asyncio.run(main())
assert len(ports) == before + 2
"""
    )
