"""The chart renders what the contract fixes, grants what is needed and no more, and refuses values it does not know."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from chart.conftest import CHART, Objects, helm
from hack.cluster import binaries

from nas_api import crd, names

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]
Render = Callable[..., Objects]
EVERYTHING = (
    "embeddedS3.enabled=true",
    "embeddedS3.persistence.enabled=true",
    "embeddedS3.persistence.storageClass=fast",
    "embeddedS3.sidecarMetadata=true",
    "images.registry=registry.example/nas",
    "images.tag=1.2.3",
    "images.pullSecrets={one,two}",
    "operator.priorityClassName=high",
    "operator.nodeSelector.pool=system",
    "operator.tolerations[0].key=system",
    "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=zone",
    "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    "operator.podAnnotations.a=b",
    "serviceAccount.annotations.a=b",
    "watchNamespaces={a,b}",
)


def one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    """Return the one object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pod_specs(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return every pod spec by kind/name."""
    out = {}
    for item in objects:
        if item["kind"] in ("Deployment", "Job"):
            out[f"{item['kind']}/{item['metadata']['name']}"] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            out[f"Pod/{item['metadata']['name']}"] = item["spec"]
    return out


@pytest.mark.parametrize("values", [(), EVERYTHING], ids=["defaults", "everything"])
def test_lint_and_schemas(render: Render, values: tuple[str, ...]) -> None:
    words = [word for value in values for word in ("--set", value)]
    linted = helm("lint", "--strict", str(CHART), *words)
    assert linted.returncode == 0, linted.stdout
    # Schemas are not at hand without a network: -ignore-missing-schemas leaves syntax, kinds and duplicate keys.
    done = subprocess.run(
        [binaries.BINARIES["kubeconform"].path, "-ignore-missing-schemas", "-schema-location", str(CHART), "-"],
        input=yaml.safe_dump_all(render(*values)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "value",
    [
        "imagez.tag=1",
        "images.operator.repositry=x",
        "images.pullPolicy=Sometimes",
        "operator.replicas=many",
        "operator.logLevel=loud",
        "operator.resources.request.cpu=1",
        "watchNamespaces=a",
        "watchNamespaces={A_b}",
        "crds.instal=true",
        "embeddedS3.bucket=UPPER",
        "embeddedS3.persistence.size=ten",
        "rbac.wide=true",
    ],
)
def test_unknown_and_wrong_values_are_refused(value: str) -> None:
    done = helm("template", "x", str(CHART), "--set", value)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert value.split("=")[0].split(".")[0] in done.stderr


def test_crd_is_the_models(render: Render) -> None:
    """The chart carries the CRD as nas_api has it, and `helm uninstall` keeps it."""
    document = one(render(), "CustomResourceDefinition", "nasexperiments.nas-operator.io")
    annotations = document["metadata"].pop("annotations")
    assert annotations == {"helm.sh/resource-policy": "keep"}
    assert document == yaml.safe_load(yaml.safe_dump(crd.custom_resource_definition()))
    assert not [item for item in render("crds.install=false") if item["kind"] == "CustomResourceDefinition"]


def test_operator_rights_are_exactly_these(render: Render) -> None:
    rules = one(render(), "ClusterRole", "nas-operator")["rules"]
    assert rules == [
        # Follow experiments; a person's spec is never written.
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments"], "verbs": ["get", "list", "watch"]},
        # Conditions, by server-side apply: no update, which could overwrite the controller's part.
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments/status"], "verbs": ["patch"]},
        # Controllers' pods are replaced, never changed; create is also the dry run of a child's pod.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]},
        # The dry run of a child's Job; list, to see that a suspended search has none left. Never get, delete or watch.
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "list"]},
        # No delete: they go with their experiment.
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get", "create"]},
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["rolebindings"],
            "verbs": ["get", "create", "patch"],
        },
        # The one role that may be handed out: without resourceNames the operator could make itself an administrator.
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": [names.CONTROLLER_CLUSTER_ROLE],
            "verbs": ["bind"],
        },
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        # Find out which volume a controller's pod cannot mount.
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    ]


def test_controller_rights_are_exactly_these(render: Render) -> None:
    rules = one(render(), "ClusterRole", names.CONTROLLER_CLUSTER_ROLE)["rules"]
    assert rules == [
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments/status"], "verbs": ["patch"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "delete"]},
        # Diagnosis only, so no watch: 800 children would be 800 streams of pod events.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["list"]},
    ]


def test_nobody_reads_secrets_or_has_wildcards(render: Render) -> None:
    for item in render(*EVERYTHING):
        for rule in item.get("rules", ()):
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in words
            assert "secrets" not in words


def test_watched_namespaces_bind_only_there(render: Render) -> None:
    objects = render("watchNamespaces={a,b}")
    assert not [item for item in objects if item["kind"] == "ClusterRoleBinding"]
    bindings = [item for item in objects if item["kind"] == "RoleBinding"]
    assert [item["metadata"]["namespace"] for item in bindings] == ["a", "b"]
    assert {item["subjects"][0]["namespace"] for item in bindings} == {"nas-system"}


def test_names_that_the_contract_fixes(render: Render) -> None:
    objects = render("embeddedS3.enabled=true", release="other")
    assert one(objects, "ClusterRole", names.CONTROLLER_CLUSTER_ROLE)
    secret = one(objects, "Secret", "nas-s3")
    assert set(secret["data"]) == set(names.CREDENTIAL_KEYS)
    assert one(objects, "Service", "nas-s3")["spec"]["ports"][0]["port"] == 7070
    assert one(objects, "Deployment", "other-nas-operator")


def test_images_reach_the_operator(render: Render) -> None:
    objects = render(
        "images.registry=registry.example", "images.tag=v7", "images.trainer.tag=v8", "watchNamespaces={a,b}"
    )
    (container,) = one(objects, "Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert container["image"] == "registry.example/nas-operator:v7"
    assert environment["NAS_CONTROLLER_IMAGE"] == "registry.example/nas-controller:v7"
    assert environment["NAS_TRAINER_IMAGE"] == "registry.example/nas-trainer:v8"
    assert environment["NAS_WATCH_NAMESPACES"] == "a,b"


def test_an_upgrade_does_not_restart_the_embedded_store(render: Render) -> None:
    """Its objects may be in an emptyDir, which goes with the pod."""
    before = one(render("embeddedS3.enabled=true", "images.tag=v1"), "Deployment", "nas-s3")
    after = one(render("embeddedS3.enabled=true", "images.tag=v2"), "Deployment", "nas-s3")
    assert before["spec"] == after["spec"]
    assert "version" not in str(before["spec"]["template"]["metadata"])


@pytest.mark.parametrize("values", [("embeddedS3.enabled=true",), EVERYTHING], ids=["s3", "everything"])
def test_pods_have_requests_and_a_read_only_root(render: Render, values: tuple[str, ...]) -> None:
    specs = pod_specs(render(*values))
    assert len(specs) == 3
    for name, spec in specs.items():
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert not container["image"].endswith(":latest"), name
        if not name.startswith("Pod/"):
            assert spec["containers"][0]["resources"]["requests"], name
