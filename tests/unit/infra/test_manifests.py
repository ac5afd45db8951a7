"""infra/: every manifest has only documented fields, and names only existing things."""

import fnmatch
import importlib
import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from jobs.__main__ import VERBS
from jobs.cli import parse
from jobs.demo import DemoJob
from serving import metrics
from serving.app import ServeConfig
from serving.ray_env import RAY_ENV
from tests.support import promql
from tests.support.kubernetes_schema import KINDS, RayClusterSpec
from tests.support.promql import series_of
from tests.support.repository import REPOSITORY

INFRA = REPOSITORY / "infra"
RAY = importlib.metadata.version("ray")
KUBERAY = sorted((INFRA / "kuberay").glob("*.yaml"))
RAY_SERVE_SERIES = {"ray_serve_deployment_replica_healthy", "ray_serve_deployment_queued_queries"}
JOBS = {"encode": "EncodeJob", "build_index": "BuildIndexJob"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def checked(path: Path) -> Any:
    document = read(path)
    return KINDS[document["kind"]].model_validate(document)


def cluster_of(path: Path) -> RayClusterSpec:
    spec = checked(path).spec
    return next(each for each in (getattr(spec, "rayClusterSpec", None), getattr(spec, "rayClusterConfig", None), spec) if each)


CLUSTERS = [path for path in KUBERAY if read(path)["kind"].startswith("Ray")]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_manifest_has_only_documented_fields(path):
    document = read(path)
    checked(path)
    document["spec"]["replica"] = 1
    with pytest.raises(ValidationError, match="replica"):
        KINDS[document["kind"]].model_validate(document)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_a_cluster_runs_one_version_of_ray_and_mounts_declared_volumes(path):
    cluster = cluster_of(path)
    assert cluster.rayVersion == RAY
    for group in cluster.groups:
        pod = group.template.spec
        volumes = {volume.name for volume in pod.volumes}
        for container in pod.containers:
            assert {mount.name for mount in container.volumeMounts} <= volumes
            assert container.resources.requests == container.resources.limits  # Ray counts on the requested resources
            assert re.fullmatch(r"REGISTRY/ray-lir:[\d.]+(-gpu)?", container.image)
            assert container.image.endswith("-gpu") == ("nvidia.com/gpu" in container.resources.limits)
    for group in cluster.workerGroupSpecs:
        assert group.minReplicas <= group.replicas <= group.maxReplicas


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_pod_is_found_and_scraped(path):
    monitor = checked(INFRA / "kuberay" / "podmonitor.yaml").spec
    [port] = [endpoint.port for endpoint in monitor.podMetricsEndpoints]
    for group in cluster_of(path).groups:
        assert monitor.selector["matchLabels"].items() <= group.template.metadata.labels.items()
        assert port in {each.name for container in group.template.spec.containers for each in container.ports}


def test_job_entrypoints_are_valid_command_lines():
    source = (INFRA / "kuberay" / "rayjob.yaml").read_text()
    comments = re.findall(r"#   (ray-lir .*)", source)
    for command in (yaml.safe_load(source)["spec"]["entrypoint"], *comments):
        program, verb, *arguments = shlex.split(command)
        assert program == "ray-lir" and verb in VERBS
        parse(getattr(importlib.import_module(f"jobs.{verb}"), JOBS[verb]), arguments)


@pytest.mark.parametrize("name", ["rayservice.yaml", "rayservice-gpu.yaml"])
def test_ray_serve_and_the_application_accept_the_service_manifest(name):
    manifest = checked(INFRA / "kuberay" / name)
    config = yaml.safe_load(manifest.spec.serveConfigV2)
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "ray_lir_apps.serving.app:build"
    arguments = ServeConfig.model_validate(application.args)
    assert arguments.tokens  # it listens on a network, and would not start without tokens
    pods = [group.template.spec for group in cluster_of(INFRA / "kuberay" / name).groups]
    for pod in pods:
        mounts = [mount.mountPath for mount in pod.containers[0].volumeMounts]
        assert all(any(path.startswith(mount) for mount in mounts) for path in (arguments.index, arguments.tokens))
        environment = {each.name: each.value for each in pod.containers[0].env}
        wrapper = {name: environment.pop(name) for name in ("RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_LIR_HAPROXY")}
        assert all(path in (INFRA / "Dockerfile").read_text() for path in wrapper.values())
        assert environment.items() <= RAY_ENV.items()
    cpus = [int(pod.containers[0].resources.requests["cpu"]) for pod in pods]
    needed_cpus = arguments.replicas * (arguments.encoder_cpus + arguments.num_groups * arguments.shard_cpus) + 1
    workers = cluster_of(INFRA / "kuberay" / name).workerGroupSpecs
    assert needed_cpus <= cpus[0] + sum(cpu * group.replicas for cpu, group in zip(cpus[1:], workers, strict=True))
    gpus = [int(pod.containers[0].resources.limits.get("nvidia.com/gpu", 0)) for pod in pods[1:]]
    reserved = arguments.replicas * (arguments.encoder_gpus + arguments.num_groups * arguments.shard_gpus)
    assert reserved == sum(gpu * group.replicas for gpu, group in zip(gpus, workers, strict=True))


def test_the_network_policy_exposes_only_the_service():
    policy = checked(INFRA / "kuberay" / "networkpolicy.yaml").spec
    for path in CLUSTERS:
        for group in cluster_of(path).groups:
            assert policy.podSelector["matchLabels"].items() <= group.template.metadata.labels.items()
    [open_to_all] = [rule for rule in policy.ingress if "from" not in rule]
    assert [port["port"] for port in open_to_all["ports"]] == [8000]


def test_the_image_runs_haproxy_through_the_wrapper():
    dockerfile = (INFRA / "Dockerfile").read_text()
    assert "COPY --from=wheel /source/serving/haproxy.sh /usr/local/bin/ray-lir-haproxy" in dockerfile
    assert "RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/ray-lir-haproxy" in dockerfile
    assert ".get_haproxy_binary()" in dockerfile


def test_the_cluster_file_follows_rays_schema_and_uses_spot_workers():
    config = read(REPOSITORY / "cluster.yaml")
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in ("cpu", "gpu"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(types[name]["max_workers"] for name in ("cpu", "gpu")) <= config["max_workers"]


def exported_series() -> dict[str, set[str]]:
    """Return the series that the service exports, each with its labels."""
    series = {}
    for metric in (each for each in vars(metrics.Metrics()).values() if hasattr(each, "info")):
        for name in series_of(type(metric).__name__, metric.info["name"]):
            series[name] = {*metric.info["tag_keys"], *(["le"] if name.endswith("_bucket") else [])}
    return series


def expressions() -> list[str]:
    rules = [rule["expr"] for group in read(INFRA / "monitoring" / "alerts.yaml")["groups"] for rule in group["rules"]]
    boards = [json.loads(path.read_text()) for path in (INFRA / "grafana").glob("*.json")]
    return rules + [target["expr"] for board in boards for panel in board["panels"] for target in panel.get("targets", ())]


@pytest.mark.parametrize("expression", expressions())
def test_alerts_and_dashboards_read_series_and_labels_that_the_service_exports(expression: str) -> None:
    exported = exported_series()
    found = promql.selections(expression)
    assert found
    for selection in found:
        if selection.metric.startswith("ray_serve_"):
            assert selection.metric in RAY_SERVE_SERIES and selection.labels <= {"deployment"}
        else:
            assert selection.metric in exported, f"the service exports no {selection.metric}"
            assert selection.labels <= exported[selection.metric], selection


@pytest.mark.parametrize("expression", ["sum(rate(ray_lir_requests_total[5m])", "sum(rate(ray_lir_requests_total))", "sum by (le (x)"])
def test_an_invalid_promql_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError):
        promql.selections(expression)


def test_alerts_have_a_duration_a_severity_and_an_annotation() -> None:
    for group in read(INFRA / "monitoring" / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"} and rule["labels"]["severity"] in ("page", "look")
            assert re.fullmatch(r"\d+m", rule["for"])


def test_monitoring_mounts_existing_files_at_the_expected_paths():
    folder = INFRA / "monitoring"
    services = read(folder / "compose.yaml")["services"]
    targets = {}
    for service in services.values():
        for volume in service["volumes"]:
            source, target, mode = volume.split(":")
            assert mode == "ro" and (source.startswith("/") or (folder / source).exists()), volume
            targets[target] = source
    prometheus = read(folder / "prometheus.yaml")
    assert set(prometheus["rule_files"]) <= set(targets)
    assert f"--config.file={next(target for target in targets if target.endswith('prometheus.yaml'))}" in services["prometheus"]["command"]
    [provider] = read(folder / "grafana-dashboards.yaml")["providers"]
    assert targets[provider["options"]["path"]] == "../grafana"
    [source] = read(folder / "grafana-datasources.yaml")["datasources"]
    assert source["url"].removeprefix("http://") in str(services["prometheus"]["command"])


def allowed(policy: dict[str, Any], action: str, resource: str) -> bool:
    """Return whether a policy allows an action on a resource, over TLS."""

    def matches(value: str | list[str], name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, each) for each in ([value] if isinstance(value, str) else value))

    hits = [each for each in policy["Statement"] if matches(each["Action"], action) and matches(each["Resource"], resource)]
    return any(each["Effect"] == "Allow" for each in hits)


@pytest.mark.parametrize(
    ("name", "action", "key", "expected"),
    [
        ("jobs", "s3:GetObject", "corpus/part-0.jsonl.gz", True),
        ("jobs", "s3:PutObject", "corpus/part-0.jsonl.gz", False),
        ("jobs", "s3:PutObject", "index/LATEST", True),
        ("jobs", "s3:AbortMultipartUpload", "embeddings/embeddings/part-0.parquet", True),
        ("jobs", "s3:DeleteObject", "index/_work/x", True),
        ("jobs", "s3:DeleteObject", "other/file", False),
        ("jobs", "s3:PutBucketPolicy", "index", False),
        ("service", "s3:GetObject", "index/versions/1/manifest.json", True),
        ("service", "s3:GetObject", "corpus/part-0.jsonl.gz", False),
        ("service", "s3:PutObject", "index/LATEST", False),
        ("service-writes", "s3:PutObject", "index/writes/1.json", True),
        ("service-writes", "s3:DeleteObject", "index/versions/1/manifest.json", True),
        ("service-writes", "s3:PutObject", "checkpoints/x", False),
    ],
)
def test_s3_policies_allow_only_the_needed_actions(name, action, key, expected):
    policy = json.loads((INFRA / "aws" / f"{name}-policy.json").read_text())
    assert allowed(policy, action, f"arn:aws:s3:::BUCKET/{key}") == expected
    assert all("*" not in each["Action"] for each in policy["Statement"] if each["Effect"] == "Allow")
    [deny] = [each for each in policy["Statement"] if each["Effect"] == "Deny"]
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_image_copies_existing_files_that_dockerignore_includes():
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]]
    assert len(copied) >= 8
    for name in copied:
        assert (REPOSITORY / name).exists() and f"!{name}" in ignore, name
    assert any(line == f"ARG RAY_IMAGE=rayproject/ray:{RAY}-py311" for line in lines)


