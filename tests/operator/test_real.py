"""The operator as a process against a real API server, with only the permissions that it is to have.

There is no node, so pods stay pending and a test plays the kubelet and the controller where it needs one.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import judges
import pytest
import yaml
from cluster_fixtures import REPOSITORY, ControlPlane
from experiments import manifest
from hack.cluster.network import choose_ports
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError
from nas_kube.resources import (
    CORE_EVENTS,
    EVENTS,
    EXPERIMENTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from nas_operator.plan import pause

pytestmark = pytest.mark.cluster


def chart_rules() -> list[dict[str, Any]]:
    """The operator's rules as the chart has them: that part of the template is plain YAML."""
    text = (REPOSITORY / "helm/nas-operator/templates/rbac.yaml").read_text()
    rules: list[dict[str, Any]] = yaml.safe_load(text.split("\nrules:\n", 1)[1].split("\n{{-", 1)[0])
    return rules


RULES = chart_rules()
RBAC = "rbac.authorization.k8s.io/v1"
CLUSTER_ROLES = Resource(RBAC, "clusterroles", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource(RBAC, "clusterrolebindings", namespaced=False)
RESOURCE_QUOTAS = Resource("v1", "resourcequotas")


@pytest.fixture(scope="module")
def limited_kubeconfig(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig for a ServiceAccount that may do what RULES say and nothing else."""
    client = control_plane.client
    name = f"operator-{uuid4().hex[:8]}"
    controller = {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": names.CONTROLLER_CLUSTER_ROLE}}
    client.apply(
        CLUSTER_ROLES,
        None,
        names.CONTROLLER_CLUSTER_ROLE,
        # More than the operator has itself, so that only `bind` can be why it may give it.
        {**controller, "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["delete"]}]},
        field_manager="test",
    )
    client.create(
        CLUSTER_ROLES, None, {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": RULES}
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    client.create(SERVICE_ACCOUNTS, "default", account)
    client.create(
        CLUSTER_ROLE_BINDINGS,
        None,
        {
            "apiVersion": RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        },
    )
    token = control_plane.kubectl("create", "token", name, "-n", "default").stdout.strip()
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    document["users"] = [{"name": item["name"], "user": {"token": token}} for item in document["users"]]
    file = tmp_path_factory.mktemp("operator") / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    return file


class Operator:
    """One operator process for one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path, **environment: str) -> None:
        self.port = choose_ports(["health"], ())["health"]
        self.log = folder / f"operator-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nas_operator"],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "KUBECONFIG": str(kubeconfig),
                    "NAS_CONTROLLER_IMAGE": "localhost/controller:1",
                    "NAS_TRAINER_IMAGE": "localhost/trainer:1",
                    "NAS_FOLLOWER_IMAGE": "localhost/follower:1",
                    "NAS_WATCH_NAMESPACES": namespace,
                    "NAS_HEALTH_PORT": str(self.port),
                    # As the chart tells it where its policies ask the authors.
                    names.ENV_UNRESTRICTED: "true",
                    **environment,
                },
                stderr=log,
            )

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text()
        # The last line may be just being written.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def started(self) -> "Operator":
        """Wait until the watches are open."""
        done = "Initial authentication has finished."
        eventually(lambda: any(line["event"] == done for line in self.lines()), message=self.log.read_text)
        return self

    def probe(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANG_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=HANG_SECONDS)


@pytest.fixture
def start(limited_kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Any]:
    """A function that starts an operator; all of them are ended after the test and must not have complained."""
    running: list[Operator] = []

    def start_one(**environment: str) -> Operator:
        running.append(Operator(limited_kubeconfig, namespace, tmp_path, **environment))
        return running[-1].started()

    yield start_one
    for operator in running:
        if operator.process.poll() is None:
            operator.stop()
    complaints = [line for operator in running for line in operator.lines() if line["level"] in ("error", "critical")]
    assert complaints == []


@pytest.fixture
def operator(start: Any) -> Operator:
    one: Operator = start()
    return one


