"""infra/helm: the chart, rendered by Helm itself, against the manifests in infra/kuberay and the documented fields of each kind."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from ray_lir import __version__
from serving.app import ServeConfig
from tests.support.kubernetes_schema import KINDS
from tests.support.repository import REPOSITORY

helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk: Helm as a library")
CHART = REPOSITORY / "infra" / "helm" / "ray-lir"
GPU = {
    "workers": {"gpus": 1, "cpu": "7", "memory": "28Gi"},
    "service": {"args": {"replicas": 1, "shard_cpus": 2, "shard_gpus": 1, "gpu_memory_gb": 24}},
}
JOB = {
    "jobs": {"encode": {"entrypoint": "ray-lir encode --corpus s3://BUCKET/corpus --output s3://BUCKET/embeddings --docs_per_part 4096"}}
}
SPOT = {"jobDefaults": {"workers": {"nodeSelector": {"karpenter.sh/capacity-type": "spot"}}}}


def rendered(values: dict[str, Any] | None = None, name: str = "search") -> dict[str, dict[str, Any]]:
    """Returns the objects by kind, after Helm has checked the values."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        files = chart.render(values or {}, name=name, namespace="default")
    documents = [each for file, text in files.items() if not file.endswith(".txt") for each in yaml.safe_load_all(text) if each]
    for document in documents:
        KINDS[document["kind"]].model_validate(document)
    return {document["kind"]: document for document in documents}


def manifest(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / "infra" / "kuberay" / f"{name}.yaml").read_text())


def with_parsed_config(service: dict[str, Any]) -> dict[str, Any]:
    spec = service["spec"]
    return {**service, "spec": {**spec, "serveConfigV2": yaml.safe_load(spec["serveConfigV2"])}}


def test_helm_finds_no_fault():
    assert [each for each in helm.lint(CHART)["messages"] if each["severity"] > 1] == []  # 1: recommendations, such as an icon


def test_the_default_values_give_the_manifests_of_kuberay():
    objects = rendered()
    assert set(objects) == {"RayService", "NetworkPolicy"}
    assert with_parsed_config(objects["RayService"]) == with_parsed_config(manifest("rayservice"))
    assert objects["NetworkPolicy"]["spec"] == manifest("networkpolicy")["spec"]


def test_gpus_give_the_manifest_with_gpus():
    assert with_parsed_config(rendered(GPU, "search-gpu")["RayService"]) == with_parsed_config(manifest("rayservice-gpu"))


def test_a_job_and_the_monitor_equal_their_manifests():
    objects = rendered({**JOB, **SPOT, "podMonitor": {"enabled": True}, "service": {"enabled": False}}, "ray-lir")
    assert set(objects) == {"RayJob", "PodMonitor", "NetworkPolicy"}
    assert objects["RayJob"]["spec"] == manifest("rayjob")["spec"] and objects["RayJob"]["metadata"]["name"] == "ray-lir-encode"
    assert objects["PodMonitor"] == manifest("podmonitor")


def test_values_reach_the_service():
    values = {
        "image": {"repository": "registry.local/lir", "tag": "1.2.3"},
        "index": {"mountPath": "/data", "subPath": "wiki/index", "claim": "wiki"},
        "tokens": {"secret": "wiki-tokens"},
        "service": {"args": {"num_groups": 4, "hedge_percentile": 90}},
        "workers": {"replicas": 4, "nodeSelector": {"pool": "search"}},
    }
    spec = rendered(values)["RayService"]["spec"]
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    arguments = ServeConfig.model_validate(application.args)
    assert (arguments.index, arguments.num_groups, arguments.hedge_percentile) == ("/data/wiki/index", 4, 90)
    [workers] = spec["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    assert workers["replicas"] == 4 and pod["nodeSelector"] == {"pool": "search"}
    assert pod["containers"][0]["image"] == "registry.local/lir:1.2.3"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "wiki" and pod["volumes"][1]["secret"]["secretName"] == "wiki-tokens"


@pytest.mark.parametrize(
    "values",
    [
        {"images": {}},
        {"workers": {"replicas": -1}},
        {"workers": {"cpu": 14}},
        {"head": {"memory": "16"}},
        {"index": {"mountPath": "index"}},
        {"service": {"args": {"tokens": "/tmp/tokens.yaml"}}},
        {"jobs": {"Encode": {"entrypoint": "ray-lir encode"}}},
        {"jobs": {"encode": {}}},
    ],
)
def test_wrong_values_are_refused_by_the_schema(values):
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": {"gpus": 1}}, "set service.args.shard_gpus"),
        ({"service": {"args": {"shard_gpus": 1}}}, "set workers.gpus"),
    ],
)
def test_gpus_without_their_counterpart_are_refused(values, message):
    with pytest.raises(helm.HelmError, match=message):
        rendered(values)


def test_the_chart_has_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_notes_name_what_the_release_has():
    with helm.Chart.load(CHART) as chart:
        files = chart.render(JOB, name="search", namespace="wiki")
    [notes] = [text for name, text in files.items() if Path(name).name == "NOTES.txt"]
    assert "kubectl -n wiki get rayservice search" in notes and "rayjob search-encode" in notes
