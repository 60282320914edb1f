"""Objects that the API server admits and that are made to harm: experiments of one tenant, pods of anybody."""

import json
from collections.abc import Callable
from typing import Any

from experiments import manifest

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.resources import EXPERIMENTS, PODS

Kubectl = Callable[..., Any]

_HERE = '"here"'
# What the namespaces of careful people ask of a pod.
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
PARTS: dict[str, dict[str, Any]] = {
    "trainer": manifest()["spec"]["trainer"],
    "controller": {},
    "finalTraining": {"top": 1},
    "tracking": {"mlflow": {"uri": "http://mlflow.example:5000"}},
}


def nested(levels: int, *, lists: bool = False) -> str:
    return "[" * levels + "1" + "]" * levels if lists else '{"a":' * levels + "1" + "}" * levels


def container(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


# Text where Python could not write it.
TEMPLATES: dict[str, tuple[str, Any]] = {
    "deep-trainer": ("trainer", nested(1_100)),
    "deeper-trainer": ("trainer", nested(9_000)),
    "deep-lists": ("trainer", f'{{"spec": {nested(9_000, lists=True)}}}'),
    "deep-controller": ("controller", nested(9_000)),
    "deep-final": ("finalTraining", nested(1_100)),
    "deep-tracking": ("tracking", nested(1_100)),
    "a-level-too-deep": ("trainer", nested(32)),
    **{f"large-{i}": ("trainer", '{"a": [' + "{}," * 440_000 + "{}]}") for i in range(5)},
    "large-text": ("controller", {"metadata": {"annotations": {"a": "x" * 1_300_000}}}),
    "a-byte-too-large": ("trainer", {"spec": {"a": "x" * 65_520}}),
    "metadata-text": ("trainer", {"metadata": "x"}),
    "metadata-list": ("controller", {"metadata": [1]}),
    "labels-list": ("trainer", {"metadata": {"labels": ["x"]}}),
    "annotations-number": ("trainer", {"metadata": {"annotations": 3}}),
    "spec-null": ("trainer", '{"spec": null}'),
    "spec-list": ("controller", {"spec": ["x"]}),
    "containers-null": ("trainer", '{"spec": {"containers": null}}'),
    "containers-map": ("trainer", {"spec": {"containers": {"name": "trainer"}}}),
    "containers-text": ("controller", {"spec": {"containers": ["x"]}}),
    "init-text": ("trainer", {"spec": {"initContainers": "x"}}),
    "volumes-number": ("trainer", {"spec": {"volumes": 3}}),
    "env-text": ("trainer", container(env="x")),
    "env-map": ("trainer", container(env={"a": {"b": "c"}})),
    "resources-number": ("trainer", container(resources=3)),
    "name-map": ("trainer", container(name={"a": 1})),
    "mounts-of-no-path": ("trainer", container(volumeMounts=[{"name": "x"}])),
    "ports-of-maps": ("trainer", container(ports=[{"containerPort": {"a": 1}}])),
    "spread-null": ("trainer", {"spec": {"topologySpreadConstraints": [{"topologyKey": None}]}}),
    "huge-number": ("trainer", container(resources={"limits": {"cpu": 10**300}})),
}


def admit(kubectl: Kubectl, namespace: str, name: str, part: str, template: Any) -> None:
    """Make an experiment with a template, which may be text that Python's encoder could not write.

    Args:
        kubectl: runs kubectl with words and ``stdin``, and returns what became of it.
        namespace: the experiment's.
        name: the experiment's.
        part: of the spec, which has the template.
        template: as a value, or as JSON.
    """
    raw = manifest(namespace, name, **{part: {**PARTS[part], "template": "here"}})
    text = json.dumps(raw).replace(_HERE, template if isinstance(template, str) else json.dumps(template))
    path = f"/{EXPERIMENTS.path(namespace).lstrip('/')}"
    made = kubectl("create", "--raw", path, "-f", "-", stdin=text)
    assert made.returncode == 0, f"{name} was not admitted: {made.stderr[:300]}"


def pod(name: str, labels: dict[str, str], owners: list[dict[str, Any]], **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "ownerReferences": owners, "annotations": annotations},
        "spec": {"containers": [{"name": "controller", "image": "x", "securityContext": _RESTRICTED}]},
    }


def poison_pods(client: KubeClient, honest: dict[str, Any], elsewhere: str) -> list[tuple[str, str]]:
    """Make pods that say that they are the honest experiment's controllers or followers; return where they are."""
    namespace, uid = honest["metadata"]["namespace"], honest["metadata"]["uid"]
    labels = names.labels("honest", uid, names.ROLE_CONTROLLER)
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "honest", "uid": uid}
    true = [{**owner, "controller": True}]
    failures = names.ANNOTATION_QUICK_FAILURES
    followers = names.labels("honest", uid, names.ROLE_FOLLOWER)
    year_0 = {"phase": "Failed", "startTime": "0000-01-01T00:00:00Z"}
    made: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
        (elsewhere, pod("x-controller-99999999999999999999", labels, []), None),
        (elsewhere, pod(names.controller_pod("honest", uid, 7), labels, []), None),
        (elsewhere, pod("digits", labels, [], **{failures: "²"}), None),
        (elsewhere, pod("many-controller-1", labels, [], **{failures: "9" * 200_000}), None),
        (elsewhere, pod("ended-controller-1", labels, []), year_0),
        (elsewhere, pod("follows", followers, []), {"phase": "Succeeded"}),
        (elsewhere, pod("without", {names.LABEL_ROLE: names.ROLE_CONTROLLER}, []), None),
        (namespace, pod(names.controller_pod("honest", uid, 8), labels, [owner]), None),
        (namespace, pod("y-controller-99999999999999999999", labels, true, **{failures: "²"}), None),
        (namespace, pod("honest-controller-12", labels, true), {"phase": "Running"}),
        (namespace, pod("follows", followers, true), {"phase": "Succeeded"}),
    ]
    for where, body, status in made:
        client.create(PODS, where, body)
        if status is not None:
            client.patch(PODS, where, body["metadata"]["name"], {"status": status}, subresource="status")
    return [(where, body["metadata"]["name"]) for where, body, _ in made]


def progressing(client: KubeClient, namespace: str, name: str) -> tuple[str, str]:
    """Return reason and message, of the tracker's condition where the search has nothing to complain of."""
    conditions = (client.get(EXPERIMENTS, namespace, name).get("status") or {}).get("conditions") or ()
    found = {item["type"]: item for item in conditions}
    waits = found.get("Tracking", {}).get("reason") == "InvalidTemplate"
    chosen = found.get("Tracking" if waits else "Progressing", {})
    return chosen.get("reason", ""), chosen.get("message", "")
