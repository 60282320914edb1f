"""Snapshots of the state: they spare a restart the replay of a long log, and nothing depends on them.

A snapshot is a safetensors file (no pickle): the policy's tensors, and everything else as JSON in its
metadata. It covers the log's objects up to its number and names the last one's digest, so that it cannot be
taken for another log's. It is written once, and the log's next object has its digest: one that no object vouches for,
or that cannot be read, is passed over for an older one.
"""

import hashlib
import re

import structlog
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas_api import names
from nas_api.search_space import search_space
from nas_controller.policies import Policy
from nas_controller.state import Core, MakePolicy, SearchState
from nas_log.errors import LogDamaged
from nas_log.log import read_object
from nas_log.records import Platform
from nas_store import Store, tensors
from nas_store.errors import TooLarge

_log = structlog.get_logger()

# 2: the core remembers results and leaders, which a snapshot of version 1 cannot know. 3: so it does final rewards, and
# the identities of open samples. 4: and every final training.
_VERSION = "4"
# Far beyond what a policy has.
_MAX_BYTES = 2**28
_CORE: TypeAdapter[Core] = TypeAdapter(Core)
_KEY = re.compile(re.escape(names.SNAPSHOT_PREFIX) + r"(\d{10})")


class SnapshotUnreadable(Exception):
    """The object is no snapshot that this version can read."""


def encode(state: SearchState, digest: str, platform: Platform | None = None) -> bytes:
    """Return a snapshot of the state after the log object that has this digest, and of what it was computed on."""
    metadata = {"version": _VERSION, "digest": digest, "core": _CORE.dump_json(state.core).decode()}
    if platform is not None:
        metadata |= {"platform": platform.model_dump_json(by_alias=True), "policy": policy_digest(state.policy)}
    return save(_tensors(state.policy), metadata)


def policy_digest(policy: Policy) -> str:
    """Return the SHA-256 in hex of a policy's state: equal states have equal ones, to the last bit."""
    return hashlib.sha256(save(_tensors(policy))).hexdigest()


def platform_of(data: bytes) -> Platform | None:
    """Return what a readable snapshot was computed on; None where it does not say."""
    try:
        return Platform.model_validate_json(tensors.metadata(data)["platform"], extra="ignore")
    except (LookupError, ValueError):
        return None


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


def newest(
    store: Store, make_policy: MakePolicy, platform: Platform | None = None
) -> tuple[SearchState, int, str] | None:
    """Return the state in the newest readable snapshot that the log vouches for, the log object it covers and that
    one's digest. That it was computed on another platform than this is told in the log of the process.

    Raises:
        StoreError: the store cannot be read.
    """
    for key in reversed(store.list(names.SNAPSHOT_PREFIX)):
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        sequence = int(match[1])
        try:
            data = store.get(key, limit=_MAX_BYTES) if (vouched := _vouched(store, sequence)) else None
            if data is None or hashlib.sha256(data).hexdigest() != vouched:
                raise SnapshotUnreadable(f"{names.log_key(sequence + 1)} does not vouch for it")
            state, digest = decode(data, make_policy)
        except (SnapshotUnreadable, TooLarge) as error:
            _log.info("snapshot passed over", key=key, error=str(error))
            continue
        theirs = platform_of(data)
        if platform is not None and theirs is not None and theirs != platform:
            _log.info("snapshot of another platform", key=key, theirs=theirs.model_dump(), ours=platform.model_dump())
        return state, sequence, digest
    return None


def _tensors(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in policy.dump().items()}


def _vouched(store: Store, sequence: int) -> str | None:
    """Return the digest that the snapshot of this number must have; None: no object of the log has one."""
    try:
        following = read_object(store, sequence + 1)
    except LogDamaged:
        # Whoever reads the log says what is wrong with it.
        return None
    return None if following is None else following.snapshot
