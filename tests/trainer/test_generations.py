"""Attempts at one sample overlap: the older one's checkpoints must never come in the way of the newer one's."""

from pathlib import Path

import pytest

from nas_api import names
from nas_api.child import Result
from nas_store.folder import FolderStore
from nas_trainer.generations import Checkpoints, last_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_an_attempt_goes_on_from_the_newest_before_it(store: FolderStore) -> None:
    assert Checkpoints(store, 3, 1).take_over() is None
    Checkpoints(store, 3, 1).save(b"one")
    Checkpoints(store, 3, 2).save(b"two")
    assert Checkpoints(store, 3, 4).take_over() == b"two"
    assert Checkpoints(store, 4, 4).take_over() is None, "another sample's are not looked at"


def test_what_an_older_attempt_still_writes_is_ignored(store: FolderStore) -> None:
    old, new = Checkpoints(store, 3, 1), Checkpoints(store, 3, 2)
    old.save(b"epoch 5")
    assert new.take_over() == b"epoch 5"
    old.save(b"epoch 9, of a pod that is thought to be gone")
    assert Checkpoints(store, 3, 2).take_over() == b"epoch 5", "the same launch, resumed by its queue"
    new.save(b"epoch 6")
    old.save(b"epoch 10")
    assert new.take_over() == Checkpoints(store, 3, 3).take_over() == b"epoch 6"


def test_an_older_attempt_does_not_see_a_newer_ones(store: FolderStore) -> None:
    Checkpoints(store, 3, 2).save(b"newer")
    assert Checkpoints(store, 3, 1).take_over() is None


def test_an_attempt_keeps_what_it_has_found_apart_from_what_it_has_saved(store: FolderStore) -> None:
    def stored() -> dict[str, bytes | None]:
        return {key: data for key in store.list("samples/000003/") if (data := store.get(key))}

    Checkpoints(store, 3, 1).save(b"one")
    second = Checkpoints(store, 3, 2)
    second.take_over()
    assert stored() == {names.inherited_checkpoint_key(3, 2): b"one"}, "it has made no progress yet"
    second.save(b"two")
    assert stored().keys() == {names.inherited_checkpoint_key(3, 2), names.checkpoint_key(3, 2)}
    assert Checkpoints(store, 3, 3).take_over() == b"two"
    assert stored() == {names.inherited_checkpoint_key(3, 3): b"two"}


def test_the_last_checkpoint_is_that_of_the_attempt_whose_result_counts(store: FolderStore) -> None:
    assert last_checkpoint(store, 3) is None
    for attempt in (1, 2, 3):
        Checkpoints(store, 3, attempt).save(b"%d" % attempt)
    result = Result(sample=3, attempt=2, architecture="0" * 64, metrics={"accuracy": 0.5})
    store.put_if_absent(names.result_key(3), result.model_dump_json(by_alias=True).encode())
    assert last_checkpoint(store, 3) == b"2"


def test_a_checkpoint_from_before_attempts_had_their_own_is_found(store: FolderStore) -> None:
    store.put("samples/000003/checkpoint", b"of any attempt")
    assert Checkpoints(store, 3, 7).take_over() == b"of any attempt"
