"""Each part of the platform does what later tests take for granted, with nothing of ours on the cluster."""

import json
from functools import partial
from typing import Any

import pytest
from hack.addons import mlflow as mlflow_part
from hack.addons.cluster import Cluster
from patience import eventually
from platform_parts import Argo, Document, Kueue, MLflow, Prometheus, conditions, get

pytestmark = [pytest.mark.platform, pytest.mark.node]

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def start(cluster: Cluster, namespace: str, name: str, command: list[str], **more: Any) -> None:
    """Create a Job that asks for one CPU of its queue and runs a command in MLflow's image, which has Python.

    Args:
        more: labels, and ``suspend``.
    """
    container = {
        "name": "main",
        "image": mlflow_part.reference(),
        "imagePullPolicy": "Never",
        "command": command,
        "resources": {"requests": {"cpu": "100m"}},
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    metadata = {"name": name, "namespace": namespace, "labels": more.get("labels", {})}
    spec = {"backoffLimit": 0, "suspend": more.get("suspend", False), "template": {"spec": pod}}
    cluster.apply(json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}))


def holds(document: Document, condition: str) -> bool:
    return conditions(document).get(condition, {}).get("status") == "True"


# mlflow: its image is what the Jobs run.
def test_kueue_runs_suspended_jobs_one_after_the_other(kueue: Kueue, mlflow: MLflow, namespace: str) -> None:
    cluster = kueue.cluster
    kueue.make_queue(namespace, "gpu", {"cpu": "100m"})
    for name in ("first", "second"):
        labels = {"kueue.x-k8s.io/queue-name": "gpu"}
        start(cluster, namespace, name, ["sleep", "5"], labels=labels, suspend=True)

    def waits() -> Document | None:
        second = kueue.workloads(namespace).get("second", {})
        return conditions(second).get("QuotaReserved")

    waiting = eventually(waits)
    assert waiting["status"] == "False"
    assert "insufficient unused quota for cpu in flavor default" in waiting["message"]

    def complete(name: str) -> Document | None:
        job = get(cluster, "job", namespace, name)
        return job if holds(job, "Complete") else None

    jobs = [eventually(partial(complete, name)) for name in ("first", "second")]
    assert jobs[0]["status"]["completionTime"] <= jobs[1]["status"]["startTime"]


def test_kueue_preempts_for_a_higher_class_and_stops_and_resumes_a_queue(
    kueue: Kueue, mlflow: MLflow, namespace: str
) -> None:
    cluster = kueue.cluster
    kueue.make_queue(namespace, "gpu", {"cpu": "100m"}, preemption="LowerPriority")
    kueue.make_priority("high", 1000)
    queue = {"kueue.x-k8s.io/queue-name": "gpu"}
    start(cluster, namespace, "low", ["sleep", "1000"], labels=queue, suspend=True)

    def runs(name: str) -> bool:
        return not get(cluster, "job", namespace, name)["spec"]["suspend"]

    eventually(lambda: runs("low"))
    more = {"kueue.x-k8s.io/priority-class": "high"}
    start(cluster, namespace, "high", ["sleep", "1000"], labels={**queue, **more}, suspend=True)
    eventually(lambda: runs("high") and not runs("low"))
    kueue.stop(namespace, "gpu")
    eventually(lambda: not runs("high"))
    kueue.stop(namespace, "gpu", "None")
    eventually(lambda: runs("high"))


@pytest.mark.parametrize(("value", "phase"), [("good", "Succeeded"), ("bad", "Failed")])
def test_argo_makes_an_object_and_waits_for_what_becomes_of_it(
    argo: Argo, namespace: str, value: str, phase: str
) -> None:
    argo.allow(namespace, "steps", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get"]}])
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}, "data": {"value": value}}
    resource = {
        "action": "create",
        "manifest": json.dumps(body),
        "successCondition": "data.value == good",
        "failureCondition": "data.value == bad",
    }
    value_out = {"name": "value", "valueFrom": {"jsonPath": "{.data.value}"}}
    template = {"name": "make", "resource": resource, "outputs": {"parameters": [value_out]}}
    argo.start(namespace, "flow", {"entrypoint": "make", "serviceAccountName": "steps", "templates": [template]})
    ended = eventually(lambda: argo.ended(namespace, "flow"))
    assert ended["phase"] == phase, ended
    # Where it fails, it fails for what became of it.
    assert get(argo.cluster, "configmap", namespace, "made")["data"] == {"value": value}
    outputs = ended["nodes"]["flow"].get("outputs", {}).get("parameters", [])
    assert [item["value"] for item in outputs] == (["good"] if phase == "Succeeded" else [])


def test_prometheus_scrapes_itself_and_takes_rules(prometheus: Prometheus) -> None:
    rule = {"alert": "Always", "expr": 'up{job="prometheus"} == 1'}
    prometheus.rules({"test.yaml": json.dumps({"groups": [{"name": "test", "rules": [rule]}]})})
    try:
        alerts = eventually(lambda: prometheus.ask("alerts")["alerts"])
        assert [(alert["labels"]["alertname"], alert["state"]) for alert in alerts] == [("Always", "firing")]
        (up,) = prometheus.ask("query?query=up{job='prometheus'}")["result"]
        assert up["value"][1] == "1"
    finally:
        prometheus.rules({})


CLIENT = """
import mlflow
mlflow.set_tracking_uri("{uri}")
mlflow.set_experiment("parts")
with mlflow.start_run(run_name="one"):
    mlflow.log_metric("accuracy", 0.75, step=3)
    mlflow.log_text("hello", "greeting.txt")
"""


def test_mlflow_keeps_a_run_and_its_artifact_while_it_is_away(mlflow: MLflow, namespace: str) -> None:
    start(mlflow.cluster, namespace, "client", ["python", "-c", CLIENT.format(uri=mlflow.uri)])
    eventually(lambda: holds(get(mlflow.cluster, "job", namespace, "client"), "Complete"))
    mlflow.scale(0)
    mlflow.scale(1)
    experiment = mlflow.get("experiments/get-by-name?experiment_name=parts")["experiment"]
    (run,) = mlflow.post("runs/search", {"experiment_ids": [experiment["experiment_id"]]})["runs"]
    (metric,) = run["data"]["metrics"]
    assert (metric["key"], metric["value"], metric["step"]) == ("accuracy", 0.75, 3)
    assert run["info"]["run_name"] == "one"
    files = mlflow.get(f"artifacts/list?run_id={run['info']['run_id']}")["files"]
    assert [file["path"] for file in files] == ["greeting.txt"]