class Lab:
    """What a test asks of, and does to, one namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def make(self, **spec: Any) -> dict[str, Any]:
        return self.client.create(EXPERIMENTS, self.namespace, manifest(self.namespace, **spec))

    def experiment(self) -> dict[str, Any]:
        return self.client.get(EXPERIMENTS, self.namespace, "digits")

    def spec(self, **spec: Any) -> None:
        self.client.patch(EXPERIMENTS, self.namespace, "digits", {"spec": spec})

    def condition(self, kind: str) -> dict[str, Any]:
        conditions = self.experiment().get("status", {}).get("conditions", ())
        return next((item for item in conditions if item["type"] == kind), {})

    def pods(self) -> list[str]:
        """Names of controller pods that are not being deleted, without what they share."""
        return sorted(item["metadata"]["name"].rpartition("-")[2] for item in self.live_pods())

    def live_pods(self) -> list[dict[str, Any]]:
        """The controller pods that are not being deleted."""
        found = self.client.list(PODS, self.namespace, label_selector=f"{names.LABEL_ROLE}=controller").items
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def pod(self, index: int) -> dict[str, Any]:
        uid = self.experiment()["metadata"]["uid"]
        return self.client.get(PODS, self.namespace, names.controller_pod("digits", uid, index))

    def play_scheduler(self, index: int) -> None:
        """Put a controller's pod on a node that exists only in name."""
        self.bind(self.pod(index)["metadata"]["name"])

    def bind(self, name: str) -> None:
        try:
            self.client.create(NODES, None, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "in-name-only"}})
        except ApiError as error:
            assert error.status == 409
        target = {"apiVersion": "v1", "kind": "Node", "name": "in-name-only"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        self.client.create(Resource("v1", f"pods/{name}/binding"), self.namespace, binding)

    def play_kubelet(self, index: int, status: dict[str, Any]) -> None:
        if "nodeName" not in self.pod(index)["spec"]:
            self.play_scheduler(index)
        self.client.patch(
            PODS, self.namespace, self.pod(index)["metadata"]["name"], {"status": status}, subresource="status"
        )

    def play_controller(self, **status: Any) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "digits"},
            "status": {"epoch": 1, **status},
        }
        self.client.apply(
            EXPERIMENTS,
            self.namespace,
            "digits",
            body,
            field_manager=names.FIELD_MANAGER_CONTROLLER,
            subresource="status",
        )

    def events(self) -> dict[str, str]:
        found = self.client.list(EVENTS, self.namespace).items
        return {item["reason"]: item["note"] for item in found if item["regarding"]["kind"] == names.KIND}

    def until_pods(self, *indices: str) -> None:
        eventually(lambda: self.pods() == list(indices), message=lambda: f"pods {indices}; there are {self.pods()}")

    def until_pod(self, index: int) -> None:
        eventually(lambda: str(index) in self.pods(), message=f"pod {index}")

    def until(self, kind: str, status: str, reason: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            item = self.condition(kind)
            return item if (item.get("status"), item.get("reason")) == (status, reason) else None

        found: dict[str, Any] = eventually(
            reached, message=lambda: f"{kind}={status}/{reason}, but {self.condition(kind)}"
        )
        return found


RUNNING = {
    "phase": "Running",
    "containerStatuses": [
        {
            "name": "controller",
            "ready": True,
            "restartCount": 0,
            "image": "i",
            "imageID": "i",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
    ],
}


@pytest.fixture
def lab(control_plane: ControlPlane, namespace: str) -> Lab:
    return Lab(control_plane.client, namespace)


def test_an_experiment_gets_its_controller_and_nothing_is_left_on_it(operator: Operator, lab: Lab) -> None:
    made = lab.make()
    lab.until_pods("1")
    # There is no node, and the operator says so.
    lab.until("Progressing", "False", "Unschedulable")
    now = lab.experiment()
    eventually(lambda: "no nodes available" in lab.events().get("Unschedulable", ""))
    assert "finalizers" not in now["metadata"]
    assert "annotations" not in now["metadata"]
    assert now["metadata"]["generation"] == made["metadata"]["generation"]
    assert now["status"]["state"] == "Waiting"
    uid = made["metadata"]["uid"]
    pod = lab.pod(1)
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["kind"], owner["blockOwnerDeletion"]) == (uid, "NASExperiment", False)
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["serviceAccountName"] == names.controller_service_account("digits", uid)
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "nas_controller"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["NAS_UID"] == uid
    assert environment["NAS_TRAINER_IMAGE"] == "localhost/trainer:1"
    assert "limits" not in container["resources"]
    binding = lab.client.get(ROLE_BINDINGS, lab.namespace, names.controller_service_account("digits", uid))
    assert binding["roleRef"]["name"] == names.CONTROLLER_CLUSTER_ROLE
    own = lab.client.get(ROLE_BINDINGS, lab.namespace, names.controller_own_binding("digits", uid))
    role = lab.client.get(ROLES, lab.namespace, own["roleRef"]["name"])
    assert {tuple(rule["resourceNames"]) for rule in role["rules"]} == {("digits",)}


def test_a_controller_may_follow_and_write_its_own_experiment_and_no_other(
    operator: Operator, lab: Lab, control_plane: ControlPlane
) -> None:
    """As the API server sees it, whose operator holds the chart's rights and no `escalate`."""
    made = lab.make()
    lab.until_pods("1")
    account = names.controller_service_account("digits", made["metadata"]["uid"])

    def may(verb: str, *what: str) -> bool:
        who = f"--as=system:serviceaccount:{lab.namespace}:{account}"
        return control_plane.kubectl("auth", "can-i", verb, *what, "-n", lab.namespace, who).stdout.strip() == "yes"

    experiments = f"{names.PLURAL}.{names.GROUP}"
    for verb in ("get", "list", "watch"):
        assert may(verb, f"{experiments}/digits")
        assert not may(verb, f"{experiments}/other") and not may(verb, experiments)
    assert may("patch", f"{experiments}/digits", "--subresource=status")
    assert not may("patch", f"{experiments}/other", "--subresource=status")
    assert not may("patch", f"{experiments}/digits")


def test_a_role_that_somebody_has_changed_is_set_right(start: Any, lab: Lab) -> None:
    first = start()
    made = lab.make()
    lab.until_pods("1")
    first.stop()
    name = names.controller_service_account("digits", made["metadata"]["uid"])
    rules = lab.client.get(ROLES, lab.namespace, name)["rules"]
    lab.client.patch(ROLES, lab.namespace, name, {"rules": rules[:1]})
    start()
    eventually(lambda: lab.client.get(ROLES, lab.namespace, name)["rules"] == rules, message="the Role's rules")


def test_without_policies_nobody_may_ask_for_more_than_the_list(start: Any, lab: Lab) -> None:
    start(**{names.ENV_UNRESTRICTED: ""})
    lab.make(trainer={"dataset": {"digits": {}}, "serviceAccountName": "default"})
    told = lab.until("Progressing", "False", "InvalidTemplate")
    assert told["message"].startswith("spec.trainer.serviceAccountName: names a ServiceAccount: remove it, or ask an")
    lab.spec(trainer={"serviceAccountName": None})
    lab.until_pods("1")


def test_children_of_several_pods_get_a_service_once_they_are_asked_for(operator: Operator, lab: Lab) -> None:
    """With the chart's rights, and during a run; it goes with its experiment."""

    def services() -> list[dict[str, Any]]:
        return lab.client.list(SERVICES, lab.namespace).items

    lab.make()
    lab.until_pods("1")
    assert services() == []
    lab.spec(finalTraining={"pods": 2})
    (service,) = eventually(services, message="the Service")
    uid = lab.experiment()["metadata"]["uid"]
    assert service["metadata"]["name"] == names.trainer_service("digits", uid)
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    lab.client.delete(EXPERIMENTS, lab.namespace, "digits")
    eventually(lambda: not services(), message="it goes with its experiment")


def test_a_restart_makes_no_write(start: Any, lab: Lab) -> None:
    first = start()
    lab.make()
    lab.until_pods("1")
    lab.play_kubelet(1, RUNNING)
    lab.play_controller(samples={"running": 2})
    lab.until("Progressing", "True", "Searching")
    assert first.stop() == 0
    before = (lab.experiment(), lab.pod(1), lab.events())
    second = start()
    time.sleep(3)
    assert second.process.poll() is None
    assert (lab.experiment(), lab.pod(1), lab.events()) == before


def test_two_operators_do_no_harm(start: Any, lab: Lab) -> None:
    """However their looks interleave, a lost controller is replaced, and one is left.

    By which number is open: an operator that has not yet seen its neighbour's pod come and go gives that name again.
    """
    start()
    start()
    lab.make()
    seen: set[str] = set()

    def successor() -> dict[str, Any] | None:
        live = lab.live_pods()
        return live[0] if len(live) == 1 and live[0]["metadata"]["uid"] not in seen else None

    for _ in range(4):
        pod = eventually(successor, message="one controller that was not there before")
        seen.add(pod["metadata"]["uid"])
        lab.client.delete(PODS, lab.namespace, pod["metadata"]["name"], uid=pod["metadata"]["uid"])
    last = eventually(successor, message="one controller after the last deletion")
    # Long enough, as a rule, for an operator that would take it down: one that is only slow to do so is not found out.
    time.sleep(2)

    def agreed() -> dict[str, Any] | None:
        live, recorded = lab.live_pods(), lab.experiment()["status"]["controller"]["pod"]
        return live[0] if [pod["metadata"]["name"] for pod in live] == [recorded] else None

    settled = eventually(agreed, message="one controller, which the status names")
    assert settled["metadata"]["uid"] not in seen
    # Nobody takes a controller down that nobody else has: the one that came last stays, or gave way to a newer one.
    assert settled["metadata"]["creationTimestamp"] >= last["metadata"]["creationTimestamp"]


def test_a_deleted_pod_is_replaced_at_once(operator: Operator, lab: Lab) -> None:
    lab.make()
    lab.until_pods("1")
    lab.client.delete(PODS, lab.namespace, lab.pod(1)["metadata"]["name"])
    lab.until_pods("2")
    # Only a failure that is counted makes a pause.
    assert lab.pod(2)["metadata"]["annotations"][names.ANNOTATION_QUICK_FAILURES] == "0"
    eventually(lambda: "ControllerReplaced" in lab.events())


def test_a_controller_that_keeps_failing_is_slowed_down_and_told(operator: Operator, lab: Lab) -> None:
    lab.make()
    for index in (1, 2):
        lab.until_pod(index)
        now = datetime.now(UTC).replace(microsecond=0)
        moment = now.isoformat().replace("+00:00", "Z")
        ended = {"exitCode": 1, "startedAt": moment, "finishedAt": moment, "message": "ModuleNotFoundError: torch"}
        status = {"name": "controller", "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}
        lab.play_kubelet(index, {"phase": "Failed", "containerStatuses": [{**status, "state": {"terminated": ended}}]})
    eventually(lambda: lab.pods() == ["2", "3"], message="the third after a pause, the first tidied away")
    third = lab.pod(3)["metadata"]
    assert third["annotations"][names.ANNOTATION_QUICK_FAILURES] == "2"
    assert datetime.fromisoformat(third["creationTimestamp"]) - now >= pause(2) > timedelta(0)
    eventually(lambda: "ControllerFailed" in lab.events())
    assert "2 times in a row. exit code 1: ModuleNotFoundError: torch" in lab.events()["ControllerFailed"]


def test_suspend_and_resume(operator: Operator, lab: Lab) -> None:
    lab.make(suspend=True)
    lab.until("Suspended", "True", "SuspendedByUser")
    assert lab.pods() == []
    lab.spec(suspend=False)
    lab.until_pods("1")
    lab.play_kubelet(1, RUNNING)
    lab.play_controller(samples={"running": 1})
    lab.until("Progressing", "True", "Searching")
    uid = lab.experiment()["metadata"]["uid"]
    labels = names.labels("digits", uid, names.ROLE_TRAINER)
    pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "i"}]}
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "digits", "uid": uid, "controller": True}
    # One that only bears the labels holds up nothing.
    for name, owners in (("child", [owner]), ("foreign", [])):
        metadata = {"name": name, "labels": labels, "ownerReferences": owners}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}
        lab.client.create(JOBS, lab.namespace, job)
    lab.spec(suspend=True)
    waiting = lab.until("Progressing", "True", "SuspendedByUser")
    assert "ending 1 children" in waiting["message"]
    assert lab.condition("Suspended")["status"] == "False"
    # The controller's counter alone does not convince: the child is still there.
    lab.play_controller(samples={"running": 0})
    time.sleep(1.5)
    assert lab.pods() == ["1"]
    lab.client.delete(JOBS, lab.namespace, "child")
    lab.until("Suspended", "True", "SuspendedByUser")
    lab.until_pods()
    lab.spec(suspend=False)
    lab.until_pods("2")
    lab.until("Suspended", "False", "NotSuspended")
    eventually(lambda: {"Suspended", "Resumed", "Searching"} <= set(lab.events()))


