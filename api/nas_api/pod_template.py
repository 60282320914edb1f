"""How a user's pod template lies over ours: the part of kubectl's strategic merge that pods need.

Maps merge key by key, null removes a key, and the lists below merge by the field that tells their items
apart; every other list is replaced.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

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
    out = deepcopy(dict(base))
    for key, value in patch.items():
        current = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            out[key] = overlay(current if isinstance(current, Mapping) else {}, value)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            out[key] = _merge_list(key, current if isinstance(current, list) else [], value)
        else:
            out[key] = deepcopy(value)
    return out


def _merge_list(key: str, base: list[Any], patch: list[Any]) -> list[Any]:
    field = _MERGE_KEYS[key]
    items = {item[field]: item for item in base}
    for index, item in enumerate(patch):
        if not isinstance(item, Mapping) or field not in item:
            raise ValueError(f"{key}[{index}] of the template must be a map with {field!r}")
        items[item[field]] = overlay(items.get(item[field], {}), item)
    return list(items.values())
