"""The checkpoints of one sample, kept apart by attempt: whoever was replaced may still write, and nobody reads it.

A pod that Kubernetes has given up, on a node that it cannot reach, may train on beside the next attempt. So each
attempt writes under a key of its own, and first of all takes a copy of what those before it have left, from which it
goes on: what an older attempt still writes finds no reader as long as the newer one has anything. The copy is not under
the same key as what an attempt saves itself, so that the controller can tell whether it has made progress.
"""

from nas_api import names
from nas_api.child import Result
from nas_store import Store


class Checkpoints:
    """What one attempt at a sample reads and writes. Each method raises StoreError when the store cannot be used."""

    def __init__(self, store: Store, sample: int, attempt: int) -> None:
        """Prepare; ``attempt`` counts the launches of the sample from 1. Does no I/O."""
        self._store = store
        self._own = names.checkpoint_key(sample, attempt)
        self._inherited = names.inherited_checkpoint_key(sample, attempt)
        self._earlier = [_keys(sample, number) for number in range(attempt - 1, 0, -1)]

    def take_over(self) -> bytes | None:
        """Return this attempt's checkpoint, or else the newest of those before it, of which it keeps a copy.

        None where there is none.
        """
        if data := _first(self._store, (self._own, self._inherited)):
            return data
        for keys in self._earlier:
            if data := _first(self._store, keys):
                self._store.put(self._inherited, data)
                # Nobody has a use for them any more.
                for key in keys:
                    self._store.put(key, b"")
                return data
        return None

    def save(self, data: bytes) -> None:
        """Store a checkpoint that this attempt has come to itself."""
        self._store.put(self._own, data)


def last_checkpoint(store: Store, sample: int) -> bytes | None:
    """Return the checkpoint that the attempt has left whose result counts; None where it has left none.

    Raises:
        StoreError: the store cannot be used.
    """
    data = store.get(names.result_key(sample))
    if data is None:
        return None
    return _first(store, _keys(sample, Result.model_validate_json(data, extra="ignore").attempt))


def _keys(sample: int, attempt: int) -> tuple[str, ...]:
    """Return where an attempt's own checkpoint lies, and the one that it has found; the first attempt finds none."""
    own = names.checkpoint_key(sample, attempt)
    return (own,) if attempt == 1 else (own, names.inherited_checkpoint_key(sample, attempt))


def _first(store: Store, keys: tuple[str, ...]) -> bytes | None:
    """Return the first of several objects that is there and not empty."""
    return next((data for key in keys if (data := store.get(key))), None)
