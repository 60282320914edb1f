"""A real API server takes every object of the chart, and admits its pods where the restricted standard is enforced."""

import json
import subprocess
from typing import Any

import pytest
from chart.conftest import CHART, CI
from chart.test_chart import Render, pod_specs
from cluster_fixtures import ControlPlane
from patience import eventually

from nas_api import names

S3 = "embeddedS3.enabled=true"
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("programs")]


def dry_run(control_plane: ControlPlane, document: dict[str, Any]) -> None:
    """Apply on the server without effect; unknown and misspelt fields are errors."""
    done = control_plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-",
        stdin=json.dumps(document),
    )  # fmt: skip
    assert done.returncode == 0, f"{document['kind']}/{document['metadata']['name']}: {done.stderr}"


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str) -> str:
    done = control_plane.kubectl("label", "ns", namespace, "pod-security.kubernetes.io/enforce=restricted")
    assert done.returncode == 0, done.stderr
    return namespace


@pytest.mark.parametrize("file", CI)
def test_every_object_is_taken(control_plane: ControlPlane, namespace: str, render: Render, file: str) -> None:
    # Admission looks the pods' ServiceAccount and priority up, and a dry run leaves none.
    control_plane.kubectl("create", "serviceaccount", "nas-operator", "-n", namespace)
    control_plane.kubectl("create", "priorityclass", "high", "--value=1000")
    for document in render(f"watchNamespaces={{{namespace}}}", file=file, namespace=namespace):
        # The Prometheus operator's own kinds: this server has no definition of them.
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            dry_run(control_plane, document)


def test_pods_are_admitted_as_restricted(control_plane: ControlPlane, restricted: str, render: Render) -> None:
    specs = pod_specs(
        render(S3, "embeddedS3.existingSecret=nas-s3", r"gpuTest.limits.nvidia\.com/gpu=1", namespace=restricted)
    )
    assert len(specs) == 4
    control_plane.kubectl("create", "serviceaccount", "nas-operator", "-n", restricted)
    for index, spec in enumerate(specs.values()):
        metadata = {"name": f"pod-{index}", "namespace": restricted}
        dry_run(control_plane, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_a_pod_that_is_not_restricted_is_refused(control_plane: ControlPlane, restricted: str) -> None:
    """The namespace really enforces: otherwise the test above would prove nothing."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loose", "namespace": restricted},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }
    done = control_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    assert "violates PodSecurity" in done.stderr


def test_people_with_the_edit_role_may_write_specs_only(
    control_plane: ControlPlane, namespace: str, render: Render
) -> None:
    for document in render(namespace=namespace):
        if document["kind"] == "ClusterRole" and "aggregat" in json.dumps(document):
            control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    control_plane.kubectl("create", "rolebinding", "ann", "-n", namespace, "--clusterrole=edit", "--user=ann")

    def allowed(*words: str) -> bool:
        answer = control_plane.kubectl("auth", "can-i", *words, "-n", namespace, "--as=ann")
        return answer.stdout.strip() == "yes"

    eventually(lambda: allowed("create", "nasexperiments"), message="the edit role is aggregated")
    assert allowed("delete", "nasexperiments")
    assert not allowed("patch", "nasexperiments", "--subresource=status")


def test_notes_say_what_to_do_next(control_plane: ControlPlane, namespace: str) -> None:
    done = subprocess.run(
        # Other tests have put the cluster-wide objects there already.
        ["helm", "install", "x", str(CHART), "--dry-run=server", "--take-ownership", "-n", namespace, "--set", S3],
        env=control_plane.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    for line in ("helm test x", "kubectl apply", f"http://nas-s3.{namespace}:7070", "WARNING", "kubectl wait"):
        assert line in notes


def test_keys_are_drawn_once_and_kept(control_plane: ControlPlane, namespace: str) -> None:
    # The rest is cluster-wide, and other tests have put it there.
    off = ("crds.install", "rbac.createControllerRole", "rbac.aggregate", "admission.enabled")
    values = ",".join([S3, *(f"{name}=false" for name in off)])

    def keys(command: str) -> dict[str, str]:
        done = subprocess.run(
            ["helm", command, "keys", str(CHART), "-n", namespace, "--take-ownership", "--set", values],
            env=control_plane.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        secret = control_plane.kubectl("get", "secret", "nas-s3", "-n", namespace, "-o", "json")
        found: dict[str, str] = json.loads(secret.stdout)["data"]
        return found

    drawn = keys("install")
    assert set(drawn) == set(names.CREDENTIAL_KEYS)
    assert keys("upgrade") == drawn
    done = subprocess.run(["helm", "uninstall", "keys", "-n", namespace], env=control_plane.environment, check=False)
    assert done.returncode == 0
