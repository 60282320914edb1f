"""What is kept of an object that the API server sends: what we read, and of that no more than a bounded part. Pure."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nas_api import names
from nas_api.template_bounds import MOST_BYTES, bounded
from nas_kube.decoding import decode

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

    Not the fields' owners, nobody else's labels and annotations, and no spec of a pod. A template is kept as text:
    decoded it can take twenty times as much. One that is too large leaves word of that in its place.
    """
    found = raw["metadata"]
    metadata = {key: found[key] for key in _METADATA if key in found}
    for field in ("labels", "annotations"):
        metadata[field] = {key: value for key, value in (found.get(field) or {}).items() if key.startswith(_OURS)}
    metadata["ownerReferences"] = [owner for owner in found.get("ownerReferences") or () if owner.get("controller")]
    out = {key: raw[key] for key in ("apiVersion", "kind", "status") if key in raw} | {"metadata": metadata}
    if raw.get("kind") == names.KIND and "spec" in raw:
        out["spec"] = _templates(_as_text, raw["spec"])
    return out


def whole(raw: Object) -> Object:
    """Return what is kept of an experiment with its templates decoded, as it is read."""
    return {**raw, "spec": _templates(_decoded, raw["spec"])} if "spec" in raw else raw


def _as_text(template: Any) -> Any:
    if isinstance(template, str) and len(template) <= MOST_BYTES:
        return template
    return json.dumps(bounded(template), ensure_ascii=False, separators=(",", ":"))


def _decoded(template: Any) -> Any:
    try:
        return decode(template.encode(errors="replace")) if isinstance(template, str) else template
    except ValueError:
        # A text that somebody else has written, and no template: whoever reads the experiment says so.
        return template


def _templates(change: Callable[[Any], Any], spec: Any) -> Any:
    """Return a spec with each of its templates changed; the schema bounds the rest."""
    if not isinstance(spec, Mapping):
        return spec
    changed = {
        part: {**spec[part], "template": change(spec[part]["template"])}
        for part in _WITH_TEMPLATES
        if isinstance(spec.get(part), Mapping) and spec[part].get("template") is not None
    }
    return {**spec, **changed}
