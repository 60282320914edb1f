"""The contract of a store, kept by both, a folder and S3 on a real server, and by what counts their calls."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_api import names
from nas_api.child import StoreLocation
from nas_controller.metered import MeteredStore
from nas_controller.metrics import Metrics
from nas_store import Store, open_store
from nas_store.errors import TooLarge

OpenStore = Callable[[], Store]


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3), "metered"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """A function that opens the same store, as another process would."""
    if request.param in ("folder", "metered"):
        location = StoreLocation(folder=str(tmp_path / "store"))
    else:
        location = StoreLocation(s3=request.getfixturevalue("s3_location"))
    if request.param == "metered":
        return lambda: MeteredStore(open_store(location), Metrics())
    return lambda: open_store(location)


@pytest.fixture
def store(open_again: OpenStore) -> Store:
    return open_again()


def test_a_missing_key_is_none(store: Store) -> None:
    assert store.get("log/0000000000.json") is None


def test_what_is_put_is_read_by_another_client(store: Store, open_again: OpenStore) -> None:
    assert store.put_if_absent("samples/000001/result.json", b"\x00first")
    assert open_again().get("samples/000001/result.json") == b"\x00first"


def test_the_first_conditional_write_wins(store: Store, open_again: OpenStore) -> None:
    assert store.put_if_absent("log/0", b"first")
    assert not open_again().put_if_absent("log/0", b"second")
    assert store.get("log/0") == b"first"


def test_of_many_writers_at_once_one_wins(open_again: OpenStore) -> None:
    stores = [open_again() for _ in range(8)]
    barrier = threading.Barrier(len(stores))
    won: list[int] = []

    def write(index: int) -> None:
        barrier.wait()
        if stores[index].put_if_absent("log/0", str(index).encode()):
            won.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert stores[0].get("log/0") == str(won[0]).encode()


def test_put_overwrites(store: Store) -> None:
    store.put("best/architecture.json", b"old")
    store.put("best/architecture.json", b"new")
    assert store.get("best/architecture.json") == b"new"
    assert not store.put_if_absent("best/architecture.json", b"newest")


def test_a_replacement_is_asked_for_leave_and_replaces(store: Store, open_again: OpenStore) -> None:
    assert store.replace("best/architecture.json", b"old", lambda: True)
    assert store.replace("best/architecture.json", b"new", lambda: True)
    assert not store.replace("best/architecture.json", b"older", lambda: False)
    assert open_again().get("best/architecture.json") == b"new"


def test_more_than_the_limit_is_not_read(store: Store) -> None:
    store.put("samples/000001/result.json", b"12345")
    assert store.get("samples/000001/result.json", limit=5) == b"12345"
    with pytest.raises(TooLarge, match=r"samples/000001/result\.json has 5 bytes, more than 4"):
        store.get("samples/000001/result.json", limit=4)
    assert store.get("samples/000002/result.json", limit=4) is None


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put_if_absent("snapshots/0", b"")
    assert store.get("snapshots/0") == b""
    assert not store.put_if_absent("snapshots/0", b"more")


def test_list_is_sorted_and_takes_any_prefix(store: Store) -> None:
    for key in ("log/2", "log/10", "log/1", "logs", "samples/1/result.json"):
        store.put(key, b"x")
    assert store.list("log/") == ["log/1", "log/10", "log/2"]
    assert store.list("log/1") == ["log/1", "log/10"]
    assert store.list("") == ["log/1", "log/10", "log/2", "logs", "samples/1/result.json"]
    assert store.list("nothing/") == []


def test_list_goes_on_after_the_first_page(store: Store) -> None:
    keys = [f"log/{number:04d}" for number in range(1003)]
    for key in keys:
        store.put(key, b"")
    assert store.list("log/") == keys


def test_keys_cannot_leave_the_prefix(store: Store) -> None:
    for key in ("", "/etc/passwd", "../x", "log//x", "log/", "log/../../x", ".incoming/x"):
        with pytest.raises(ValueError, match="cannot be a key"):
            store.get(key)


def test_the_uri_names_the_key(store: Store) -> None:
    assert store.uri("best/network.py").endswith("/best/network.py")
    assert store.uri("best/network.py").startswith(("file:///", "s3://"))


def test_the_probe_passes_and_passes_again(store: Store, open_again: OpenStore) -> None:
    store.probe()
    open_again().probe()
    assert store.list("") == [names.PROBE]


def test_a_copy_replaces_what_was_there(store: Store, open_again: OpenStore) -> None:
    store.put("samples/000001/weights.safetensors", b"weights")
    store.put("best/weights.safetensors", b"old")
    assert store.copy("samples/000001/weights.safetensors", "best/weights.safetensors", limit=7)
    assert open_again().get("best/weights.safetensors") == b"weights"
    assert not store.copy("samples/000002/weights.safetensors", "best/weights.safetensors", limit=7)
    assert not store.copy("samples", "best/weights.safetensors", limit=7)
    with pytest.raises(TooLarge, match=r"samples/000001/weights\.safetensors has 7 bytes, more than 6"):
        store.copy("samples/000001/weights.safetensors", "best/weights.safetensors", limit=6)
    assert store.get("best/weights.safetensors") == b"weights"


def test_a_digest_is_of_the_bytes(store: Store) -> None:
    data = bytes(range(256)) * 10_000
    store.put("best/network.onnx", data)
    assert store.digest("best/network.onnx", limit=len(data)) == hashlib.sha256(data).hexdigest()
    assert store.digest("best/missing.onnx", limit=1) is None
    with pytest.raises(TooLarge, match=r"best/network\.onnx has 2560000 bytes"):
        store.digest("best/network.onnx", limit=len(data) - 1)
