"""What a template may ask for: a table, and that the API server's rules decide as ours do."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_api.authority import PARTS, beyond, claims, refuse
from nas_api.experiment import NASExperiment, NASExperimentSpec
from nas_api.pod_template import ALLOWED

Template = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
OWN = {"trainer": "trainer", "finalTraining": "trainer", "controller": "controller", "tracking": "follower"}


def pod(**spec: Any) -> Template:
    return {"spec": spec}


def own(part: str = "trainer", **fields: Any) -> Template:
    """Return a template for the container that is ours."""
    return pod(containers=[{"name": OWN[part], **fields}])


def further(kind: str = "containers", **fields: Any) -> Template:
    """Return a template with a container of the user's own."""
    return pod(**{kind: [{"name": "beside", "image": "x", **fields}]})


def variable(**source: Any) -> Template:
    return own(env=[{"name": "A", "valueFrom": source}])


def volume(**source: Any) -> Template:
    return pod(volumes=[{"name": "v", **source}])


SECRET = {"name": "s", "key": "k"}
EVERYBODYS: dict[str, Template] = {
    "nothing": {},
    "resources": own(resources={"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": 1}}),
    "placement": pod(
        nodeSelector={"gpu": "h100"},
        tolerations=[{"operator": "Exists"}],
        affinity={"podAntiAffinity": {}},
        topologySpreadConstraints=[{"topologyKey": "zone"}],
        runtimeClassName="gvisor",
        schedulerName="volcano",
        priorityClassName="batch",
        hostUsers=False,
    ),
    "labels": {"metadata": {"labels": {"team": "a"}, "annotations": {"sidecar.istio.io/inject": "false", "b": None}}},
    "volumes": pod(
        volumes=[
            {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "b", "emptyDir": {"medium": "Memory"}},
            {"name": "c", "configMap": {"name": "scripts"}},
            {"name": "d", "csi": {"driver": "x", "volumeAttributes": {"a": "b"}}},
            {"name": "e", "image": {"reference": "x"}},
        ]
    ),
    "variables": own(
        env=[
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": SECRET}},
        ],
        envFrom=[{"configMapRef": {"name": "all"}}],
    ),
    "program": own(image="mine", command=["sh"], args=["-c", "true"], ports=[{"containerPort": 80}]),
    "pull secret": pod(imagePullSecrets=[{"name": "hub"}]),
    "another user": {
        "spec": {
            "securityContext": {"runAsUser": 1000, "fsGroup": 5, "supplementalGroups": [7], "runAsNonRoot": True},
            "containers": [{"name": "trainer", "securityContext": {"readOnlyRootFilesystem": False}}],
        }
    },
    "another profile": own(securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}),
    "beside": further(securityContext=RESTRICTED),
    "before": further("initContainers", securityContext=RESTRICTED, restartPolicy="Always"),
}
BEYOND: dict[str, tuple[Template, str]] = {
    "host's network": (pod(hostNetwork=True), "spec.hostNetwork"),
    "host's folder": (volume(hostPath={"path": "/"}), "spec.volumes[0].hostPath"),
    "beside ours": (pod(volumes=[{"name": "tmp", "hostPath": {"path": "/"}}]), "spec.volumes[0].hostPath"),
    "token": (pod(automountServiceAccountToken=True), "spec.automountServiceAccountToken"),
    "token left to the default": (pod(automountServiceAccountToken=None), "spec.automountServiceAccountToken"),
    "token as a volume": (volume(projected={"sources": [{"serviceAccountToken": {}}]}), "spec.volumes[0].projected"),
    "account": (pod(serviceAccountName="admin"), "spec.serviceAccountName"),
    "account, the older name": (pod(serviceAccount="admin"), "spec.serviceAccount"),
    "node": (pod(nodeName="control-plane"), "spec.nodeName"),
    "system's priority": (pod(priorityClassName="system-node-critical"), "spec.priorityClassName"),
    "priority by number": (pod(priority=2_000_000_000), "spec.priority"),
    "privileged": (own(securityContext={"privileged": True}), "spec.containers[0].securityContext.privileged"),
    "no context at all": (own(securityContext=None), "spec.containers[0].securityContext"),
    "no context of the pod": (pod(securityContext=None), "spec.securityContext"),
    "root": (pod(securityContext={"runAsUser": 0}), "spec.securityContext.runAsUser"),
    "root by its group": (
        pod(securityContext={"supplementalGroups": [5, 0]}),
        "spec.securityContext.supplementalGroups[1]",
    ),
    "may be root": (own(securityContext={"runAsNonRoot": False}), "spec.containers[0].securityContext.runAsNonRoot"),
    "one is not true": (own(securityContext={"runAsNonRoot": 1}), "spec.containers[0].securityContext.runAsNonRoot"),
    "capability": (
        own(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
        "spec.containers[0].securityContext.capabilities.add",
    ),
    "capabilities kept": (
        own(securityContext={"capabilities": {"drop": ["NET_RAW"]}}),
        "spec.containers[0].securityContext.capabilities.drop",
    ),
    "unconfined": (
        own(securityContext={"seccompProfile": {"type": "Unconfined"}}),
        "spec.containers[0].securityContext.seccompProfile.type",
    ),
    "unconfined by annotation": (
        {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}},
        "metadata.annotations.container.apparmor.security.beta.kubernetes.io/trainer",
    ),
    "sysctl": (pod(securityContext={"sysctls": []}), "spec.securityContext.sysctls"),
    "host's port": (own(ports=[{"containerPort": 80, "hostPort": 80}]), "spec.containers[0].ports[0].hostPort"),
    "hook": (own(lifecycle={"postStart": {"httpGet": {"host": "10.0.0.1"}}}), "spec.containers[0].lifecycle"),
    "secret in a variable": (variable(secretKeyRef=SECRET), "spec.containers[0].env[0].valueFrom.secretKeyRef"),
    "secret in all variables": (own(envFrom=[{"secretRef": SECRET}]), "spec.containers[0].envFrom[0].secretRef"),
    "secret as a volume": (volume(secret={"secretName": "s"}), "spec.volumes[0].secret"),
    "secret for a driver": (
        volume(csi={"driver": "x", "nodePublishSecretRef": SECRET}),
        "spec.volumes[0].csi.nodePublishSecretRef",
    ),
    "beside without a context": (
        further(),
        "spec.containers[0].securityContext.allowPrivilegeEscalation (which must be set)",
    ),
    "before without capabilities": (
        further("initContainers", securityContext={"allowPrivilegeEscalation": False}),
        "spec.initContainers[0].securityContext.capabilities.drop (which must be set)",
    ),
    "before under our name": (
        pod(initContainers=[{"name": "trainer"}]),
        "spec.initContainers[0].securityContext.allowPrivilegeEscalation (which must be set)",
    ),
    "beside without a name": (pod(containers=[{"image": "x"}]), "spec.containers[0].name (which must be set)"),
    "our label": (
        {"metadata": {"labels": {"nas-operator.io/role": "controller"}}},
        "metadata.labels.nas-operator.io/role",
    ),
    "owner": ({"metadata": {"ownerReferences": []}}, "metadata.ownerReferences"),
    "what is no template": ({"status": {}}, "status"),
    "metadata is a word": ({"metadata": "x"}, "metadata"),
    "spec is nothing": ({"spec": None}, "spec"),
    "spec is a list": ({"spec": ["nodeSelector"]}, "spec"),
    "containers are nothing": (pod(containers=None), "spec.containers"),
    "a container is a word": (pod(containers=["trainer"]), "spec.containers[0]"),
    "a key for terminals": (pod(**{"\x1b[2J" + "a" * 100: 1}), "spec.'\\x1b[2J" + "a" * 55),
}
# Everything that could turn a program, because this one has a token.
CONTROLLERS = {
    "image": own("controller", image="x"),
    "command": own("controller", command=["sh"]),
    "variable": own("controller", env=[{"name": "LD_PRELOAD", "value": "/x"}]),
    "variable of ours": own("controller", env=[{"name": "NAS_UID", "value": "x"}]),
    "volume": volume(configMap={"name": "x"}),
    "mount": own("controller", volumeMounts=[{"name": "tmp", "mountPath": "/usr/lib"}]),
    "beside": further(securityContext=RESTRICTED),
    "before": further("initContainers", securityContext=RESTRICTED),
}