def test_the_local_configuration_serves_the_index_of_the_demo():
    config = read(REPOSITORY / "serving" / "config" / "local.yaml")
    [application] = ServeDeploySchema.model_validate(config).applications
    job = DemoJob()
    assert ServeConfig.model_validate(application.args).index == f"{job.output}/{job.num_docs}-documents/index"
    assert re.search(rf"^DEMO_DOCS \?= {job.num_docs}$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_the_workflow_builds_images_for_cpu_and_gpu_from_arguments_of_the_dockerfile():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "images.yml").read_text())
    dockerfile = (INFRA / "Dockerfile").read_text()
    declared = set(re.findall(r"^ARG (\w+)=", dockerfile, flags=re.M))
    builds = {
        each["name"]: dict(line.split("=", 1) for line in each["arguments"].split())
        for each in workflow["jobs"]["build"]["strategy"]["matrix"]["include"]
    }
    assert set(builds) == {"amd64", "arm64", "gpu"}
    for arguments in builds.values():
        assert set(arguments) <= declared
        assert f":{RAY}-py311" in arguments.get("RAY_IMAGE", f":{RAY}-py311")
    assert "gpu" in builds["gpu"]["EXTRAS"].split(",") and builds["gpu"]["RAY_IMAGE"].endswith("-gpu")
    assert f"rayproject/ray:{RAY}-py311" in dockerfile


def test_the_workflow_builds_wheels_for_every_supported_python_and_processor():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "wheels.yml").read_text())
    job = workflow["jobs"]["wheels"]
    assert {each["arch"] for each in job["strategy"]["matrix"]["include"]} == {"x86_64", "aarch64"}
    [built] = [step["env"]["CIBW_BUILD"] for step in job["steps"] if "CIBW_BUILD" in step.get("env", {})]
    assert built.split() == [f"cp3{minor}-manylinux_*" for minor in (11, 12, 13)]