def test_an_invalid_template_is_told_in_the_servers_words_and_goes_on_once_corrected(
    operator: Operator, lab: Lab
) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "half"}}}]}}
    lab.make(trainer={"dataset": {"digits": {}}, "template": template})
    told = lab.until("Progressing", "False", "InvalidTemplate")
    assert told["message"].startswith("spec.trainer.template: ")
    assert "quantities must match the regular expression" in told["message"]
    assert lab.pods() == []
    assert lab.experiment()["status"]["state"] == "Waiting"
    assert lab.condition("Failed")["status"] == "False"
    lab.spec(trainer={"template": None})
    lab.until_pods("1")
    lab.until("Progressing", "False", "Unschedulable")
    assert "quantities must match" in lab.events()["InvalidTemplate"]


@pytest.mark.parametrize(
    ("part", "template", "words"),
    [
        ("trainer", {"spec": {"containers": [{"name": "trainer", "imagePolicy": "x"}]}}, "imagePolicy"),
        ("trainer", {"spec": {"containers": [{"name": "trainer", "ports": [{"containerPort": 0}]}]}}, "ports[0]"),
        ("trainer", {"spec": {"restartPolicy": "Always"}}, "restartPolicy"),
        ("trainer", {"spec": {"serviceAccountName": "nobody"}}, "serviceaccount"),
        ("controller", {"spec": {"priorityClassName": "royal"}}, "royal"),
        ("controller", {"spec": {"containers": [{"name": "controller", "image": ""}]}}, "containers[0].image"),
    ],
)
def test_templates_that_the_server_refuses(
    operator: Operator, lab: Lab, part: str, template: dict[str, Any], words: str
) -> None:
    trainer: dict[str, Any] = {"dataset": {"digits": {}}}
    spec = (
        {"trainer": {**trainer, "template": template}} if part == "trainer" else {"controller": {"template": template}}
    )
    lab.make(**spec)
    told = eventually(lambda: (it := lab.condition("Progressing")).get("status") == "False" and it)
    assert told["reason"] in ("InvalidTemplate", "ConfigMissing")
    assert f"spec.{part}.template" in told["message"]
    assert words in told["message"]
    assert lab.pods() == []


