"""Lets assistants search an index or a service, as a server of the Model Context Protocol."""

import ipaddress
import os
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError

from .cli import main
from .connection import TOKEN
from .hits import names


class McpJob(Config):
    """Lets assistants search an index or a service, as a server of the Model Context Protocol.

    Its tools are search, explain, get_document and list_indexes. With --transport stdio an assistant starts this command and talks to it on
    standard input and output. With --transport http it listens on this machine, at http://HOST:PORT/mcp. If the service requires a bearer
    token, set the environment variable RAY_LIR_TOKEN to it.
    """

    index: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Folder of an index, or several with commas between them."""
    service: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Address of a service (http://127.0.0.1:8000), or several with commas between them."""
    transport: Literal["stdio", "http"] = "stdio"
    """stdio: standard input and output. http: streamable HTTP."""
    host: str = "127.0.0.1"
    """With --transport http: address to listen on, of this machine."""
    port: int = Field(8765, ge=0, le=65535)
    """With --transport http: port to listen on."""
    allow_writes: bool = False
    """Also offer the tools add_documents and delete_documents, for indexes on this machine."""

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if not self.index and not self.service:
            raise ValueError("give --index or --service")
        return self


def run(job: McpJob) -> dict[str, Any]:
    """Serve until the assistant disconnects or the process is stopped.

    Raises:
        ConfigError: The package mcp is not installed, the host is not of this machine, or a setting is not possible.
        FormatError: A folder holds no index.
    """
    from ray_lir.integrations.mcp import make_server
    from ray_lir.integrations.source import Source

    if job.transport == "http" and not _is_loopback(job.host):
        raise ConfigError(f"--host {job.host} is not an address of this machine alone, and MCP has no access control here; use 127.0.0.1")
    token = os.environ.get(TOKEN)
    server = make_server([*map(Source.of, job.index), *(Source.of(url, token) for url in job.service)], job.allow_writes)
    if job.transport == "http":
        print(f"http://{job.host}:{job.port}/mcp", file=sys.stderr, flush=True)
        server.run("streamable-http", host=job.host, port=job.port, stateless_http=True)
    else:
        server.run("stdio")
        sys.stdout = sys.stderr  # standard output belongs to the protocol
    return {}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main(McpJob, run)
