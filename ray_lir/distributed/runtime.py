"""Connecting to Ray: the cluster that RAY_ADDRESS names, one that this process already uses, or one of our own here."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError, RayTaskError

from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.storage.files import store_errors

logger = logging.getLogger(__name__)


def start_ray(num_cpus: int | None = None) -> bool:
    """Connects this process to Ray; returns whether it was this call that did.

    Under `ray job submit`, or when RAY_ADDRESS is set by hand, that cluster is used. Otherwise a cluster of this machine
    starts, with `num_cpus` CPUs (None: all) and no dashboard, and ends with the process. What workers print stays in
    Ray's log files, so that nothing comes between a job's results on standard output.

    Raises:
        ConfigError: if RAY_ADDRESS names no cluster that answers, or the cluster asks for another token.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _check_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError as error:
            raise ConfigError(_token_message(address)) from error
        except (OSError, ValueError) as error:
            if _is_unauthenticated(error):
                raise ConfigError(_token_message(address)) from error
            raise ConfigError(
                f"no Ray cluster answers at RAY_ADDRESS={address}; start it, or unset RAY_ADDRESS to use this machine"
            ) from error
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's actors make it print errors that are none
        try:
            with _silent():  # it announces such settings while it starts; what goes wrong comes as an exception
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError as error:
            raise ConfigError(_token_message("this machine")) from error
    logger.debug("Ray has %s", ray.cluster_resources())
    return True


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the body; disconnected (and a cluster of our own ended) afterwards, unless the process had it before."""
    started = start_ray(num_cpus)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _is_unauthenticated(error: BaseException | None) -> bool:
    """Whether a cluster refused the token: Ray reports that as a failure to connect, with the reason in its cause."""
    while error is not None:
        if "Unauthenticated" in str(error) or "AuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _token_message(place: str) -> str:
    return (
        f"Ray's token for {place} is missing or wrong; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's "
        "token (ray get-auth-token prints that of this machine)"
    )


def wait_for_machines() -> None:
    """Returns when the cluster has a CPU: one that grows with its work may begin with none. A task that wants it makes it grow."""
    if not ray.cluster_resources().get("CPU"):
        logger.info("the cluster has no machine that works yet; waiting for the first")
        ray.get(_nothing.remote())


@ray.remote(num_cpus=1, max_retries=-1)
def _nothing() -> None:
    pass


def error_of(error: BaseException) -> BaseException:
    """What a task or actor raised, out of what Ray wrapped around it, if it is a RayLirError or the fault of a store; otherwise `error`."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, (RayLirError, *store_errors())) and not isinstance(inner, RayTaskError):
            return inner
        inner = getattr(inner, "cause", None) or getattr(inner, "_base_exc", None) or inner.__cause__  # Ray's, Ray Train's, Python's
    return error


@contextmanager
def portable_errors() -> Iterator[None]:
    """For what runs in another process: what a store raised there arrives as an OSError with its message.

    The exceptions of botocore and aiohttp hold connections, sockets and locks, and do not come through Ray as themselves.
    """
    try:
        yield
    except store_errors() as error:
        if type(error).__module__ == OSError.__module__:
            raise
        raise OSError(" ".join(f"{type(error).__name__}: {error}".split())) from None


def _check_answers(address: str) -> None:
    """Raises OSError if nobody listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


@contextmanager
def _silent() -> Iterator[None]:
    """Discards what this process writes to standard error, C++ code included."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