def test_a_template_that_becomes_invalid_during_a_run_leaves_the_controller_alone(operator: Operator, lab: Lab) -> None:
    lab.make()
    lab.until_pods("1")
    lab.play_kubelet(1, RUNNING)
    lab.play_controller(samples={"running": 1})
    lab.until("Progressing", "True", "Searching")
    lab.spec(trainer={"template": {"spec": {"nodeSelectors": {}}}})
    assert "nodeSelectors" in lab.until("Progressing", "False", "InvalidTemplate")["message"]
    assert lab.pods() == ["1"]
    lab.spec(trainer={"template": {"spec": {"nodeSelectors": None, "nodeSelector": {"a": "b"}}}})
    lab.until("Progressing", "True", "Searching")
    assert lab.pods() == ["1"]


def test_a_pod_security_violation_is_told(operator: Operator, lab: Lab) -> None:
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    lab.client.patch(NAMESPACES, None, lab.namespace, {"metadata": {"labels": label}})
    lab.make(trainer={"dataset": {"digits": {}}, "template": {"spec": {"hostNetwork": True}}})
    assert "violates PodSecurity" in lab.until("Progressing", "False", "InvalidTemplate")["message"]
    lab.spec(trainer={"template": None})
    lab.until_pods("1")


def test_a_full_quota_means_waiting(operator: Operator, lab: Lab) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}
    lab.client.create(RESOURCE_QUOTAS, lab.namespace, quota)
    eventually(lambda: "hard" in lab.client.get(RESOURCE_QUOTAS, lab.namespace, "q").get("status", {}))
    lab.make()
    told = lab.until("Progressing", "False", "QuotaExceeded")
    assert "exceeded quota: q" in told["message"]
    lab.client.patch(RESOURCE_QUOTAS, lab.namespace, "q", {"spec": {"hard": {"pods": "5"}}})
    lab.until_pods("1")


