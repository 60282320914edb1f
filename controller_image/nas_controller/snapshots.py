"""Snapshots of the state: they spare a restart the replay of a long log, and nothing depends on them.

A snapshot is a safetensors file (no pickle): the policy's tensors, and everything else as JSON in its
metadata. It covers the log's objects up to its number and names the last one's digest, so that it cannot be
taken for another log's. It is written once; one that cannot be read is passed over for an older one.
"""

import re

import structlog
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from nas_api import names
from nas_api.search_space import search_space
from nas_controller.state import Core, MakePolicy, SearchState
from nas_store import Store, tensors

_log = structlog.get_logger()

# 2: the core remembers results and leaders, which a snapshot of version 1 cannot know. 3: so it does final rewards, and
# the identities of open samples. 4: and every final training.
_VERSION = "4"
_CORE: TypeAdapter[Core] = TypeAdapter(Core)
_KEY = re.compile(re.escape(names.SNAPSHOT_PREFIX) + r"(\d{10})")


class SnapshotUnreadable(Exception):
    """The object is no snapshot that this version can read."""


def encode(state: SearchState, digest: str) -> bytes:
    """Return a snapshot of the state after the log object that has this digest."""
    metadata = {"version": _VERSION, "digest": digest, "core": _CORE.dump_json(state.core).decode()}
    return save({name: tensor.contiguous() for name, tensor in state.policy.dump().items()}, metadata)


def decode(data: bytes, make_policy: MakePolicy) -> tuple[SearchState, str]:
    """Return the state in a snapshot and the digest of the last log object that it covers.

    Raises:
        SnapshotUnreadable: it is broken, or of another version.
    """
    try:
        metadata = tensors.metadata(data)
        if metadata["version"] != _VERSION:
            raise SnapshotUnreadable(f"it has version {metadata['version']}, not {_VERSION}")
        core = _CORE.validate_json(metadata["core"])
        policy = make_policy(core.searcher, search_space(core.search_space, core.architecture))
        policy.load(load(data))
        return SearchState(core, policy), metadata["digest"]
    except (
        *(SafetensorError, ValidationError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError),
        RuntimeError,
    ) as error:
        # RuntimeError is torch's for a tensor whose shape the policy does not have, and RecursionError is one.
        raise SnapshotUnreadable(str(error)) from error


def newest(store: Store, make_policy: MakePolicy) -> tuple[SearchState, int, str] | None:
    """Return the state in the newest readable snapshot, the log object it covers and that one's digest.

    Raises:
        StoreError: the store cannot be read.
    """
    for key in reversed(store.list(names.SNAPSHOT_PREFIX)):
        match = _KEY.fullmatch(key)
        data = store.get(key) if match else None
        if match is None or data is None:
            continue
        try:
            state, digest = decode(data, make_policy)
        except SnapshotUnreadable as error:
            _log.warning("snapshot passed over", key=key, error=str(error))
            continue
        return state, int(match[1]), digest
    return None
