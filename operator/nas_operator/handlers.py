"""What we ask kopf for. Events only: no handler here makes kopf leave a finalizer or an annotation on anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kopf

from nas_api import names
from nas_operator.cache import Cache, Key, key_of, owner_key

registry = kopf.OperatorRegistry()


@dataclass(frozen=True)
class Inbox:
    """Where events go: into the cache, and the experiment's key into the queue."""

    cache: Cache
    add: Callable[[Key], None]
    forget: Callable[[str], None]
    connection: Callable[[], kopf.AiohttpSession]


@kopf.on.login(registry=registry)
async def login(memo: Inbox, **_: Any) -> kopf.AiohttpSession:
    """Connect as our own client does."""
    return memo.connection()


@kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
async def experiment(event: Any, memo: Inbox, **_: Any) -> None:
    """An experiment was made, changed or removed."""
    raw = dict(event["object"])
    if event["type"] == "DELETED":
        memo.cache.drop_experiment(raw)
        memo.forget(raw["metadata"]["uid"])
    else:
        memo.cache.take_experiment(raw, watched=True)
    memo.add(key_of(raw))


# Of which roles, the watch's own selector says.
@kopf.on.event("", "v1", "pods", labels={names.LABEL_ROLE: kopf.PRESENT}, registry=registry)
async def pod(event: Any, memo: Inbox, **_: Any) -> None:
    """A pod of a controller or follower was made, changed or removed."""
    raw = dict(event["object"])
    if event["type"] == "DELETED":
        memo.cache.drop_pod(raw["metadata"]["uid"])
    else:
        memo.cache.take_pod(raw)
    memo.add(owner_key(raw))
