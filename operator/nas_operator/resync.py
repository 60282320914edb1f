"""Lists everything once a minute: what mends a lost watch, and what readiness is judged by."""

import asyncio
import time
from collections.abc import Callable

import structlog

from nas_api import names
from nas_kube.client import KubeClient, Object
from nas_kube.errors import KubeError
from nas_kube.resources import EXPERIMENTS, PODS
from nas_operator.cache import Cache, Key, version

_log = structlog.get_logger()

LIST_SECONDS = 60.0
# Every experiment is looked at this often, whether anything seems to have changed or not.
FULL_SECONDS = 600.0
# Two lists may be missed.
_READY_SECONDS = 2.5 * LIST_SECONDS
PODS_SELECTOR = f"{names.LABEL_ROLE} in ({names.ROLE_CONTROLLER},{names.ROLE_FOLLOWER})"
"""Pods of controllers and followers."""


class Resync:
    """Compares what the API server has with what the watches brought."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        namespaces: tuple[str, ...],
        add: Callable[[Key], None],
        keep: Callable[[Object], Object | None],
    ) -> None:
        """Look at some namespaces.

        Args:
            client: the API.
            cache: takes what is there.
            namespaces: which ones; none: all of them.
            add: told of each experiment to look at.
            keep: what is kept of an object; None: it is left out.
        """
        self._client = client
        self._keep = keep
        self._cache = cache
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._add = add
        self._listed_at = float("-inf")
        self._expected: dict[str, int] = {}
        self._lagging = 0

    async def first(self) -> None:
        """Fill the cache, however long the API takes: without it, what exists would be made again."""
        while not await self._pass(everything=True):
            await asyncio.sleep(2.0)

    async def run(self) -> None:
        """List once a minute, forever."""
        full_at = time.monotonic()
        while True:
            await asyncio.sleep(LIST_SECONDS)
            everything = time.monotonic() - full_at >= FULL_SECONDS
            if await self._pass(everything=everything) and everything:
                full_at = time.monotonic()

    def trouble(self) -> str | None:
        """Return why the operator is not ready, or None if it is."""
        if self.list_age() > _READY_SECONDS:
            return "the API server has not answered lately"
        return "the watch brings no changes; listing finds them within a minute" if self._lagging else None

    def list_age(self) -> float:
        """Return the seconds since the API server last answered a list; infinite before it has."""
        return time.monotonic() - self._listed_at

    def lagging(self) -> int:
        """Return how many experiments the watch had not brought as the last list but one found them."""
        return self._lagging

    async def _pass(self, *, everything: bool) -> bool:
        # What was there a minute ago, the watch must have brought by now.
        lagging = len(self._cache.unwatched(self._expected))
        if bool(lagging) != bool(self._lagging):
            _log.warning("watch lags" if lagging else "watch has caught up", experiments=lagging)
        self._lagging = lagging
        try:
            changed, expected = await asyncio.to_thread(self._list)
        except KubeError as error:
            _log.warning("cannot list", error=str(error))
            return False
        except Exception:  # noqa: BLE001  The designed edge: nothing that a list holds may end the process.
            _log.exception("cannot take a list, will try again")
            return False
        self._listed_at = time.monotonic()
        self._expected = expected
        for key in self._cache.keys() if everything else changed:
            self._add(key)
        return True

    def _list(self) -> tuple[set[Key], dict[str, int]]:
        changed: set[Key] = set()
        expected: dict[str, int] = {}
        for namespace in self._namespaces:
            experiments = self._client.list(EXPERIMENTS, namespace, keep=self._keep)
            changed |= self._cache.replace_experiments(experiments.items, int(experiments.resource_version), namespace)
            # After the experiments: a pod that a status names must not be missing from an older list.
            pods = self._client.list(PODS, namespace, label_selector=PODS_SELECTOR, keep=self._keep)
            self._cache.replace_pods(pods.items, int(pods.resource_version), namespace)
            expected.update({raw["metadata"]["uid"]: version(raw) for raw in experiments.items})
        return changed, expected
