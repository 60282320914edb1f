"""What is kept of an object that the API server sends: what we read, and of that no more than a bounded part. Pure."""

from collections.abc import Mapping
from typing import Any

from nas_api import names
from nas_api.template_bounds import bounded

Object = dict[str, Any]

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_WITH_TEMPLATES = ("trainer", "controller", "finalTraining", "tracking")
_OURS = f"{names.GROUP}/"


def kept(raw: Mapping[str, Any]) -> Object:
    """Return what we read of an experiment or of a pod; what has been through here once stays as it is.

    Not the fields' owners, nobody else's labels and annotations, and no spec of a pod. A template that is too large
    leaves word of that in its place.
    """
    found = raw["metadata"]
    metadata = {key: found[key] for key in _METADATA if key in found}
    for field in ("labels", "annotations"):
        metadata[field] = {key: value for key, value in (found.get(field) or {}).items() if key.startswith(_OURS)}
    metadata["ownerReferences"] = [owner for owner in found.get("ownerReferences") or () if owner.get("controller")]
    out = {key: raw[key] for key in ("apiVersion", "kind", "status") if key in raw} | {"metadata": metadata}
    if raw.get("kind") == names.KIND and "spec" in raw:
        out["spec"] = _spec(raw["spec"])
    return out


def _spec(spec: Any) -> Any:
    """Return a spec whose templates are bounded; its schema bounds the rest."""
    if not isinstance(spec, Mapping):
        return spec
    changed = {
        part: {**spec[part], "template": bounded(spec[part]["template"])}
        for part in _WITH_TEMPLATES
        if isinstance(spec.get(part), Mapping) and spec[part].get("template") is not None
    }
    return {**spec, **changed}
