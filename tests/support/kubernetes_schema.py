"""The fields of Kubernetes objects that infra/kuberay uses; unknown fields are refused.

KubeRay's definitions are at https://ray-project.github.io/kuberay/reference/api/. Numbers of CPUs and bytes are quantities.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
PortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=15)]
Labels = dict[str, str]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Name | None = None
    labels: Labels = {}


class Resources(Part):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class ContainerPort(Part):
    containerPort: int = Field(ge=1, le=65535)
    name: PortName


class VolumeMount(Part):
    name: Name
    mountPath: str
    readOnly: bool = False


class Variable(Part):
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str


class Container(Part):
    name: Name
    image: str
    ports: list[ContainerPort] = []
    env: list[Variable] = []
    resources: Resources
    volumeMounts: list[VolumeMount] = []


class Claim(Part):
    claimName: Name
    readOnly: bool = False


class SecretVolume(Part):
    secretName: Name


class EmptyDir(Part):
    sizeLimit: Quantity | None = None


class Volume(Part):
    name: Name
    persistentVolumeClaim: Claim | None = None
    secret: SecretVolume | None = None
    emptyDir: EmptyDir | None = None


class Toleration(Part):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Part):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    serviceAccountName: Name | None = None
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int | None = None


class PodTemplate(Part):
    metadata: Metadata = Metadata()
    spec: PodSpec


class HeadGroup(Part):
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Part):
    groupName: Name
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: dict[str, str]
    template: PodTemplate


class AutoscalerOptions(Part):
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idleTimeoutSeconds: int = 60
    resources: Resources = Resources()


class RayClusterSpec(Part):
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]

    @property
    def groups(self) -> list[HeadGroup | WorkerGroup]:
        return [self.headGroupSpec, *self.workerGroupSpecs]


class RayJobSpec(Part):
    entrypoint: str
    rayClusterSpec: RayClusterSpec
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: int = Field(0, ge=0)
    activeDeadlineSeconds: int | None = Field(None, ge=1)
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = Field(0, ge=0)


class RayServiceSpec(Part):
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class Endpoint(Part):
    port: PortName
    interval: str


class PodMonitorSpec(Part):
    jobLabel: str
    namespaceSelector: dict[Literal["any", "matchNames"], Any]
    selector: dict[Literal["matchLabels"], Labels]
    podMetricsEndpoints: list[Endpoint]


class RayCluster(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


class PodMonitor(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class NetworkPolicySpec(Part):
    podSelector: dict[Literal["matchLabels"], Labels]
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[dict[Literal["from", "ports"], Any]]


class NetworkPolicy(Part):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec


KINDS = {kind.__name__: kind for kind in (RayCluster, RayJob, RayService, PodMonitor, NetworkPolicy)}
