"""`python -m serving`: starts the service and stops it when the process is interrupted."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ray import serve

from ray_lir.base import logs
from ray_lir.base.errors import ConfigError
from ray_lir.distributed.room import check_room
from ray_lir.distributed.runtime import ray_session

from .app import ROOM_FIX, application_of, demands_of
from .http.access import check_address
from .options import Options
from .settings import access_of, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted. Prints the service's address on standard output when it is ready.

    A user's mistake ends the process with one line on standard error and exit code 2.
    """
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    logs.configure()
    with cli.ending_in_one_line():
        serve_until_interrupted(cli.parse(Options, list(sys.argv[1:] if argv is None else argv), "index"))


def serve_until_interrupted(options: Options) -> None:
    """Start the service and wait for an interrupt.

    Raises:
        ConfigError: The service cannot start.
    """
    check_address(options.host, access_of(options))
    config = parse(options.model_dump(exclude={"host", "port", "where"}))
    application = application_of(config)
    if "RAY_ADDRESS" not in os.environ:
        _check_free(options.host, options.port)
    with ray_session():
        check_room(demands_of(config), ROOM_FIX)
        signal.signal(signal.SIGTERM, _interrupt)  # Ray's own handler would end the process at once
        try:
            serve.start(http_options={"host": options.host, "port": options.port})
            serve.run(application)
            print(f"http://{options.host}:{options.port}/ is ready, and /docs describes its API", flush=True)
            threading.Event().wait()
        except RuntimeError as error:
            raise ConfigError(f"the service did not start: {_reason(error)}") from None
        except KeyboardInterrupt:
            pass
        finally:
            serve.shutdown()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _check_free(host: str, port: int) -> None:
    """Raises ConfigError if the port is taken; Ray Serve would retry for minutes."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None


def _reason(error: RuntimeError) -> str:
    """Return the last line of the failed deployment's message, or of the error if no deployment failed."""
    applications = serve.status().applications.values()
    failed = [each.message for app in applications for each in app.deployments.values() if each.status == "DEPLOY_FAILED"]
    return (failed or [str(error)])[0].strip().splitlines()[-1]
