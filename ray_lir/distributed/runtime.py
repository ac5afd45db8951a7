"""Connects this process to Ray: to the cluster of RAY_ADDRESS, or to a local cluster that ends with the process."""

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
    """Connect this process to Ray, unless it is connected already.

    If RAY_ADDRESS is set, as under `ray job submit`, its cluster is used. Otherwise a local cluster starts, without a dashboard, and
    ends with the process. Output of workers goes to Ray's log files, so that it does not mix with a job's result on standard output.

    Args:
        num_cpus: CPUs of a local cluster. None: all CPUs of this machine.

    Returns:
        Whether this call made the connection.

    Raises:
        ConfigError: No cluster answers at RAY_ADDRESS, or it requires another token.
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
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # actors of Ray Data make it print harmless errors
        try:
            with _silent():  # Ray prints such settings when it starts; real errors are raised
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError as error:
            raise ConfigError(_token_message("this machine")) from error
    logger.debug("Ray has %s", ray.cluster_resources())
    return True


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the body of a `with` block, and disconnect afterwards if this call made the connection.

    Args:
        num_cpus: CPUs of a local cluster. None: all CPUs of this machine.
    """
    started = start_ray(num_cpus)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _is_unauthenticated(error: BaseException | None) -> bool:
    """Whether a cluster refused the token. Ray reports a failed connection, with the reason in the chain of causes."""
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
    """Wait until the cluster has a CPU. An autoscaling cluster may start without CPUs and adds a machine when a task needs one."""
    if not ray.cluster_resources().get("CPU"):
        logger.info("the cluster has no worker machine yet; waiting for the first")
        ray.get(_nothing.remote())


@ray.remote(num_cpus=1, max_retries=-1)
def _nothing() -> None:
    pass


def error_of(error: BaseException) -> BaseException:
    """Return the RayLirError or storage error that a task or actor raised, without Ray's wrappers; otherwise return `error`."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, (RayLirError, *store_errors())) and not isinstance(inner, RayTaskError):
            return inner
        inner = (
            getattr(inner, "cause", None) or getattr(inner, "_base_exc", None) or inner.__cause__
        )  # the cause as Ray, Ray Train and Python store it
    return error


@contextmanager
def portable_errors() -> Iterator[None]:
    """Convert storage errors in the body of a `with` block to OSErrors with the same message, which Ray can pickle.

    Exceptions of botocore and aiohttp hold connections, sockets and locks, so they cannot be pickled.
    """
    try:
        yield
    except store_errors() as error:
        if type(error).__module__ == OSError.__module__:
            raise
        raise OSError(" ".join(f"{type(error).__name__}: {error}".split())) from None


def _check_answers(address: str) -> None:
    """Raises OSError if no process listens at host:port. Ray itself would retry for minutes."""
    host, colon, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


@contextmanager
def _silent() -> Iterator[None]:
    """Discards output of this process to standard error, including output of C++ code."""
    sys.stderr.flush()
    original, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(devnull)
