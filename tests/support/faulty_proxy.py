"""A proxy for an S3 server that answers some requests with an error, late, in half or not at all, and counts them."""

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit

FAULTS = ("500", "503", "late", "request_cut", "answer_cut", "answer_lost")
ERRORS = {"500": "InternalError", "503": "SlowDown"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    """A request and its fault: "" if it was passed on and answered completely."""

    method: str
    target: str
    range: str
    fault: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.method, self.target, self.range


@dataclass
class Faults:
    """The faults of requests.

    Attributes:
        share: Fraction of requests with a fault, chosen at random; the fault is a random one of `kinds`.
        kinds: Names from FAULTS.
        always: Substring of "METHOD target" -> fault of all such requests.
        delay_s: Seconds by which a late answer is delayed.
        log: All requests so far.
    """

    share: float = 0.0
    kinds: Sequence[str] = FAULTS
    always: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.5
    seed: int = 0
    log: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), Lock()

    def next(self, method: str, target: str, range_: str) -> str:
        """Log a request and return its fault; "" for none."""
        with self._lock:
            fault = next((fault for text, fault in self.always.items() if text in f"{method} {target}"), "")
            if not fault and self._random.random() < self.share:
                fault = self._random.choice(self.kinds)
            self.log.append(Request(method, target, range_, fault))
            return fault

    def counts(self) -> dict[str, int]:
        """Return the number of requests, of each fault, and of retries after a fault."""
        failed: dict[tuple[str, str, str], bool] = {}
        repeated = 0
        for request in self.log:
            repeated += failed.get(request.key, False)
            failed[request.key] = request.fault not in ("", "late")
        kinds = Counter(request.fault for request in self.log)
        return {"requests": len(self.log), **{kind: kinds[kind] for kind in FAULTS}, "repeated": repeated}


@contextmanager
def faulty_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Yield the URL of a proxy for the server at `endpoint`; it ends with the block."""

    class Handler(_Handler):
        host, plan = urlsplit(endpoint).netloc, faults

    server = _Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: broken connections are intended."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: str
    plan: Faults

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.plan.next(self.command, self.path, self.headers.get("Range", ""))
        if fault == "request_cut":
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self.rfile.read(length)
        if fault == "late":
            time.sleep(self.plan.delay_s)
        if fault in ERRORS:
            self._answer(int(fault), [("Content-Type", "application/xml")], _error(ERRORS[fault]))
            return
        status, headers, answer = self._pass_on(body)
        if fault == "answer_lost":
            self._cut()
        elif fault == "answer_cut":
            self._answer(status, headers, answer, len(answer) // 2)
            self._cut()
        else:
            self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.host, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP | {"expect"}:
                    connection.putheader(name, value)  # keep the Host header, which is signed
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, self._end_to_end(answer.headers), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            self.wfile.flush()

    def _end_to_end(self, headers: HTTPMessage) -> list[tuple[str, str]]:
        """Return headers without those of a single connection; the body's length is set on sending."""
        dropped = HOP_BY_HOP if self.command == "HEAD" else HOP_BY_HOP | {"content-length"}
        return [(name, value) for name, value in headers.items() if name.lower() not in dropped]

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `plan.log` has the requests."""


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message><RequestId>0</RequestId></Error>".encode()
