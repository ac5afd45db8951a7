"""Connecting to a Ray cluster: the message says whether the cluster is absent or refuses the token."""

from functools import partial

import pytest
import ray
from ray.exceptions import AuthenticationError

from ray_lir.base.errors import ConfigError
from ray_lir.distributed import runtime
from ray_lir.distributed.ray_map import name_of


def fail_with(error: Exception, cause: Exception | None = None):
    def init(**_: object) -> None:
        raise error from cause

    return init


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (
            AuthenticationError("Token authentication is enabled but no authentication token was found"),
            None,
            "token for .* missing or wrong",
        ),
        (
            ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6391"),
            RuntimeError("Failed to connect to GCS. ... ray.exceptions.RpcError: Unauthenticated: InvalidAuthToken"),
            "token for .* missing or wrong; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN",
        ),
        (ConnectionError("refused"), None, "no Ray cluster answers at RAY_ADDRESS=192.0.2.2:6391"),
    ],
)
def test_a_refused_token_and_a_missing_cluster_have_different_errors(monkeypatch, error, cause, message):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6391")
    monkeypatch.setattr(runtime, "_check_answers", lambda address: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail_with(error, cause))
    with pytest.raises(ConfigError, match=message) as caught:
        runtime.start_ray()
    assert "\n" not in str(caught.value)


def test_a_missing_token_of_a_local_cluster_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail_with(AuthenticationError("no token")))
    with pytest.raises(ConfigError, match="Ray's token for this machine is missing or wrong"):
        runtime.start_ray()


def test_tasks_have_the_name_of_their_step():
    def _compress_part(size: int, number: int) -> int:
        return size + number

    class Step:
        def __call__(self, number: int) -> int:
            return number

    assert name_of(partial(partial(_compress_part, 3))) == "compress part"
    assert name_of(Step()) == "Step"
