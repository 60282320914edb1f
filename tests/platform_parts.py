"""What tests do with each part of a platform that ``tests/platform/conftest.py`` installs."""

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from hack.addons import argo, mlflow, prometheus
from hack.addons.cluster import Cluster
from patience import HANG_SECONDS

Document = dict[str, Any]


def get(cluster: Cluster, kind: str, namespace: str, name: str) -> Document:
    """Return one object."""
    found: Document = json.loads(cluster.run("kubectl", "-n", namespace, "get", kind, name, "-o", "json"))
    return found


def address(cluster: Cluster, namespace: str, port: int) -> str:
    """Return the URL of a namespace's one pod, as this machine reaches it: at its own address, on the node's bridge."""
    pods = json.loads(cluster.run("kubectl", "-n", namespace, "get", "pods", "-o", "json"))["items"]
    (pod,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return f"http://{pod['status']['podIP']}:{port}"


def conditions(document: Document) -> dict[str, Document]:
    """Return an object's conditions by type."""
    return {item["type"]: item for item in document.get("status", {}).get("conditions", ())}


@dataclass(frozen=True)
class Kueue:
    """Kueue on the cluster, and what an administrator makes for it."""

    cluster: Cluster

    def make_queue(self, namespace: str, name: str, quota: dict[str, str], preemption: str = "Never") -> None:
        """Make a LocalQueue and a ClusterQueue of its own with a quota, such as ``{"cpu": "1"}``.

        Args:
            preemption: ``withinClusterQueue``, such as LowerPriority.
        """
        self._apply("ResourceFlavor", "default", {})
        resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
        group = {"coveredResources": list(quota), "flavors": [{"name": "default", "resources": resources}]}
        spec = {"namespaceSelector": {}, "resourceGroups": [group], "preemption": {"withinClusterQueue": preemption}}
        self._apply("ClusterQueue", f"{namespace}-{name}", spec)
        self._apply("LocalQueue", name, {"clusterQueue": f"{namespace}-{name}"}, namespace)

    def make_priority(self, name: str, value: int) -> None:
        """Make a WorkloadPriorityClass."""
        self._apply("WorkloadPriorityClass", name, value=value)

    def stop(self, namespace: str, name: str, policy: str = "HoldAndDrain") -> None:
        """Stop a queue; None, the policy, resumes it. HoldAndDrain evicts what runs, Hold lets it end."""
        patch = json.dumps({"spec": {"stopPolicy": policy}})
        self.cluster.run("kubectl", "patch", "clusterqueue", f"{namespace}-{name}", "--type=merge", "-p", patch)

    def workloads(self, namespace: str) -> dict[str, Document]:
        """Return Kueue's own objects by the names of the Jobs that they stand for."""
        listed = json.loads(self.cluster.run("kubectl", "-n", namespace, "get", "workloads", "-o", "json"))["items"]
        return {item["metadata"]["ownerReferences"][0]["name"]: item for item in listed}

    def _apply(self, kind: str, name: str, spec: Any = None, namespace: str = "", **fields: Any) -> None:
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, **fields}
        self.cluster.apply(json.dumps(body if spec is None else {**body, "spec": spec}))


@dataclass(frozen=True)
class Argo:
    """Argo's controller on the cluster."""

    cluster: Cluster

    def allow(self, namespace: str, account: str, rules: list[Document]) -> None:
        """Make a ServiceAccount under which steps may run, and let it do what their ``resource`` asks for."""
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
        executor = {**role, "kind": "ClusterRole", "name": argo.EXECUTOR_ROLE}
        rbac = "rbac.authorization.k8s.io/v1"
        bodies: list[Document] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}},
            {"apiVersion": rbac, "kind": "Role", "metadata": {"name": account}, "rules": rules},
        ]
        for name, reference in ((account, role), (f"{account}-executor", executor)):
            subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
            body: Document = {
                "apiVersion": rbac,
                "kind": "RoleBinding",
                "metadata": {"name": name},
                "roleRef": reference,
            }
            bodies.append({**body, "subjects": [subject]})
        for body in bodies:
            body["metadata"] = {**body["metadata"], "namespace": namespace}
            self.cluster.apply(json.dumps(body))

    def start(self, namespace: str, name: str, spec: Document) -> None:
        """Create a Workflow."""
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": spec}
        self.cluster.apply(json.dumps({**body, "metadata": {"name": name, "namespace": namespace}}))

    def ended(self, namespace: str, name: str) -> Document | None:
        """Return a Workflow's status when it has ended, with its nodes (steps) by display name."""
        status: Document = get(self.cluster, "workflow", namespace, name).get("status", {})
        if status.get("phase") not in ("Succeeded", "Failed", "Error"):
            return None
        return {**status, "nodes": {node["displayName"]: node for node in status.get("nodes", {}).values()}}


@dataclass(frozen=True)
class Prometheus:
    """The Prometheus on the cluster."""

    cluster: Cluster

    def ask(self, path: str) -> Any:
        """Return the ``data`` of an answer of its API, such as that of ``targets`` or ``query?query=up``."""
        url = f"{address(self.cluster, prometheus.NAMESPACE, 9090)}/api/v1/{path}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def rules(self, files: dict[str, str]) -> None:
        """Replace its rules, given as YAML by file name (``*.yaml``), and wait until it is up with them."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "data": files}
        self.cluster.apply(json.dumps({**body, "metadata": {"name": "rules", "namespace": prometheus.NAMESPACE}}))
        self.cluster.run("kubectl", "-n", prometheus.NAMESPACE, "rollout", "restart", "deployment/prometheus")
        self.cluster.await_deployment(prometheus.NAMESPACE, "prometheus")


@dataclass(frozen=True)
class MLflow:
    """MLflow's server on the cluster."""

    cluster: Cluster
    uri = "http://mlflow.mlflow:5000"
    """As pods reach it."""

    @property
    def address(self) -> str:
        """As this machine reaches it; another one after its pod has been replaced."""
        return address(self.cluster, mlflow.NAMESPACE, 5000)

    def get(self, path: str) -> Any:
        """Return the answer of its API to a question, such as ``experiments/get-by-name?experiment_name=digits``."""
        return self._ask(path, None)

    def post(self, path: str, body: Document) -> Any:
        """Return the answer of its API to a document, such as that of ``runs/search``."""
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        url = f"{self.address}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def scale(self, replicas: int) -> None:
        """Take the server away (0), or bring it back (1) with all that it knew."""
        self.cluster.run("kubectl", "-n", mlflow.NAMESPACE, "scale", "deployment/mlflow", f"--replicas={replicas}")
        self.cluster.await_deployment(mlflow.NAMESPACE, "mlflow")
        if replicas == 0:
            # It may wait for those who are connected, as long as its grace period lasts.
            words = ["wait", "--for=delete", "pod", "-l", "app=mlflow", f"--timeout={HANG_SECONDS:.0f}s"]
            self.cluster.run("kubectl", "-n", mlflow.NAMESPACE, *words)

    def kill(self) -> None:
        """End the server without a warning, and wait until another one is there, with all that it had answered for."""
        self.cluster.run(
            "kubectl", "-n", mlflow.NAMESPACE, "delete", "pod", "-l", "app=mlflow", "--grace-period=0", "--force"
        )
        self.cluster.await_deployment(mlflow.NAMESPACE, "mlflow")