RULES = {part: beyond(part, "self", named=lambda _: "false") for part in PARTS}


def expected(part: str, template: Template) -> bool:
    """Return what the API server's rule says: whether it goes beyond; one that is an error counts as that."""
    try:
        return bool(cel.evaluate(RULES[part], {"self": template}))
    except (ValueError, TypeError, RuntimeError, KeyError):
        return True


@pytest.mark.parametrize("template", EVERYBODYS.values(), ids=EVERYBODYS)
def test_what_everybody_needs_is_on_the_list(template: Template) -> None:
    assert list(ALLOWED["trainer"].faults(template, "")) == []
    assert not expected("trainer", template)


@pytest.mark.parametrize(("template", "place"), BEYOND.values(), ids=BEYOND)
def test_what_makes_more_of_a_pod_is_named_by_its_place(template: Template, place: str) -> None:
    assert next(ALLOWED["trainer"].faults(template, "")) == place
    assert expected("trainer", template)


@pytest.mark.parametrize("template", CONTROLLERS.values(), ids=CONTROLLERS)
def test_nothing_comes_into_the_pod_that_has_a_token(template: Template) -> None:
    assert list(ALLOWED["controller"].faults(template, ""))
    assert expected("controller", template)


def test_a_controller_has_resources_a_place_and_a_proxy() -> None:
    template = own("controller", resources={}, env=[{"name": "https_proxy", "value": "http://proxy"}])
    template["spec"] |= {"nodeSelector": {"pool": "cpu"}, "priorityClassName": "batch"}
    assert list(ALLOWED["controller"].faults(template, "")) == []
    assert not expected("controller", template)


