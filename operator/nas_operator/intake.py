"""The door through which every object of the API server comes in, by a watch or a list: each on its own."""

from collections.abc import Callable
from typing import Any

import structlog

from nas_operator.cache import key_of, version
from nas_operator.kept import kept
from nas_operator.observed import pod_of

_log = structlog.get_logger()

Object = dict[str, Any]

# Of so many objects it is remembered that they were told of.
_MOST_TOLD = 10_000


class Intake:
    """Call it with an object: it returns what is kept of it, or None where it cannot be read, and tells of that.

    Whatever an object has, no other one suffers from it.
    """

    def __init__(self, count: Callable[[str], None] = lambda kind: None) -> None:
        """``count`` is told the kind of each object that cannot be read."""
        self._count = count
        self._told: dict[str, str] = {}

    def __call__(self, raw: Object) -> Object | None:
        """Return what is kept of an experiment or of a pod; None where it cannot be read."""
        try:
            out = kept(raw)
            # As whoever takes it will do.
            key_of(out), version(out), pod_of(out)
        except Exception as error:  # noqa: BLE001  The designed edge: whatever is wrong with it, it is left out alone.
            self.tell(raw, error)
            return None
        return out

    def tell(self, raw: Object, error: Exception) -> None:
        """Say once of each version of an object that it cannot be read."""
        metadata = raw.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        uid, at = str(metadata.get("uid")), str(metadata.get("resourceVersion"))
        if self._told.get(uid) == at:
            return
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[uid] = at
        # Lists leave the kind of built-in objects out.
        kind = str(raw.get("kind") or "Pod")
        self._count(kind)
        _log.warning(
            "cannot be read, and is left out",
            kind=kind,
            namespace=metadata.get("namespace"),
            name=metadata.get("name"),
            error=f"{type(error).__name__}: {error}"[:500],
        )
