"""Bookmarks: one follower at a time by construction, and no note that says more than was done."""

import pytest
from controller.world import MemoryStore

from nas_api import names
from nas_followers.bookmarks import Bookmarks
from nas_followers.errors import FollowerError, Superseded
from nas_log.follower import BEGINNING, Position
from nas_store import Store
from nas_store.folder import FolderStore


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path_factory.mktemp("store"))


def test_a_new_follower_goes_on_where_the_one_before_has_come_to(store: Store) -> None:
    first = Bookmarks(store, "mlflow")
    assert first.position == BEGINNING and not first.inherited
    first.move(Position(7, "seven"))
    second = Bookmarks(store, "mlflow")
    assert second.position == Position(7, "seven") and second.inherited
    assert Bookmarks(store, "another").position == BEGINNING
    assert store.list("") == sorted(
        [*(names.follower_key("mlflow", number) for number in range(3)), names.follower_key("another", 0)]
    )


def test_who_was_superseded_finds_out_and_writes_nothing(store: Store) -> None:
    first = Bookmarks(store, "mlflow")
    first.check()
    second = Bookmarks(store, "mlflow")
    before = store.list("")
    with pytest.raises(Superseded, match=r"wrote followers/mlflow/0000000001\.json"):
        first.check()
    with pytest.raises(Superseded):
        first.move(Position(1, "one"))
    assert store.list("") == before
    second.check()
    second.move(Position(2, "two"))
    second.check()


def test_of_two_that_take_over_at_the_same_time_one_is_the_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    others: list[Bookmarks] = []
    busy: list[str] = []
    put = store.put_if_absent

    def interrupted(key: str, data: bytes) -> bool:
        if not busy:
            busy.append(key)
            others.append(Bookmarks(store, "mlflow"))
        return put(key, data)

    monkeypatch.setattr(store, "put_if_absent", interrupted)
    late = Bookmarks(store, "mlflow")
    late.check()
    with pytest.raises(Superseded):
        others[0].check()


def test_a_write_whose_answer_was_lost_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    bookmarks = Bookmarks(store, "mlflow")
    put = store.put_if_absent
    monkeypatch.setattr(store, "put_if_absent", lambda key, data: put(key, data) and False)
    bookmarks.move(Position(3, "three"))
    bookmarks.check()
    assert Bookmarks(store, "mlflow").position == Position(3, "three")


def test_whoever_was_superseded_sees_when_the_other_one_is_done() -> None:
    store = MemoryStore()
    first, second = Bookmarks(store, "mlflow"), Bookmarks(store, "mlflow")
    assert not first.others_are_done()
    second.move(Position(4, "four"), done=True)
    assert first.others_are_done()
    Bookmarks(store, "mlflow")
    assert not first.others_are_done()


def test_a_bookmark_that_cannot_be_read_says_how_to_begin_anew() -> None:
    store = MemoryStore()
    store.put(names.follower_key("mlflow", 0), b"{}")
    with pytest.raises(FollowerError, match=r"0000000000\.json is no bookmark.*remove.*followers/mlflow/"):
        Bookmarks(store, "mlflow")
