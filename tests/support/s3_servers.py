"""Local S3 servers for tests: moto in this process, and s3rver, another implementation, from npm."""

import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

S3RVER = "s3rver@3.7.1"
INSTALLED = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ray_lir-tests" / S3RVER


@contextmanager
def moto_server() -> Iterator[str]:
    """Yield the URL of a moto server with atomic puts, as in S3; moto itself compares If-None-Match and writes in two steps."""
    lock, put = threading.Lock(), S3Response.put_object

    def put_object(response: S3Response) -> Any:
        with lock:
            return put(response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_object)
        yield from _moto_server()


def _moto_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def s3rver_server(folder: Path) -> Iterator[str]:
    """Yield the URL of an s3rver with its buckets in `folder`; skip the test if npm cannot install it."""
    program = _install_s3rver()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "--directory", folder, "--address", "127.0.0.1", "--port", port, "--silent", "--no-vhost-buckets"]
    server = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def as_endpoint(url: str, patch: pytest.MonkeyPatch, key: str = "S3RVER", secret: str = "S3RVER") -> Iterator[None]:
    """Let S3 clients of this process and of its children use the server at `url`."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def make_bucket() -> str:
    """Return the URL of a new, empty bucket."""
    name = f"shelf-{uuid.uuid4().hex}"  # moto keeps buckets after its server ends
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def _install_s3rver() -> Path:
    program = INSTALLED / "node_modules" / ".bin" / "s3rver"
    if not program.exists():
        npm = shutil.which("npm")
        if not npm:
            pytest.skip("npm is not installed: s3rver, a second implementation of S3, comes from there")
        INSTALLED.mkdir(parents=True, exist_ok=True)
        words = [npm, "install", "--prefix", str(INSTALLED), "--no-save", "--no-audit", "--no-fund", S3RVER]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
        if done.returncode:
            pytest.skip(f"npm does not install {S3RVER}: {done.stderr.strip().splitlines()[-1:]}")
    return program


def _wait(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "s3rver did not start"
            time.sleep(0.05)
