"""A server on this machine that speaks the routes of the Hugging Face hub which uploads and downloads of this library use."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repositories, by kind and name, such as `datasets/OWNER/NAME`: their files by name.

    Attributes:
        url: The address of the server.
        repos: The files of each repository.
        tokens: The tokens that requests carried.
        refuse: Status with which every upload is refused; None for none.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: int | None = None


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub without repositories, at a free port of this machine, while the body runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.hub.refuse:
            return self._json({"error": "refused"}, self.hub.refuse)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            repo = f"{asked.get('type', 'model')}s/{name}"
            self.hub.repos.setdefault(repo, {})
            return self._json({"url": f"{self.hub.url}/{repo.removeprefix('models/')}", "name": name})
        route = re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", path)
        assert route, path
        files = self.hub.repos[route[1]]
        if route[2] == "preupload":
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self._json({"files": modes})
        if route[2] == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else []
            return self._json([each for each in self._tree(files, "", True) if each["path"] in asked])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._json({"commitUrl": f"{self.hub.url}/{route[1].removeprefix('models/')}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if route := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
            if route[1] not in self.hub.repos:
                return self._missing("RepoNotFound")
            tree = self._tree(self.hub.repos[route[1]], route[2] or "", "recursive=true" in self.path.lower())
            return self._json(tree) if tree else self._missing("EntryNotFound")
        if route := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(?:/revision/.+)?", path):
            if route[1] not in self.hub.repos:
                return self._missing("RepoNotFound")
            siblings = [{"rfilename": name} for name in self.hub.repos[route[1]]]
            return self._json({"id": route[1].partition("/")[2], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        route = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        assert route, path
        files = self.hub.repos.get(f"{route[1] or 'models/'}{route[2]}", {})
        if route[3] not in files:
            return self._missing("EntryNotFound")
        self._send(200, files[route[3]], "application/octet-stream", files[route[3]])

    do_HEAD = do_GET

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for name, content in files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                path = prefix + "/".join(parts[:depth])
                found[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                found[name] = {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        return list(found.values())

    def _missing(self, code: str) -> None:
        self._send(404, b'{"error": "not found"}', "application/json", b"", {"X-Error-Code": code})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", b"")

    def _send(self, status: int, body: bytes, kind: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if content else None
        if span:
            first, last = int(span[1]), min(int(span[2] or len(body) - 1), len(body) - 1)
            headers, status = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}, 206
            body = body[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests short."""
