"""The report that a search keeps in its store: written aside, and never in the search's way."""

import threading

import pytest
from controller.world import MemoryStore
from experiments import manifest
from patience import HANG_SECONDS, eventually
from report import logs

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_log.log import Log
from nas_report import writer
from nas_report.writer import ReportWriter
from nas_store.errors import StoreUnreachable

EXPERIMENT = NASExperiment.model_validate(manifest())


@pytest.fixture(autouse=True)
def at_any_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first report never comes by itself, and the last one has all the time that it needs."""
    monkeypatch.setattr(writer, "_FIRST_SECONDS", HANG_SECONDS)
    monkeypatch.setattr(writer, "_LAST_SECONDS", HANG_SECONDS)


def test_the_last_report_is_of_the_whole_log() -> None:
    store = MemoryStore()
    with ReportWriter(store, lambda: EXPERIMENT):
        logs.write(store, logs.records(logs.CONVOLUTIONAL, 30))
        assert names.REPORT not in store.objects
    page = store.objects[names.REPORT].decode()
    assert "<b>30</b> of 30" in page and "Complete" in page


def test_reports_come_while_the_search_goes_on_and_read_each_object_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(writer, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(writer, "_SHARE", 0)
    reads: list[str] = []

    class Counting(MemoryStore):
        def get(self, key: str, *, limit: int | None = None) -> bytes | None:
            reads.append(key)
            return super().get(key, limit=limit)

    store = Counting()
    objects = logs.records(logs.CONVOLUTIONAL, 8)
    log = Log(store)
    with ReportWriter(store, lambda: EXPERIMENT):
        for _ in range(5):
            log.append(next(objects))
        eventually(lambda: b"<b>2</b> of 8" in store.objects.get(names.REPORT, b""))
        assert b"Searching" in store.objects[names.REPORT]
        for each in objects:
            log.append(each)
    assert b"Complete" in store.objects[names.REPORT]
    assert sorted(reads) == [names.log_key(sequence) for sequence in range(log.sequence + 1)]


def test_a_store_in_trouble_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FIRST_SECONDS", 0.01)
    tried = threading.Event()

    class Failing(MemoryStore):
        def list(self, prefix: str) -> list[str]:
            if not tried.is_set():
                tried.set()
                raise StoreUnreachable("no answer")
            return super().list(prefix)

    store = Failing()
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 4))
    with ReportWriter(store, lambda: EXPERIMENT):
        assert tried.wait(HANG_SECONDS)
    assert names.REPORT in store.objects


def test_a_report_that_was_not_stored_is_stored_later_though_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FIRST_SECONDS", 0.01)
    tried = threading.Event()

    class Failing(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            if not tried.is_set():
                tried.set()
                raise StoreUnreachable("no answer")
            super().put(key, data)

    store = Failing()
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 4))
    with ReportWriter(store, lambda: EXPERIMENT):
        assert tried.wait(HANG_SECONDS)
    assert names.REPORT in store.objects


def test_no_log_no_report() -> None:
    store = MemoryStore()
    with ReportWriter(store, lambda: EXPERIMENT):
        pass
    assert store.objects == {}


def test_a_store_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LAST_SECONDS", 0.05)
    answer = threading.Event()

    class Hanging(MemoryStore):
        def list(self, prefix: str) -> list[str]:
            answer.wait(HANG_SECONDS)
            return super().list(prefix)

    with ReportWriter(Hanging(), lambda: EXPERIMENT) as report:
        pass
    assert report._thread.is_alive()
    answer.set()
    report._thread.join(HANG_SECONDS)


def test_a_search_that_fails_does_not_wait_for_its_report() -> None:
    store = MemoryStore()
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 4))
    with pytest.raises(ZeroDivisionError), ReportWriter(store, lambda: EXPERIMENT) as report:
        raise ZeroDivisionError
    report._thread.join(HANG_SECONDS)