def test_an_author_who_may_get_a_secret_may_name_it() -> None:
    template = variable(secretKeyRef=SECRET)
    rule = beyond("trainer", "self", named=lambda name: f"{name} == 's'")
    assert cel.evaluate(rule, {"self": template}) == []
    template["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"] = {"name": "t", "key": "k"}
    assert cel.evaluate(rule, {"self": template}) == ["spec.containers"]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.text("aLs-", max_size=3),
    st.just([]),
    st.just({}),
    st.just(["ALL"]),
)


def mutations(document: Any) -> st.SearchStrategy[Any]:
    """Return documents in which one place, however deep, is something else or has one key more or less."""
    options: list[st.SearchStrategy[Any]] = [LEAVES]
    if isinstance(document, dict):
        for key, value in document.items():
            options.append(st.builds(partial(_with, document, key), mutations(value)))
            options.append(st.just({other: item for other, item in document.items() if other != key}))
        keys = st.sampled_from(["name", "secret", "privileged", "hostPath", "type", "drop", "securityContext", "x"])
        options.append(st.builds(partial(_with, document), keys, LEAVES))
    if isinstance(document, list):
        for index, value in enumerate(document):
            options.append(st.builds(partial(_with, document, index), mutations(value)))
    return st.one_of(options)


def _with(document: Any, place: Any, value: Any) -> Any:
    changed = copy.copy(document)
    changed[place] = value
    return changed


SEEDS = [*EVERYBODYS.values(), *(template for template, _ in BEYOND.values()), *CONTROLLERS.values()]


@settings(deadline=None, max_examples=100)
@given(
    part=st.sampled_from(PARTS),
    # The definition itself sees to it that a template is a map.
    template=st.sampled_from(SEEDS).flatmap(mutations).filter(lambda template: isinstance(template, dict)),
)
def test_the_api_server_and_we_decide_alike(part: str, template: Any) -> None:
    ours = bool(list(ALLOWED[part].faults(template, "")))
    assert ours == expected(part, template), json.dumps(template)


# ---------------------------------------------------------------- a whole spec


def spec(**more: Any) -> NASExperimentSpec:
    document = yaml.safe_load((EXAMPLES / "digits.yaml").read_text(encoding="utf-8"))
    for field, value in more.items():
        place = document["spec"]
        *outer, last = field.split("__")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return NASExperiment.model_validate(document).spec


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_every_example_is_everybodys(file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        if document and document.get("kind") == "NASExperiment":
            assert list(claims(NASExperiment.model_validate(document).spec, *PARTS)) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"trainer__template": pod(hostNetwork=True)}, "spec.trainer.template: spec.hostNetwork"),
        ({"finalTraining__template": pod(hostPID=True)}, "spec.finalTraining.template: spec.hostPID"),
        ({"controller__template": own("controller", image="x")}, "spec.controller.template: spec.containers[0].image"),
        ({"trainer__serviceAccountName": "admin"}, "spec.trainer.serviceAccountName: names a ServiceAccount"),
        ({"controller__serviceAccountName": "admin"}, "spec.controller.serviceAccountName: names a ServiceAccount"),
        (
            {"tracking": {"mlflow": {"uri": "http://m", "credentialsSecret": {"name": "s"}}}},
            "spec.tracking.mlflow.credentialsSecret: names a Secret",
        ),
    ],
    ids=str,
)
def test_what_is_beyond_is_refused_with_its_cure_unless_the_author_was_asked(more: Any, said: str) -> None:
    document = spec(**more)
    with pytest.raises(ValueError, match=r"admission\.enabled or templates\.unrestricted") as refused:
        refuse(document, *PARTS, unrestricted=False)
    assert str(refused.value).startswith(said)
    refuse(document, *PARTS, unrestricted=True)


def test_finalizers_are_nobodys() -> None:
    document = spec(trainer__template={"metadata": {"finalizers": ["a/b"]}})
    with pytest.raises(ValueError, match=r"^spec.trainer.template: metadata.finalizers must not be set"):
        refuse(document, "trainer", unrestricted=True)


def test_many_places_are_counted() -> None:
    template = pod(**{f"field{index}": 1 for index in range(9)})
    (claim,) = claims(spec(trainer__template=template), "trainer")
    assert claim.what.startswith("spec.field0, ") and "spec.field4 and 4 more" in claim.what


def test_a_deep_template_costs_no_depth() -> None:
    deep: Any = {}
    for _ in range(9000):
        deep = {"a": deep}
    assert list(ALLOWED["trainer"].faults(pod(affinity=deep, volumes=deep), "")) == ["spec.volumes"]
    assert copy.copy(deep)
