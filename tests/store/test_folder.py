"""What is particular to a folder: crashes leave whole objects or none, and trouble has a name."""

import os
from pathlib import Path

import pytest

from nas_api.reasons import Reason
from nas_store.errors import StoreError
from nas_store.folder import FolderStore


def test_a_half_written_object_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)

    class Killed(BaseException):
        """Stands for a process that dies here: nothing catches it."""

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "link", die)
    with pytest.raises(Killed):
        store.put_if_absent("log/0", b"data")
    monkeypatch.undo()
    assert store.get("log/0") is None
    assert store.list("") == []
    assert store.put_if_absent("log/0", b"data")


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be used") as caught:
        FolderStore(tmp_path / "file").probe()
    assert caught.value.reason is Reason.STORE_UNREACHABLE
