"""Who may have effects: the one that writes the log, as far as it knows and can find out."""

from datetime import datetime
from queue import SimpleQueue
from typing import Any

import pytest
from controller.world import MemoryStore

from nas_api import names
from nas_controller.tenure import Tenure
from nas_store.errors import StoreUnreachable


class At:
    """A clock that stands."""

    time = 100.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        raise AssertionError

    def get(self, queue: "SimpleQueue[Any]", seconds: float | None) -> Any:
        raise AssertionError


class Store(MemoryStore):
    """Counts what it is asked, and may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.away = False

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        self.asked.append(key)
        if self.away:
            raise StoreUnreachable("away")
        return super().get(key, limit=limit)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> At:
    return At()


@pytest.fixture
def tenure(store: Store, clock: At) -> Tenure:
    """One that has appended object 6."""
    tenure = Tenure(store, clock)
    tenure.appending()
    tenure.appended(6)
    return tenure


def test_nothing_is_ours_before_the_first_append(store: Store, clock: At) -> None:
    assert Tenure(store, clock).holds() is None


def test_a_fresh_append_is_proof_enough(tenure: Tenure, store: Store, clock: At) -> None:
    clock.time += 5
    assert tenure.holds() is True and not store.asked
    clock.time += 1
    assert tenure.holds() is True and store.asked == [names.log_key(7)]
    assert tenure.holds() is True and len(store.asked) == 1, "an answer is as good for as long"
    assert tenure.holds(surely=True) is True and len(store.asked) == 2


def test_one_that_was_paused_while_it_appended_has_no_fresh_proof(store: Store, clock: At) -> None:
    tenure = Tenure(store, clock)
    tenure.appending()
    clock.time += 600
    tenure.appended(6)
    store.put(names.log_key(7), b"another's")
    assert tenure.holds() is False


def test_an_object_of_somebody_else_ends_it_for_good(tenure: Tenure, store: Store, clock: At) -> None:
    told: list[int] = []
    tenure.on_end(lambda: told.append(1))
    store.put(names.log_key(7), b"another's")
    assert tenure.holds() is True, "whoever it is has not got far"
    assert tenure.holds(surely=True) is False
    assert tenure.holds() is False and told == [1]


def test_a_log_that_was_only_read_can_be_looked_at(store: Store, clock: At) -> None:
    """By a controller that finds its search at its end, and writes best/ once more."""
    tenure = Tenure(store, clock)
    tenure.read(6)
    assert tenure.look() is True and tenure.holds() is True
    store.put(names.log_key(7), b"another's")
    assert tenure.look() is False
    store.away = True
    with pytest.raises(StoreUnreachable):
        tenure.look()


def test_without_an_answer_nobody_can_tell(tenure: Tenure, store: Store, clock: At) -> None:
    clock.time += 60
    store.away = True
    assert tenure.holds() is None
    store.away = False
    assert tenure.holds() is True


def test_while_an_append_is_not_known_to_be_written_its_object_may_be_ours(
    tenure: Tenure, store: Store, clock: At
) -> None:
    clock.time += 60
    tenure.appending()
    store.put(names.log_key(7), b"ours, and its answer was lost")
    assert tenure.holds() is None
    tenure.appended(7)
    assert tenure.holds() is True
