"""Eight ways to break the product that the simulator must find: each takes one precaution away, in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

from nas_controller import decisions, journal
from nas_controller.executor import End
from nas_controller.executors import kubernetes
from nas_controller.journal import Journal
from nas_controller.recovery import Recovered
from nas_controller.search import Search
from nas_kube.client import KubeClient
from nas_log.errors import Fenced
from nas_log.log import Log, encode, read_objects
from nas_log.records import Record
from nas_store import Store
from nas_store.errors import StoreError
from simulation.api_server import Client
from simulation.bucket import BucketStore

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
    recover = journal.recover

    def hasty(store: Store, *arguments: Any) -> Recovered:
        recovered = recover(store, *arguments)
        snapshot = journal.snapshots.newest(store, arguments[0])
        return recovered if snapshot is None else Recovered(recovered.log, snapshot[0], recovered.snapshot_records)

    return mock.patch.object(journal, "recover", hasty)


def _launch_before_the_record() -> AbstractContextManager[Any]:
    append = Search._append

    def eager(self: Search) -> None:
        self._act()
        append(self)

    return mock.patch.object(Search, "_append", eager)


@contextmanager
def _ignore_uid_and_owner() -> Iterator[None]:
    delete = Client.delete

    def any_of_the_name(self: KubeClient, resource: Any, namespace: Any, name: str, *, uid: Any = None) -> bool:
        return delete(self, resource, namespace, name)  # type: ignore[arg-type]

    def by_label(*_: Any) -> bool:
        return True

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(kubernetes, "belongs", by_label))
        stack.enter_context(mock.patch.object(kubernetes.KubernetesExecutor, "_is_ours", by_label))
        stack.enter_context(mock.patch.object(Client, "delete", any_of_the_name))
        yield


def _count_the_preempted() -> AbstractContextManager[Any]:
    judge = decisions.judge

    def strict(core: Any, sample: int, end: End, *arguments: Any, **named: Any) -> Any:
        return judge(core, sample, End.FAILED if end is End.DISRUPTED else end, *arguments, **named)

    return mock.patch.object(decisions, "judge", strict)


def _no_read_back() -> AbstractContextManager[Any]:
    append = Log.append

    def trusting(self: Log, records: Sequence[Record], snapshot: str | None = None) -> None:
        with mock.patch.object(self._store, "get", lambda key: None):
            append(self, records, snapshot)

    return mock.patch.object(Log, "append", trusting)


MUTANTS: dict[str, Mutant] = {
    "drop the conditional PUT": _unconditional_put,
    "learn although the append failed": _learn_although_the_append_failed,
    "skip the tail": _skip_the_tail,
    "launch before the record": _launch_before_the_record,
    "ignore uid and owner": _ignore_uid_and_owner,
    "count the pre-empted": _count_the_preempted,
    "no read-back": _no_read_back,
}

__all__ = ["MUTANTS", "Fenced", "encode", "read_objects"]
