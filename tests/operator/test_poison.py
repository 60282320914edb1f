"""Hostile objects that a real API server admits, beside one honest experiment: nobody is harmed but their owner.

Without admission policies, with the operator as a process, all of them there when it starts and again when it starts
anew, and some made while it watches.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cluster_fixtures import ControlPlane
from experiments import manifest
from hack.cluster.network import choose_ports
from hostile_objects import TEMPLATES, admit, nested, poison_pods, progressing
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.resources import EXPERIMENTS, NAMESPACES, PODS, ROLE_BINDINGS, SERVICE_ACCOUNTS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# What the chart gives it.
_MOST_MEMORY = 512 * 1024 * 1024


class Operator:
    """An operator's process for some namespaces."""

    def __init__(self, control_plane: ControlPlane, namespaces: list[str], folder: Path) -> None:
        self.log = folder / f"operator-{uuid4().hex[:6]}.log"
        ports = choose_ports(["health", "metrics"], ())
        self.metrics = ports["metrics"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nas_operator"],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "KUBECONFIG": str(control_plane.kubeconfig),
                    "NAS_CONTROLLER_IMAGE": "localhost/controller:1",
                    "NAS_TRAINER_IMAGE": "localhost/trainer:1",
                    "NAS_FOLLOWER_IMAGE": "localhost/follower:1",
                    "NAS_WATCH_NAMESPACES": ",".join(namespaces),
                    "NAS_HEALTH_PORT": str(ports["health"]),
                    "NAS_METRICS_PORT": str(ports["metrics"]),
                },
                stderr=log,
            )

    def text(self) -> str:
        return self.log.read_text()

    def most_memory(self) -> int:
        """The most that was resident so far, in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=HANG_SECONDS)


@pytest.fixture
def elsewhere(control_plane: ControlPlane) -> Iterator[str]:
    """Another tenant's namespace."""
    name = f"test-{uuid4().hex[:10]}"
    control_plane.client.create(NAMESPACES, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    control_plane.client.delete(NAMESPACES, None, name)


@pytest.fixture
def start(
    control_plane: ControlPlane, namespace: str, elsewhere: str, tmp_path: Path
) -> Iterator[Callable[[], Operator]]:
    running: list[Operator] = []

    def start_one() -> Operator:
        running.append(Operator(control_plane, [namespace, elsewhere], tmp_path))
        return running[-1]

    yield start_one
    for operator in running:
        if operator.process.poll() is None:
            operator.stop()


def test_hostile_objects_harm_nobody_else(
    control_plane: ControlPlane, namespace: str, elsewhere: str, start: Callable[[], Operator]
) -> None:
    client = control_plane.client
    for name, (part, template) in TEMPLATES.items():
        admit(control_plane.kubectl, elsewhere, name, part, template)
    honest = client.create(EXPERIMENTS, namespace, manifest(namespace, "honest"))
    pods = poison_pods(client, honest, elsewhere)
    taken = {}
    for name, resource, kind in (
        ("bound", ROLE_BINDINGS, "RoleBinding"),
        ("named", SERVICE_ACCOUNTS, "ServiceAccount"),
    ):
        made = client.create(EXPERIMENTS, elsewhere, manifest(elsewhere, name))
        taken[name] = names.controller_service_account(name, made["metadata"]["uid"])
        api = "v1" if kind == "ServiceAccount" else "rbac.authorization.k8s.io/v1"
        body: dict[str, Any] = {"apiVersion": api, "kind": kind, "metadata": {"name": taken[name]}}
        if kind == "RoleBinding":
            body["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        client.create(resource, elsewhere, body)
    recorded = client.create(EXPERIMENTS, elsewhere, manifest(elsewhere, "recorded"))
    # As whoever may write a status, or has a controller's token, could.
    status = {"status": {"controller": {"pod": f"recorded-controller-{'9' * 200}"}}}
    client.patch(EXPERIMENTS, elsewhere, "recorded", status, subresource="status")

    for _ in range(2):
        operator = start()
        _see_that_all_is_told(client, operator, honest, elsewhere, taken, recorded)
        # While it watches: one that is there is changed, another is made.
        late = f"late-{uuid4().hex[:6]}"
        admit(control_plane.kubectl, elsewhere, late, "trainer", nested(9_000))
        _until_told(client, operator, elsewhere, late)
        assert operator.process.poll() is None, operator.text()
        peak = operator.most_memory()
        print(f"at most {peak / 2**20:.0f} MiB resident")
        assert peak < _MOST_MEMORY
        assert operator.stop() == 0
    for where, name in pods:
        assert "deletionTimestamp" not in client.get(PODS, where, name)["metadata"], f"{name} is not ours to delete"


def _until_told(client: KubeClient, operator: Operator, namespace: str, name: str, reason: str = "") -> None:
    """Wait until an experiment says how it stands, for this reason if one is given."""

    def told() -> bool:
        found, _ = progressing(client, namespace, name)
        return found == reason if reason else bool(found)

    eventually(told, message=lambda: f"{name} is told of\n{operator.text()}")


def _see_that_all_is_told(
    client: KubeClient,
    operator: Operator,
    honest: dict[str, Any],
    elsewhere: str,
    taken: dict[str, str],
    recorded: dict[str, Any],
) -> None:
    namespace, uid = honest["metadata"]["namespace"], honest["metadata"]["uid"]
    first = names.controller_pod("honest", uid, 1)

    def follows() -> bool:
        status = client.get(EXPERIMENTS, namespace, "honest").get("status") or {}
        return bool((status.get("controller") or {}).get("pod") == first)

    eventually(follows, message=operator.text)
    assert client.get(PODS, namespace, first)["metadata"]["ownerReferences"][0]["uid"] == uid
    assert progressing(client, namespace, "honest")[0] in ("ControllerStarting", "Unschedulable")
    for name in TEMPLATES:
        _until_told(client, operator, elsewhere, name)
    said = {name: progressing(client, elsewhere, name) for name in TEMPLATES}
    harmless = {name for name, (reason, _) in said.items() if reason not in ("InvalidTemplate", "Unreadable")}
    # A node's to refuse.
    assert harmless <= {"huge-number"}, said
    for name, (part, template) in TEMPLATES.items():
        if name not in harmless and (isinstance(template, str) or name.startswith(("large", "metadata", "labels"))):
            assert f"spec.{part}.template" in said[name][1], (name, said[name])
    for name, object_name in taken.items():
        _until_told(client, operator, elsewhere, name, "NameTaken")
        assert object_name in progressing(client, elsewhere, name)[1]
    own = names.controller_pod("recorded", recorded["metadata"]["uid"], 1)
    eventually(lambda: client.get(PODS, elsewhere, own), message=operator.text)
