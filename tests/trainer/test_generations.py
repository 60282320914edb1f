"""Attempts at one sample overlap: the older one's checkpoints must never come in the way of the newer one's."""

from pathlib import Path

import pytest

from nas_api import names
from nas_store.folder import FolderStore
from nas_trainer.generations import Checkpoints


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


def test_a_sample_keeps_one_checkpoint(store: FolderStore) -> None:
    Checkpoints(store, 3, 1).save(b"one")
    Checkpoints(store, 3, 2).take_over()
    found = {key: store.get(key) for key in store.list("samples/000003/")}
    assert found == {names.checkpoint_key(3, 1): b"", names.checkpoint_key(3, 2): b"one"}


def test_a_checkpoint_from_before_attempts_had_their_own_is_found(store: FolderStore) -> None:
    store.put("samples/000003/checkpoint", b"of any attempt")
    assert Checkpoints(store, 3, 7).take_over() == b"of any attempt"
