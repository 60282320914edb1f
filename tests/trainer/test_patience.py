"""How long a store's trouble is waited out, and what is not waited for."""

from pathlib import Path

import pytest

from nas_store.errors import CredentialsRefused, StoreError, StoreUnreachable
from nas_store.folder import FolderStore
from nas_trainer.patience import READING_SECONDS, WRITING_SECONDS, Patient


class Trouble(FolderStore):
    """A store that answers nothing but an error, so many times."""

    def __init__(self, root: Path, error: StoreError, times: int) -> None:
        super().__init__(root)
        self.error, self.times = error, times

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        self.fail()
        return super().get(key, limit=limit)

    def put(self, key: str, data: bytes) -> None:
        self.fail()
        super().put(key, data)

    def fail(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise self.error


def test_trouble_that_passes_is_nobody_s_business(tmp_path: Path) -> None:
    pauses: list[float] = []
    store = Patient(Trouble(tmp_path, StoreUnreachable("no answer"), 7), pauses.append)
    store.put("a", b"1")
    assert pauses == [1, 2, 4, 8, 15, 30, 30]
    assert store.get("a") == b"1"


@pytest.mark.parametrize(("writing", "most"), [(True, WRITING_SECONDS), (False, READING_SECONDS)])
def test_trouble_that_stays_is_told(tmp_path: Path, writing: bool, most: float) -> None:
    pauses: list[float] = []
    store = Patient(Trouble(tmp_path, StoreUnreachable("no answer"), 1000), pauses.append)
    with pytest.raises(StoreUnreachable):
        store.put("a", b"1") if writing else store.get("a")
    assert most <= sum(pauses) < most + 30


def test_a_refusal_is_told_at_once(tmp_path: Path) -> None:
    pauses: list[float] = []
    store = Patient(Trouble(tmp_path, CredentialsRefused("no"), 1), pauses.append)
    with pytest.raises(CredentialsRefused):
        store.get("a")
    assert not pauses
