"""How large a pod template may be, and of which shape, before anybody lays it over ours. Pure.

The API server keeps templates as they are, up to 1.5 MB and 10,000 levels: its schema can measure neither. Everything
else of an experiment is bounded by its schema.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

MOST_BYTES = 64 * 1024
"""Of its JSON."""
MOST_LEVELS = 32

LEFT_OUT = "nas-operator.io/left-out"
"""The only key of what stands for a template that was too large to be kept; its value says so."""

# The lists of a pod that merge by name.
_LISTS_OF_MAPS = ("containers", "initContainers", "volumes", "imagePullSecrets")


def check(template: Mapping[str, Any]) -> None:
    """Do nothing where a template is of a size and shape that can be laid over ours.

    Raises:
        ValueError: it is not; the message says what to change.
    """
    if wrong := str(template.get(LEFT_OUT, "")) or excess(template) or _misshapen(template):
        raise ValueError(wrong)


def excess(template: Any) -> str:
    """Return by what a template is too large; empty where it is not. It costs little, however large it is."""
    levels = values = 0
    layer = [template]
    while layer:
        levels, values = levels + 1, values + len(layer)
        if levels > MOST_LEVELS:
            return f"the template has more than {MOST_LEVELS} levels: make it flatter"
        if values > MOST_BYTES:
            break
        layer = list(islice(chain.from_iterable(map(_children, layer)), MOST_BYTES + 1))
    # Each value takes a byte at least.
    if values > MOST_BYTES or len(_json(template)) > MOST_BYTES:
        return f"the template has more than {MOST_BYTES // 1024} KiB as JSON: make it smaller"
    return ""


def bounded(template: Any) -> Any:
    """Return the template, or what stands for it where it is too large."""
    too_large = excess(template)
    return {LEFT_OUT: too_large} if too_large else template


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode(errors="replace")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _misshapen(template: Mapping[str, Any]) -> str:
    # Null removes what we have: of these three, nothing would be left to lay a template over.
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    if not isinstance(metadata, Mapping):
        return "metadata must be a map"
    if not isinstance(spec, Mapping) or spec.get("containers", ()) is None:
        return "spec must be a map, and spec.containers a list"
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key), Mapping | None):
            return f"metadata.{key} must be a map"
    for key in _LISTS_OF_MAPS:
        items = spec.get(key)
        if items is not None and not (isinstance(items, list) and all(isinstance(item, Mapping) for item in items)):
            return f"spec.{key} must be a list of maps"
    return ""