def test_a_change_of_the_controllers_template_replaces_the_pod(operator: Operator, lab: Lab) -> None:
    lab.make()
    lab.until_pods("1")
    lab.spec(parallelism=5)
    eventually(lambda: (it := lab.experiment())["status"]["observedGeneration"] == it["metadata"]["generation"])
    assert lab.pods() == ["1"]
    lab.spec(controller={"template": {"metadata": {"labels": {"team": "a"}}}})
    lab.until_pods("2")
    assert lab.pod(2)["metadata"]["labels"]["team"] == "a"


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        (
            {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "localhost/controller:1"'},
            "ImagePullFailed",
        ),
        ({"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}, "ConfigMissing"),
    ],
)
def test_what_the_kubelet_waits_for_is_told(operator: Operator, lab: Lab, waiting: dict[str, str], reason: str) -> None:
    lab.make()
    lab.until_pods("1")
    status = {"name": "controller", "ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    lab.play_kubelet(1, {"phase": "Pending", "containerStatuses": [{**status, "state": {"waiting": waiting}}]})
    assert waiting["message"] in lab.until("Progressing", "False", reason)["message"]
    lab.play_kubelet(1, RUNNING)
    lab.until("Progressing", "True", "ControllerStarting")


@pytest.mark.slow
def test_a_missing_volume_is_told_although_no_status_does(operator: Operator, lab: Lab) -> None:
    made = lab.make()
    lab.until_pods("1")
    lab.play_kubelet(1, {"phase": "Pending"})
    pod = lab.pod(1)["metadata"]
    event = {
        "metadata": {"name": "mount", "namespace": lab.namespace},
        "involvedObject": {"kind": "Pod", "name": pod["name"], "uid": pod["uid"], "namespace": lab.namespace},
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "ca" : configmap "ca" not found',
        "type": "Warning",
    }
    lab.client.create(CORE_EVENTS, lab.namespace, {"apiVersion": "v1", "kind": "Event", **event})
    eventually(lambda: lab.condition("Progressing").get("reason") == "ConfigMissing")
    assert 'configmap "ca" not found' in lab.condition("Progressing")["message"]
    assert made["metadata"]["uid"] == lab.experiment()["metadata"]["uid"]


def test_the_outcome_is_final(operator: Operator, lab: Lab) -> None:
    lab.make()
    lab.until_pods("1")
    lab.play_controller(outcome={"type": "Complete", "reason": "SamplesSpent", "message": "All were tried."})
    assert lab.until("Complete", "True", "SamplesSpent")["message"] == "All were tried."
    assert lab.experiment()["status"]["state"] == "Complete"
    assert lab.pods() == ["1"]
    lab.client.delete(PODS, lab.namespace, lab.pod(1)["metadata"]["name"])
    time.sleep(1.5)
    assert lab.pods() == []
    eventually(lambda: "Complete" in lab.events())


def followers(lab: Lab) -> list[dict[str, Any]]:
    """The pods that the Job of a follower has, but those being deleted."""
    found = lab.client.list(PODS, lab.namespace, label_selector=f"{names.LABEL_ROLE}=follower").items
    return [item for item in found if "deletionTimestamp" not in item["metadata"]]


def follower_jobs(lab: Lab) -> list[dict[str, Any]]:
    return lab.client.list(JOBS, lab.namespace, label_selector=f"{names.LABEL_ROLE}=follower").items


def follower_status(state: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    status = {"name": "follower", "ready": False, "restartCount": 1, "image": "i", "imageID": "i"}
    return {"phase": "Running", "containerStatuses": [{**status, "state": state, "lastState": last}]}


def test_a_tracker_gets_a_follower_which_is_replaced_and_removed(operator: Operator, lab: Lab) -> None:
    lab.make(tracking={"mlflow": {"uri": "http://mlflow.example:5000"}})
    eventually(lambda: followers(lab), message="no pod of a follower")
    lab.until_pods("1")
    (before,) = follower_jobs(lab)
    lab.play_kubelet(1, RUNNING)
    words = "MLflow at http://mlflow.example:5000 does not answer"
    end = {"exitCode": 1, "message": words, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}

    def play_kubelet(status: dict[str, Any]) -> None:
        (pod,) = followers(lab)
        if "nodeName" not in pod["spec"]:
            lab.bind(pod["metadata"]["name"])
        lab.client.patch(PODS, lab.namespace, pod["metadata"]["name"], {"status": status}, subresource="status")

    play_kubelet(follower_status(waiting, {"terminated": end}))
    assert lab.until("Tracking", "False", "FollowerFailed")["message"].startswith(words)
    eventually(lambda: words in lab.events().get("FollowerFailed", ""), message=lab.events)
    # Nothing waits for it.
    assert lab.condition("Progressing")["reason"] == "ControllerStarting" and not lab.condition("Stalled")
    play_kubelet(follower_status({"running": {"startedAt": "2026-01-01T00:00:30Z"}}, {"terminated": end}))
    lab.until("Tracking", "True", "Following")
    lab.spec(tracking={"mlflow": {"uri": "http://other.example:5000"}})

    def replaced() -> bool:
        return [item["metadata"]["uid"] for item in follower_jobs(lab)] not in ([], [before["metadata"]["uid"]])

    eventually(replaced, message="the Job was not replaced")
    assert "http://other.example:5000" in str(follower_jobs(lab)[0]["spec"]["template"])
    # As there is no node.
    lab.until("Tracking", "False", "Unschedulable")
    lab.spec(tracking=None)
    eventually(lambda: not follower_jobs(lab) and not lab.condition("Tracking"), message="a trace is left")
    assert lab.pods() == ["1"]


def test_a_followers_template_that_the_server_refuses_holds_up_no_search(operator: Operator, lab: Lab) -> None:
    mlflow = {"uri": "http://mlflow.example:5000"}
    lab.make(tracking={"mlflow": mlflow, "template": {"spec": {"restartPolicy": "Always"}}})
    lab.until_pods("1")
    message = lab.until("Tracking", "False", "FollowerFailed")["message"]
    assert message.startswith("The follower's Job was refused: spec.tracking.template: ") and "restartPolicy" in message
    lab.play_kubelet(1, RUNNING)
    lab.until("Progressing", "True", "ControllerStarting")
    assert not follower_jobs(lab)
    lab.spec(tracking={"mlflow": mlflow, "template": None})
    eventually(lambda: follower_jobs(lab), message="no follower after the correction")


def test_a_search_that_has_ended_still_gets_a_follower(operator: Operator, lab: Lab) -> None:
    lab.make()
    lab.until_pods("1")
    lab.play_controller(outcome={"type": "Complete", "reason": "SamplesSpent", "message": "All were tried."})
    lab.until("Complete", "True", "SamplesSpent")
    lab.spec(tracking={"mlflow": {"uri": "http://mlflow.example:5000"}})
    eventually(lambda: followers(lab), message="no pod of a follower")
    # As there is no node.
    lab.until("Tracking", "False", "Unschedulable")
    assert lab.condition("Ready")["status"] == "True"


def test_deleting_an_experiment_leaves_nothing(operator: Operator, lab: Lab) -> None:
    made = lab.make()
    lab.until_pods("1")
    name = names.controller_service_account("digits", made["metadata"]["uid"])
    lab.client.get(SERVICE_ACCOUNTS, lab.namespace, name)
    lab.client.delete(EXPERIMENTS, lab.namespace, "digits")

    def gone() -> bool:
        for resource in (SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS):
            try:
                lab.client.get(resource, lab.namespace, name)
            except ApiError as error:
                assert error.status == 404
            else:
                return False
        return lab.pods() == []

    eventually(gone)
    time.sleep(1.5)
    assert lab.pods() == []


def test_a_namesake_starts_anew(operator: Operator, lab: Lab) -> None:
    old = lab.make()
    lab.until_pods("1")
    lab.client.delete(EXPERIMENTS, lab.namespace, "digits")
    new = lab.make()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    wanted = names.controller_pod("digits", new["metadata"]["uid"], 1)

    def only_the_new() -> bool:
        found = lab.client.list(PODS, lab.namespace, label_selector=f"{names.LABEL_ROLE}=controller").items
        return [item["metadata"]["name"] for item in found] == [wanted]

    eventually(only_the_new)


def test_probes(operator: Operator) -> None:
    assert operator.probe("/healthz") == (200, "ok\n")
    assert operator.probe("/readyz") == (200, "ok\n")


def test_a_lost_permission_is_told(control_plane: ControlPlane, lab: Lab, tmp_path: Path) -> None:
    """An operator whose ServiceAccount may read everything and make nothing."""
    client = control_plane.client
    name = f"reader-{uuid4().hex[:8]}"
    rules = [rule for rule in RULES if "pods" not in rule["resources"] or rule["apiGroups"] != [""]]
    rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]})
    client.create(
        CLUSTER_ROLES, None, {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    client.create(SERVICE_ACCOUNTS, lab.namespace, account)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": lab.namespace}
    binding = {"kind": "RoleBinding", "metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
    client.create(ROLE_BINDINGS, lab.namespace, {"apiVersion": RBAC, **binding})
    token = control_plane.kubectl("create", "token", name, "-n", lab.namespace).stdout.strip()
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    document["users"] = [{"name": item["name"], "user": {"token": token}} for item in document["users"]]
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    operator = Operator(file, lab.namespace, tmp_path).started()
    try:
        lab.make()
        told = lab.until("Progressing", "False", "NotPermitted")
        assert 'cannot create resource "pods"' in told["message"]
    finally:
        operator.stop()


# ---------------------------------------------------------------- GitOps


def verdicts(lab: Lab) -> tuple[str, str]:
    """What kstatus and Argo CD's script make of the experiment."""
    raw = lab.experiment()
    return judges.kstatus(raw).status, judges.argo_cd(raw).status


@pytest.mark.usefixtures("judging_programs")
def test_others_read_each_state_off_what_is_written(start: Any, lab: Lab) -> None:
    lab.make()
    # Without an operator: nobody may take it for done.
    assert lab.experiment()["status"] == {"observedGeneration": -1}
    assert verdicts(lab) == ("InProgress", "Progressing")
    start()
    lab.until("Progressing", "False", "Unschedulable")
    assert verdicts(lab) == ("InProgress", "Suspended")
    assert "Add nodes, or correct requests" in judges.kstatus(lab.experiment()).message
    lab.play_kubelet(1, RUNNING)
    lab.play_controller(samples={"running": 2})
    lab.until("Progressing", "True", "Searching")
    assert verdicts(lab) == ("InProgress", "Progressing")
    lab.spec(suspend=True)
    lab.until("Progressing", "True", "SuspendedByUser")
    assert verdicts(lab) == ("InProgress", "Progressing")
    lab.play_controller(samples={"running": 0})
    lab.until("Suspended", "True", "SuspendedByUser")
    assert verdicts(lab) == ("InProgress", "Suspended")


@pytest.mark.usefixtures("judging_programs")
@pytest.mark.parametrize(
    ("kind", "expected"), [("Complete", ("Current", "Healthy")), ("Failed", ("Failed", "Degraded"))]
)
def test_others_read_the_end_off_what_is_written(
    operator: Operator, lab: Lab, control_plane: ControlPlane, kind: str, expected: tuple[str, str]
) -> None:
    lab.make()
    lab.until_pods("1")
    lab.play_controller(outcome={"type": kind, "reason": "TheReason", "message": "The log's words."})
    lab.until(kind, "True", "TheReason")
    assert verdicts(lab) == expected
    waited = control_plane.kubectl("wait", "--for=condition=Ready", "nas/digits", "-n", lab.namespace, "--timeout=0")
    assert (waited.returncode == 0) is (kind == "Complete"), waited.stderr
    assert operator.stop() == 0
    lab.spec(parallelism=3)
    assert verdicts(lab) == ("InProgress", "Progressing")


def contained(part: Any, whole: Any) -> bool:
    """Whether all that a manifest says stands in the object as it is written there."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contained(part[key], whole.get(key)) for key in part)
    if isinstance(part, list):
        same = isinstance(whole, list) and len(part) == len(whole)
        return same and all(contained(one, other) for one, other in zip(part, whole, strict=True))
    return bool(part == whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "manner",
    [("--server-side", "--field-manager=kustomize-controller"), ()],
    ids=["as Flux does, and Argo CD with ServerSideApply", "as Argo CD does by default"],
)
def test_applying_again_changes_nothing(start: Any, lab: Lab, control_plane: ControlPlane, manner: tuple[str]) -> None:
    """Every manifest of examples/, applied, looked at by the operator, reported on by a controller, applied again."""
    found = [file for file in (REPOSITORY / "examples").rglob("*.yaml") if "kind: NASExperiment" in file.read_text()]
    wanted = {
        document["metadata"]["name"]: document for file in found for document in [yaml.safe_load(file.read_text())]
    }
    files = [word for file in found for word in ("-f", str(file))]

    def kubectl(verb: str) -> subprocess.CompletedProcess[str]:
        return control_plane.kubectl(verb, *manner, "-n", lab.namespace, *files)

    def live() -> dict[str, dict[str, Any]]:
        listed = lab.client.list(EXPERIMENTS, lab.namespace).items
        return {item["metadata"]["name"]: item for item in listed}

    operator = start()
    applied = kubectl("apply")
    assert applied.returncode == 0, applied.stderr
    eventually(lambda: all(item["status"].get("state") == "Waiting" for item in live().values()), message=live)
    assert operator.stop() == 0
    for name in wanted:
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "status": {"epoch": 1}}
        manager = names.FIELD_MANAGER_CONTROLLER
        lab.client.apply(EXPERIMENTS, lab.namespace, name, body, field_manager=manager, subresource="status")
    before = live()
    assert before.keys() == wanted.keys()
    assert [name for name in wanted if not contained(wanted[name], before[name])] == []
    assert kubectl("apply").returncode == 0
    assert live() == before
    difference = kubectl("diff")
    assert (difference.returncode, difference.stdout) == (0, ""), difference.stderr
    # What the manifest leaves open may be set by hand; what it says may not, and that is found.
    lab.client.patch(EXPERIMENTS, lab.namespace, "digits", {"spec": {"suspend": True}})
    assert kubectl("diff").returncode == 0
    lab.client.patch(EXPERIMENTS, lab.namespace, "digits", {"spec": {"budget": {"samples": 7}}})
    assert kubectl("diff").returncode != 0


def test_an_older_operator_takes_back_what_it_does_not_know(start: Any, lab: Lab) -> None:
    """Rolled back and upgraded again: the older one's apply leaves no stale condition, the newer one writes once."""
    first = start()
    lab.make()
    lab.until_pods("1")
    lab.play_kubelet(1, RUNNING)
    lab.play_controller(samples={"running": 2})
    lab.until("Progressing", "True", "Searching")
    assert first.stop() == 0
    status = lab.experiment()["status"]
    batch = ("Progressing", "Suspended", "Complete", "Failed")
    older = {key: status[key] for key in ("observedGeneration", "state", "controller")}
    older["conditions"] = [item for item in status["conditions"] if item["type"] in batch]
    lab.client.apply(
        EXPERIMENTS,
        lab.namespace,
        "digits",
        {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "digits"}, "status": older},
        field_manager=names.FIELD_MANAGER_OPERATOR,
        subresource="status",
    )
    after = lab.experiment()["status"]
    assert {item["type"] for item in after["conditions"]} == set(batch)
    assert (after["epoch"], after["samples"]) == (1, {"running": 2})
    second = start()
    lab.until("Ready", "False", "Searching")
    time.sleep(2)
    assert second.stop() == 0
    assert len([line for line in second.lines() if line["event"] == "status written"]) == 1
