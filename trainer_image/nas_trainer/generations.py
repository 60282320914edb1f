"""The checkpoints of one sample, kept apart by attempt: whoever was replaced may still write, and nobody reads it.

A pod that Kubernetes has given up, on a node that it cannot reach, may train on beside the next attempt. So each
attempt writes under a key of its own, into which it first takes over what those before it have left, and reads that one
from then on: what an older attempt still writes finds no reader as long as the newer one has anything of its own.
"""

from nas_api import names
from nas_store import Store


class Checkpoints:
    """What one attempt at a sample reads and writes. Each method raises StoreError when the store cannot be used."""

    def __init__(self, store: Store, sample: int, attempt: int) -> None:
        """Prepare; ``attempt`` counts the launches of the sample from 1. Does no I/O."""
        self._store = store
        self._keys = [names.checkpoint_key(sample, number) for number in range(attempt, 0, -1)]

    def take_over(self) -> bytes | None:
        """Return this attempt's checkpoint, or else the newest of those before it, made this one's; None for none."""
        for key in self._keys:
            data = self._store.get(key)
            if data:
                if key != self._keys[0]:
                    self.save(data)
                    # Nobody has a use for it any more.
                    self._store.put(key, b"")
                return data
        return None

    def save(self, data: bytes) -> None:
        """Store a checkpoint of this attempt."""
        self._store.put(self._keys[0], data)
