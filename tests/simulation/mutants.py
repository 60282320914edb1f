"""Ten ways to break the product that the simulator must find: each takes one precaution away, in memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from simulation.api_server import Client, Object
from simulation.bucket import BucketStore
from simulation.history import simulate

from nas_api import names
from nas_controller import decisions, snapshots
from nas_controller.executor import End
from nas_controller.executors import children, creation, kubernetes
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.executors.leaving import leaving
from nas_controller.executors.ownership import Ownership
from nas_controller.journal import Journal
from nas_controller.recovery import Recovered, recover
from nas_controller.search import Search
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_log.errors import Fenced
from nas_store import Store
from nas_store.errors import StoreError

Mutant = Callable[[], AbstractContextManager[Any]]


def _unconditional_put() -> AbstractContextManager[Any]:
    def put(self: BucketStore, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    return mock.patch.object(BucketStore, "put_if_absent", put)


def _learn_although_the_append_failed() -> AbstractContextManager[Any]:
    append = Journal.append

    def careless(self: Journal) -> None:
        try:
            append(self)
        except StoreError:
            self._batch, self._snapshot = [], None

    return mock.patch.object(Journal, "append", careless)


def _skip_the_tail() -> AbstractContextManager[Any]:
    def hasty(store: Store, *arguments: Any) -> Recovered:
        recovered = recover(store, *arguments)
        snapshot = snapshots.newest(store, arguments[0])
        return recovered if snapshot is None else Recovered(recovered.log, snapshot[0], recovered.snapshot_records)

    return mock.patch("nas_controller.journal.recover", hasty)


def _launch_before_the_record() -> AbstractContextManager[Any]:
    append = Search._append

    def eager(self: Search) -> None:
        self._act()
        append(self)

    return mock.patch.object(Search, "_append", eager)


@contextmanager
def _ignore_uid_and_owner() -> Iterator[None]:
    delete, take = Client.delete, KubernetesExecutor._take

    def any_of_the_name(self: KubeClient, resource: Any, namespace: Any, name: str, *, uid: Any = None) -> bool:
        return delete(self, resource, namespace, name)  # type: ignore[arg-type]

    def by_label(*_: Any) -> bool:
        return True

    def any_uid(self: KubernetesExecutor, number: int, kind: Any, job: Any) -> None:
        if (child := self._children.by_launch.get(number)) is not None:
            child.uid = None
        take(self, number, kind, job)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(KubernetesExecutor, "_take", any_uid))
        stack.enter_context(mock.patch.object(kubernetes, "belongs", by_label))
        stack.enter_context(mock.patch.object(children, "belongs", by_label))
        stack.enter_context(mock.patch.object(Ownership, "is_ours", by_label))
        stack.enter_context(mock.patch.object(Client, "delete", any_of_the_name))
        yield


def _count_the_preempted() -> AbstractContextManager[Any]:
    judge = decisions.judge

    def strict(core: Any, sample: int, end: End, *arguments: Any, **named: Any) -> Any:
        return judge(core, sample, End.FAILED if end is End.DISRUPTED else end, *arguments, **named)

    return mock.patch.object(decisions, "judge", strict)


def _no_read_back() -> AbstractContextManager[Any]:
    put = BucketStore.put_if_absent

    def trusting(self: BucketStore, key: str, data: bytes) -> bool:
        stored = put(self, key, data)
        if not stored and key.startswith(names.LOG_PREFIX):
            raise Fenced(key)
        return stored

    return mock.patch.object(BucketStore, "put_if_absent", trusting)


def _no_guard_on_best() -> AbstractContextManager[Any]:
    return mock.patch.object(Tenure, "look", lambda _: True)


def _queues_unseen() -> AbstractContextManager[Any]:
    return mock.patch.object(kubernetes, "suspended", lambda _: False)


def _one_pod_of_several() -> AbstractContextManager[Any]:
    def hasty(pods: list[Object], *arguments: Any) -> list[Any]:
        return leaving(pods[-1:], *arguments)

    return mock.patch.object(creation, "leaving", hasty)


MUTANTS: dict[str, Mutant] = {
    "drop the conditional PUT": _unconditional_put,
    "learn although the append failed": _learn_although_the_append_failed,
    "skip the tail": _skip_the_tail,
    "launch before the record": _launch_before_the_record,
    "ignore uid and owner": _ignore_uid_and_owner,
    "count the pre-empted": _count_the_preempted,
    "no read-back": _no_read_back,
    "no guard on best/": _no_guard_on_best,
    "do not see queues": _queues_unseen,
    "wait for one pod of several": _one_pod_of_several,
}


@dataclass(frozen=True)
class Found:
    """What gave a mutant away."""

    seed: int
    rule: str
    words: str


def first_to_find(name: str, seeds: Iterable[int]) -> Found | None:
    """Return what the first of some seeds says of a mutant; None: none of them finds it."""
    with MUTANTS[name]():
        for seed in seeds:
            try:
                history = simulate(seed)
            except Exception as error:  # noqa: BLE001  A thread of the mutant has died of it.
                return Found(seed, "crash", repr(error)[:100])
            if history.violations:
                return Found(seed, history.violations[0].rule, history.violations[0].words)
    return None
