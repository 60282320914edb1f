"""A real control plane (etcd, API server, controller manager, scheduler), shared by tests marked ``cluster``.

Fixtures: ``control_plane`` (one for the whole run, with our CustomResourceDefinition, removed at its end),
``namespace`` (a fresh one for one test) and ``shared_namespace`` (for one module). Loaded by ``conftest.py``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES

REPOSITORY = Path(__file__).resolve().parents[1]
CRD_FILE = REPOSITORY / "crds" / f"{names.GROUP}_{names.PLURAL}.yaml"


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane without nodes: pods are admitted, and stay pending."""

    kubeconfig: Path
    environment: dict[str, str] = field(repr=False)
    """For subprocesses: KUBECONFIG, and the matching kubectl first on PATH."""
    client: KubeClient
    """An administrator's."""

    def kubectl(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what it said, whether it succeeded or not."""
        command = ["kubectl", *words]
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": HANG_SECONDS}
        return subprocess.run(command, env=self.environment, input=stdin, **options)


def _cluster(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hack.cluster", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane of its own name and ports."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nas-operator" / "bin"
    if not list(cache.glob("kube-apiserver-*/kube-apiserver")):
        pytest.skip("no control plane: `python3 -m hack.cluster build` makes its programs")
    name = f"test-{uuid4().hex[:8]}"
    up = _cluster("up", "--control-plane-only", "--name", name)
    try:
        if up.returncode != 0:
            pytest.fail(f"the control plane did not come up:\n{up.stdout}{up.stderr}")
        printed = _cluster("run-with", "--name", name, "--", sys.executable, "-c", _PRINT_ENVIRONMENT)
        environment: dict[str, str] = json.loads(printed.stdout)
        kubeconfig = Path(environment["KUBECONFIG"])
        client = KubeClient.from_kubeconfig(kubeconfig)
        plane = ControlPlane(kubeconfig, environment, client)
        applied = plane.kubectl("apply", "--server-side", "-f", str(CRD_FILE))
        assert applied.returncode == 0, applied.stderr
        eventually(lambda: _established(client), message="the CustomResourceDefinition is served")
        yield plane
        client.close()
    finally:
        _cluster("down", "--name", name)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of its own, removed in the background after the test."""
    yield from _namespace(control_plane)


@pytest.fixture(scope="module")
def shared_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace for tests of one module that leave nothing in it."""
    yield from _namespace(control_plane)


def _namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = f"test-{uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    control_plane.client.create(NAMESPACES, None, body)
    yield name
    control_plane.client.delete(NAMESPACES, None, name)


_PRINT_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def _established(client: KubeClient) -> bool:
    crd = client.get(CUSTOM_RESOURCE_DEFINITIONS, None, f"{names.PLURAL}.{names.GROUP}")
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)
