"""What a user's pod template may ask for, and how it lies over ours.

It is laid over as kubectl's strategic merge would do it, the part of it that pods need: maps merge key by key, null
removes a key, and the lists below merge by the field that tells their items apart; every other list is replaced.

What it may ask for is a list: what everybody needs who trains networks, and nothing by which a pod would become more
than a child. What goes beyond is for those who may make pods themselves (``nas_api.authority``).
"""

from collections.abc import Mapping
from typing import Any

from nas_api import names, template_bounds
from nas_api.allowed import (
    Anything,
    Each,
    Fields,
    Holds,
    KeysUnlike,
    OneOf,
    Positive,
    Rule,
    Says,
    SecretNamed,
    Unlike,
    Without,
)

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def overlay(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``patch`` laid over it; neither is changed.

    Raises:
        ValueError: a list that merges by a field has an item that is no map or lacks that field.
    """
    return _laid(_copy(base), patch)


def _laid(out: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``patch`` over what is ours to change, and return that."""
    for key, value in patch.items():
        current = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            out[key] = _laid(current if isinstance(current, dict) else {}, value)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            out[key] = _merge_list(key, current if isinstance(current, list) else [], value)
        else:
            out[key] = _copy(value)
    return out


def _copy(value: Any) -> Any:
    """Return a copy of what JSON can say. ``deepcopy`` notes each part that it meets, which takes more than they do."""
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def lay_over(base: Mapping[str, Any], field: str, template: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a pod template of ours with a user's laid over it, the one that a field of the spec has.

    Raises:
        ValueError: its size or shape is none that can be laid over ours; the message begins with the field.
    """
    try:
        template_bounds.check(template or {})
        return overlay(base, template or {})
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _merge_list(key: str, base: list[Any], patch: list[Any]) -> list[Any]:
    field = _MERGE_KEYS[key]
    items = {item[field]: item for item in base}
    for index, item in enumerate(patch):
        if not isinstance(item, Mapping) or field not in item:
            raise ValueError(f"{key}[{index}] of the template must be a map with {field!r}")
        items[item[field]] = _laid(items.get(item[field], {}), item)
    return list(items.values())


# ---------------------------------------------------------------- what it may ask for

_ANYTHING = Anything()
# What we ourselves, and the kubelet, go by.
_OURS = (f"{names.GROUP}/",)
_METADATA = Fields(
    {
        "labels": KeysUnlike(_OURS),
        # The older way to say what a securityContext says.
        "annotations": KeysUnlike(
            (*_OURS, "container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/")
        ),
    },
    key="m",
)

# A securityContext within the `restricted` Pod Security Standard. What is not said stays as ours has it.
_PROFILE = Fields({"localhostProfile": _ANYTHING, "type": OneOf(("RuntimeDefault", "Localhost"))}, key="profile")
_IDENTITY: dict[str, Rule] = {
    "runAsNonRoot": OneOf((True,)),
    "runAsUser": Positive(),
    "runAsGroup": Positive(),
    "seccompProfile": _PROFILE,
    "appArmorProfile": _PROFILE,
}
_POD_SECURITY = Fields(
    {
        **_IDENTITY,
        "fsGroup": Positive(),
        "fsGroupChangePolicy": _ANYTHING,
        "supplementalGroups": Each(Positive(), item="group"),
        "supplementalGroupsPolicy": _ANYTHING,
    },
    key="field",
)
_CONTAINER_SECURITY: dict[str, Rule] = {
    **_IDENTITY,
    "allowPrivilegeEscalation": OneOf((False,)),
    "privileged": OneOf((False,)),
    "readOnlyRootFilesystem": OneOf((True, False)),
    "procMount": OneOf(("Default",)),
    "capabilities": Fields({"drop": Holds("ALL")}, key="capability"),
}
_SECURITY = Fields(_CONTAINER_SECURITY, key="field")
# What a container of the user's own says itself, because there is nothing of ours below it.
_RESTRICTED = (("securityContext", "allowPrivilegeEscalation"), ("securityContext", "capabilities", "drop"))

_VALUE = Fields(
    {
        "configMapKeyRef": _ANYTHING,
        "fieldRef": _ANYTHING,
        "resourceFieldRef": _ANYTHING,
        "secretKeyRef": SecretNamed("name"),
    },
    key="source",
)
_CONTAINER = Fields(
    {
        **dict.fromkeys(
            (
                "name",
                "image",
                "imagePullPolicy",
                "command",
                "args",
                "workingDir",
                "resources",
                "volumeMounts",
                "restartPolicy",
                "terminationMessagePath",
                "terminationMessagePolicy",
            ),
            _ANYTHING,
        ),
        # No hostPort.
        "ports": Each(Fields(dict.fromkeys(("name", "containerPort", "protocol"), _ANYTHING), key="of"), item="port"),
        "env": Each(Fields({"name": _ANYTHING, "value": _ANYTHING, "valueFrom": _VALUE}, key="of"), item="variable"),
        "envFrom": Each(
            Fields({"prefix": _ANYTHING, "configMapRef": _ANYTHING, "secretRef": SecretNamed("name")}, key="of"),
            item="bulk",
        ),
        "securityContext": _SECURITY,
    },
    key="f",
)
_VOLUME = Fields(
    {
        **dict.fromkeys(("name", "persistentVolumeClaim", "emptyDir", "configMap", "image"), _ANYTHING),
        # It would name a Secret for a driver that runs as root on the node.
        "csi": Without("nodePublishSecretRef"),
        "secret": SecretNamed("secretName"),
    },
    key="f",
)
_PLACEMENT: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "nodeSelector",
            "tolerations",
            "affinity",
            "topologySpreadConstraints",
            "runtimeClassName",
            "schedulerName",
            "resources",
            "resourceClaims",
            "imagePullSecrets",
        ),
        _ANYTHING,
    ),
    "priorityClassName": Unlike(("system-",)),
    "hostUsers": OneOf((False,)),
    "securityContext": _POD_SECURITY,
}


def _with_programs(own: str) -> Fields:
    """Return the list of a pod whose programs are the user's to choose: it has no token for the API."""
    return Fields(
        {
            **_PLACEMENT,
            "volumes": Each(_VOLUME, item="volume"),
            "containers": Each(Says(_CONTAINER, own, _RESTRICTED), item="container"),
            "initContainers": Each(Says(_CONTAINER, None, _RESTRICTED), item="container"),
        },
        key="s",
    )


_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# By which PyTorch and MKL choose the same kernels on every CPU.
_KERNELS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR")
_CONTROLLER_VARIABLES = (*_PROXY, *(word.lower() for word in _PROXY), *_KERNELS)
# The controller's token makes Jobs, so nothing may come into its pod that could be run there or turn its program: no
# image, no volume, no further container, and no variable but these.
_CONTROLLER = Fields(
    {
        **_PLACEMENT,
        "containers": Each(
            Fields(
                {
                    "name": OneOf((names.CONTROLLER_CONTAINER,)),
                    "resources": _ANYTHING,
                    "env": Each(
                        Fields({"name": OneOf(_CONTROLLER_VARIABLES), "value": _ANYTHING}, key="of"),
                        item="variable",
                    ),
                    "securityContext": _SECURITY,
                },
                key="f",
            ),
            item="container",
        ),
    },
    key="s",
)

ALLOWED = {
    field: Fields({"metadata": _METADATA, "spec": spec}, key="t")
    for field, spec in {
        "trainer": _with_programs(names.TRAINER_CONTAINER),
        "finalTraining": _with_programs(names.TRAINER_CONTAINER),
        "controller": _CONTROLLER,
        "tracking": _with_programs(names.FOLLOWER_CONTAINER),
    }.items()
}
"""What the template of each part of the spec may ask for."""
