"""The log: objects ``log/0000000000.json`` and on, each written once, chained by hashes.

Writing an object only where none is makes one writer by construction: a newer controller's first append
takes the next number, and the older one's next append then finds somebody else's object there. There is no
lease and no clock. An object is canonical JSON (sorted keys, no spaces)::

    {"version": 1, "writer": nonce of the process, "sequence": n, "previous": SHA-256 of object n-1 or "",
     "records": [...], "checksum": SHA-256 of this document without the checksum}

Where a snapshot covers the log up to the object before this one, ``"snapshot"`` is the SHA-256 of that.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from nas_api import names
from nas_api.experiment import LogHead
from nas_log.errors import Fenced, LogDamaged, LogTampered
from nas_log.records import RECORDS, Record
from nas_store import Store
from nas_store.errors import TooLarge

_VERSION = 1
_KEY = re.compile(re.escape(names.LOG_PREFIX) + r"(\d{10})\.json")
# Objects fetched at once, and how many may wait to be folded: a long log must not fill the memory.
_THREADS = 8
_AHEAD = 64
# Far beyond any object that a search writes.
_MAX_BYTES = 2**26
_RESTORE = "restore it from the bucket's versions"


@dataclass(frozen=True)
class LogObject:
    """One object that was read and checked."""

    sequence: int
    previous: str
    """Digest of the object before it."""
    digest: str
    """SHA-256 of its bytes in hex: what the next object calls ``previous``."""
    records: list[Record]
    snapshot: str | None = None
    """SHA-256 in hex of the snapshot up to the object before it; None: there is none."""


def encode(writer: str, sequence: int, previous: str, records: Sequence[Record], snapshot: str | None = None) -> bytes:
    """Return the bytes of a log object; equal arguments give equal bytes."""
    document: dict[str, Any] = {
        "version": _VERSION,
        "writer": writer,
        "sequence": sequence,
        "previous": previous,
        # Through JSON text: pydantic writes NaN and infinity as strings only there.
        "records": [json.loads(record.model_dump_json(by_alias=True, exclude_none=True)) for record in records],
    }
    if snapshot is not None:
        document["snapshot"] = snapshot
    return _canonical({**document, "checksum": _digest(_canonical(document))})


def decode(sequence: int, data: bytes) -> LogObject:
    """Return the object that these bytes are.

    Raises:
        LogDamaged: they are not what was written, or of a version that is not known here.
    """
    key = names.log_key(sequence)
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise LogDamaged(
                f"{key} has format version {document['version']}, this controller knows {_VERSION}: run the version"
                " that wrote it"
            )
        checksum = document.pop("checksum")
        if _digest(_canonical(document)) != checksum:
            raise LogDamaged(f"{key} was changed: its checksum is wrong; restore it from the bucket's versions")
        if document["sequence"] != sequence:
            raise LogDamaged(f"{key} is a copy of object {document['sequence']}; restore it from the bucket's versions")
        records = RECORDS.validate_python(document["records"], extra="ignore")
        return LogObject(sequence, document["previous"], _digest(data), records, document.get("snapshot"))
    except ValidationError as error:
        first = error.errors()[0]
        raise LogDamaged(
            f"{key} has a record that this controller does not know ({first['msg']}): run the version that wrote it"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LogDamaged(f"{key} is not a log object ({error}); restore it from the bucket's versions") from error


def read_object(store: Store, sequence: int) -> LogObject | None:
    """Return one object, checked by itself alone; None: there is none.

    Raises:
        LogDamaged: it was changed, or is from a newer version.
        StoreError: the store cannot be read.
    """
    data = _get(store, names.log_key(sequence))
    return None if data is None else decode(sequence, data)


def read_objects(
    store: Store, after: int = -1, previous: str = "", anchor: LogHead | None = None
) -> Iterator[LogObject]:
    """Yield the objects after a sequence number, in order, checked against each other.

    Args:
        store: where the log is.
        after: the last object that need not be read; the objects up to it must still exist.
        previous: the digest of that object.
        anchor: an object that the log had before, as somebody knows who is not in the store; None: nobody does.

    Raises:
        LogDamaged: an object is missing, was changed or is not the next one's predecessor.
        LogTampered: the log does not have the anchor.
        StoreError: the store cannot be read.
    """
    found = {int(match[1]) for key in store.list(names.LOG_PREFIX) if (match := _KEY.fullmatch(key))}
    last = max(found, default=-1)
    if missing := [sequence for sequence in range(max(last, after) + 1) if sequence not in found]:
        raise LogDamaged(_missing(missing))
    if anchor is not None and anchor.sequence > last:
        raise LogTampered(
            f"{_span(last + 1, anchor.sequence)} was there when the status was written and is missing; {_RESTORE}"
        )
    if anchor is not None and anchor.sequence <= after:
        _hold(anchor, _get(store, names.log_key(anchor.sequence)))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="log") as pool:
        for start in range(after + 1, last + 1, _AHEAD):
            chunk = range(start, min(start + _AHEAD, last + 1))
            for sequence, data in zip(chunk, pool.map(partial(_get, store), map(names.log_key, chunk)), strict=True):
                if data is None:
                    raise LogDamaged(f"{names.log_key(sequence)} vanished while the log was read")
                if anchor is not None and anchor.sequence == sequence:
                    _hold(anchor, data)
                current = decode(sequence, data)
                if current.previous != previous:
                    raise LogDamaged(
                        f"{names.log_key(sequence)} does not follow {names.log_key(sequence - 1)}: one of them was"
                        " replaced; restore it from the bucket's versions"
                    )
                previous = current.digest
                yield current


def read_log(store: Store) -> list[Record]:
    """Return all records of a log, in order; an empty list when there is none. For tools that only look.

    Raises:
        LogDamaged: an object is missing or was changed.
        StoreError: the store cannot be read.
    """
    return [record for current in read_objects(store) for record in current.records]


class Log:
    """The writing end: appends after the last object that its process has read or written."""

    def __init__(self, store: Store, sequence: int = -1, digest: str = "", writer: str | None = None) -> None:
        """Begin after an object.

        Args:
            store: where the log is.
            sequence: the last object's number, -1 for none.
            digest: the last object's digest.
            writer: the nonce of this process; a new one when None.
        """
        self._store = store
        self._writer = writer or uuid4().hex
        self.sequence = sequence
        self.digest = digest

    def append(self, records: Sequence[Record], snapshot: str | None = None) -> None:
        """Write one object with these records. After a StoreError call it again with the same arguments.

        Args:
            records: its records.
            snapshot: SHA-256 in hex of the snapshot that covers the log so far; None: there is none.

        Raises:
            Fenced: another process has written the next object.
            StoreError: it is not known whether the object was written.
        """
        sequence = self.sequence + 1
        key = names.log_key(sequence)
        data = encode(self._writer, sequence, self.digest, records, snapshot)
        if not self._store.put_if_absent(key, data):
            # Our own write, whose answer was lost, looks the same from here: what is there decides.
            found = self._store.get(key)
            if found != data:
                raise Fenced(f"{key} was written by another process")
        self.sequence = sequence
        self.digest = _digest(data)


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, limit=_MAX_BYTES)
    except TooLarge as error:
        raise LogDamaged(f"{error}: {_RESTORE}") from error


def _missing(missing: list[int]) -> str:
    """Return what to say of objects that are missing, by their numbers."""
    if missing[0] > 0:
        return f"{names.log_key(missing[0])} is missing; {_RESTORE}"
    until = next(place for place, number in enumerate([*missing, -1]) if place != number) - 1
    # Also where a snapshot covers them: a report, an export and a follower need every record.
    return (
        f"{_span(0, until)} is missing, the oldest of the log: keep the bucket's lifecycle rules from expiring what is"
        f" under {names.LOG_PREFIX}, and {_RESTORE}"
    )


def _span(first: int, until: int) -> str:
    keys = names.log_key(first), names.log_key(until)
    return keys[0] if first == until else " to ".join(keys)


def _hold(anchor: LogHead, data: bytes | None) -> None:
    """Compare the object of an anchor's number with it."""
    if data is None or _digest(data) != anchor.digest:
        key = names.log_key(anchor.sequence)
        raise LogTampered(f"{key} is not the object that the status knows by its SHA-256 (status.log); {_RESTORE}")


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
