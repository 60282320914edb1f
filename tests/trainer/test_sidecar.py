"""What stands around a user's own trainer: its input, and what becomes of every kind of result."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import ExitCode, Result, StoreLocation, TrainerInput
from nas_api.experiment import CustomDataset, DatasetSpec, OptimizerSpec
from nas_api.spaces.custom import CustomArchitecture
from nas_store.errors import CredentialsRefused, StoreUnreachable
from nas_store.folder import FolderStore
from nas_trainer import sidecar

ARCHITECTURE = CustomArchitecture(choices={"depth": 4, "op": ("conv", "pool")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the trainer's NAS_DIR."""
    (tmp_path / "nas").mkdir()
    return tmp_path / "nas"


@pytest.fixture
def document(tmp_path: Path) -> TrainerInput:
    return TrainerInput(
        experiment="mine",
        sample=5,
        attempt=2,
        seed=11,
        metric="accuracy",
        architecture=ARCHITECTURE,
        dataset=DatasetSpec(custom=CustomDataset()),
        epochs=9,
        reward_epochs=1,
        batch_size=2,
        optimizer=OptimizerSpec(),
        store=StoreLocation(folder=str(tmp_path / "store")),
    )


@pytest.fixture
def run(folder: Path, document: TrainerInput, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the program with an argument, as its pod does."""

    def start(
        argument: str, pause: Callable[[float], None] = lambda _: None, pod: str | None = None, **more: Any
    ) -> int:
        environment = {
            names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True),
            "NAS_DIR": str(folder),
            "NAS_NAMESPACE": "team",
            "NAS_POD": "mine-0-abc",
            "NAS_TERMINATION_LOG": str(tmp_path / "message"),
            **({} if pod is None else {"JOB_COMPLETION_INDEX": pod}),
        }
        return sidecar.main([argument], environment, pause, **more)

    return start


Run = Callable[..., int]


def stored(tmp_path: Path) -> bytes:
    data = FolderStore(tmp_path / "store").get(names.result_key(5))
    assert data is not None
    return data


def parsed(tmp_path: Path) -> Result:
    return Result.parse(stored(tmp_path), sample=5, digest=ARCHITECTURE.digest, metric="accuracy")


def test_the_input_is_plain_json(run: Run, folder: Path) -> None:
    assert run("prepare") == ExitCode.OK
    assert json.loads((folder / "architecture.json").read_text()) == {
        "version": 1,
        "space": "custom",
        "choices": {"depth": 4, "op": ["conv", "pool"]},
    }
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["sample"], settings["seed"], settings["epochs"], settings["batchSize"]) == (5, 11, 9, 2)
    assert "store" not in settings, "where results are is no concern of a user's program"


def test_a_result_becomes_the_samples(run: Run, folder: Path, tmp_path: Path) -> None:
    run("prepare")
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.93, "loss": 1}, "parameters": 7, "note": "mine"}')
    assert run("upload") == ExitCode.OK
    result = parsed(tmp_path)
    assert result.metrics == {"accuracy": 0.93, "loss": 1.0}
    assert (result.attempt, result.parameters) == (2, 7)
    assert 0 <= result.seconds < HANG_SECONDS
    assert '"accuracy"' in (tmp_path / "message").read_text()


def test_a_divergence_needs_no_metric(run: Run, folder: Path, tmp_path: Path) -> None:
    run("prepare")
    (folder / "result.json").write_text('{"status": "Diverged", "seconds": 3}')
    assert run("upload") == ExitCode.OK
    assert parsed(tmp_path).diverged("accuracy")
    assert parsed(tmp_path).seconds == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "did not write it"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"metrics": {"accuracy": 0.9}', "not JSON"),
        (b"[" * 100_000, "its JSON is nested too deeply"),
        (b"[" * 900 + b"]" * 900, 'an object is needed, such as {"metrics": {"accuracy": 0.93}}, not a list'),
        (b"0.93", 'an object is needed, such as {"metrics": {"accuracy": 0.93}}, not 0.93'),
        (b'{"metrics": 0.93}', 'metrics: an object is needed, such as {"accuracy": 0.93}, not 0.93'),
        (b'{"metrics": {"loss": 0.1}}', "metrics has no 'accuracy' (spec.objective.metric): only loss"),
        (b'{"accuracy": 0.93}', "it is empty or missing"),
        (b'{"metrics": {"accuracy": true}}', "metrics.accuracy: true is not a number: write one such as 0.93, or NaN"),
        (b'{"metrics": {"accuracy": null}}', "metrics.accuracy: null is not a number: write one such as 0.93, or NaN"),
        (b'{"metrics": {"accuracy": "high"}}', 'metrics.accuracy: "high" is not a number: write one such as 0.93'),
        (b'{"metrics": {"accuracy": "0.5"}}', 'metrics.accuracy: "0.5" is not a number: write 0.5 without quotes'),
        (b'{"metrics": {"accuracy": "nan"}}', 'metrics.accuracy: "nan" is not a number: write NaN without quotes'),
        (b'{"metrics": {"accuracy": 1, "a b": 1}}', 'metrics: "a b" is not a valid name: use up to 63 letters'),
        (b'{"metrics": {"accuracy": 1, "\xc2\x9b2J": 1}}', 'metrics: "" is not a valid name'),
        (b'{"metrics": {"accuracy": 1, "\\ud800": 1}}', 'metrics: "\N{REPLACEMENT CHARACTER}" is not a valid name'),
        (b'{"metrics": {"accuracy": 1}, "history": [0.5, "0.6"]}', 'history.1: "0.6" is not a number: write 0.6'),
        (b'{"metrics": {"accuracy": 1}, "history": 0.5}', "history: a list of numbers is needed, not 0.5"),
        (b'{"metrics": {"accuracy": 1}, "parameters": true}', "parameters: true is not a number"),
        (b'{"metrics": {"accuracy": 1}, "parameters": 7.5}', "parameters: 7.5 is not valid: it should be"),
        (b'{"metrics": {"accuracy": 1}, "seconds": "3"}', 'seconds: "3" is not a number: write 3.0 without quotes'),
        (b'{"status": "Fine", "metrics": {"accuracy": 1}}', "\"Fine\" is not valid: it should be 'Trained' or"),
        (b" " * (1 << 20) + b"{}", "larger than"),
    ],
)
def test_a_result_that_cannot_be_used_says_why_and_where_to_look(
    run: Run, folder: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    run("prepare")
    if content is not None:
        (folder / "result.json").write_bytes(content)
    assert run("upload") == ExitCode.OK
    with pytest.raises(ValueError, match=r"^result\.json: ") as caught:
        parsed(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).endswith("Its output: kubectl logs -n team mine-0-abc -c trainer")


@pytest.mark.parametrize("trick", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_followed(run: Run, folder: Path, tmp_path: Path, trick: str) -> None:
    run("prepare")
    secret = tmp_path / "secret"
    secret.write_text('{"metrics": {"accuracy": 0.5}}')
    match trick:
        case "link":
            (folder / "result.json").symlink_to(secret)
        case "pipe":
            os.mkfifo(folder / "result.json")
        case _:
            (folder / "result.json").mkdir()
    assert run("upload") == ExitCode.OK
    with pytest.raises(ValueError, match=r"^result\.json: it (is not a regular file|cannot be read)"):
        parsed(tmp_path)


def test_the_first_result_counts(run: Run, folder: Path, tmp_path: Path) -> None:
    run("prepare")
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.1}}')
    run("upload")
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.2}}')
    assert run("upload") == ExitCode.OK
    assert parsed(tmp_path).metrics["accuracy"] == 0.1


def test_an_upload_outlasts_a_store_in_trouble(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FolderStore.put_if_absent
    failures = iter(range(8))

    def failing(store: FolderStore, key: str, data: bytes) -> bool:
        if next(failures, None) is not None:
            raise StoreUnreachable("no answer")
        return put(store, key, data)

    monkeypatch.setattr(FolderStore, "put_if_absent", failing)
    run("prepare")
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.1}}')
    pauses: list[float] = []
    assert run("upload", pauses.append) == ExitCode.OK
    assert parsed(tmp_path).metrics["accuracy"] == 0.1
    assert pauses == [1, 2, 4, 8, 15, 30, 30, 30]


def test_refused_keys_are_told_with_their_exit_code(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bool:
        raise CredentialsRefused("correct storage.s3.credentialsSecret")

    monkeypatch.setattr(FolderStore, "put_if_absent", refuse)
    run("prepare")
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.1}}')
    assert run("upload") == ExitCode.STORAGE_REFUSED
    assert (tmp_path / "message").read_text() == "correct storage.s3.credentialsSecret"


def test_it_loads_no_torch() -> None:
    program = "import sys, nas_trainer.sidecar; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---------------------------------------------------------------- several pods


@pytest.fixture
def blocked_signals() -> Iterator[None]:
    """Put back what a keeper in this process blocks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kept(tmp_path: Path, attempt: int) -> bytes | None:
    return FolderStore(tmp_path / "store").get(names.checkpoint_key(5, attempt))


def test_only_the_first_pod_has_a_result_and_a_checkpoint(run: Run, folder: Path, tmp_path: Path) -> None:
    FolderStore(tmp_path / "store").put(names.checkpoint_key(5, 1), b"of the first attempt")
    for pod in ("1", "0"):
        assert run("prepare", pod=pod) == ExitCode.OK
        assert (folder / "checkpoint").exists() is (pod == "0")
    brought = FolderStore(tmp_path / "store").get(names.inherited_checkpoint_key(5, 2))
    assert (folder / "checkpoint").read_bytes() == brought == b"of the first attempt"
    (folder / "result.json").write_text('{"metrics": {"accuracy": 0.93}}')
    assert run("upload", pod="1") == ExitCode.OK
    assert FolderStore(tmp_path / "store").get(names.result_key(5)) is None
    assert "the first one's result counts" in (tmp_path / "message").read_text()
    assert run("upload", pod="0") == ExitCode.OK
    assert parsed(tmp_path).metrics == {"accuracy": 0.93}


def test_a_single_pod_has_no_checkpoint(run: Run, folder: Path, tmp_path: Path) -> None:
    FolderStore(tmp_path / "store").put(names.checkpoint_key(5, 1), b"of whom?")
    assert run("prepare") == ExitCode.OK
    assert not (folder / "checkpoint").exists()


@pytest.mark.usefixtures("blocked_signals")
def test_checkpoints_are_kept_as_they_change_and_once_more_at_the_end(run: Run, folder: Path, tmp_path: Path) -> None:
    path = folder / "checkpoint"
    seen = []

    def trains_on(_seconds: float) -> bool:
        seen.append(kept(tmp_path, 2))
        step = len(seen)
        if step == 3:
            path.unlink()
            path.mkdir()  # Not a file: said, and looked at again.
        elif step in (1, 4, 6):
            if path.is_dir():
                path.rmdir()
            path.with_name("aside").write_bytes(b"%d" % step)
            path.with_name("aside").replace(path)
        return step == 6

    assert run("keep", pod="0", wait_for_end=trains_on) == ExitCode.OK
    assert seen == [None, b"1", b"1", b"1", b"4", b"4"]
    assert kept(tmp_path, 2) == b"6", "what was written right before the end"


@pytest.mark.usefixtures("blocked_signals")
def test_a_checkpoint_that_was_brought_is_not_the_attempt_s_own(run: Run, folder: Path, tmp_path: Path) -> None:
    """By its own the controller knows that an attempt has got on."""
    FolderStore(tmp_path / "store").put(names.checkpoint_key(5, 1), b"of the first attempt")
    assert run("prepare", pod="0") == ExitCode.OK
    assert run("keep", pod="0", wait_for_end=lambda _: True) == ExitCode.OK
    assert kept(tmp_path, 2) is None
    (folder / "checkpoint").write_bytes(b"of the second")
    assert run("keep", pod="0", wait_for_end=lambda _: True) == ExitCode.OK
    assert kept(tmp_path, 2) == b"of the second"


@pytest.mark.usefixtures("blocked_signals")
def test_the_other_pods_keep_nothing_and_wait(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "checkpoint").write_bytes(b"theirs")
    looks = iter([False, False, True])
    assert run("keep", pod="1", wait_for_end=lambda _: next(looks)) == ExitCode.OK
    assert not list(looks) and kept(tmp_path, 2) is None


@pytest.mark.slow
def test_a_keeper_ends_with_sigterm_as_a_pods_process(document: TrainerInput, folder: Path, tmp_path: Path) -> None:
    environment = {
        names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True),
        "NAS_DIR": str(folder),
        "JOB_COMPLETION_INDEX": "0",
    }
    command = [sys.executable, "-m", "nas_trainer.sidecar", "keep"]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
    (folder / "checkpoint").write_bytes(b"the first")
    eventually(lambda: kept(tmp_path, 2) == b"the first", message="it keeps what changes")
    (folder / "checkpoint").write_bytes(b"the last one")
    process.terminate()
    assert process.wait(HANG_SECONDS) == ExitCode.OK
    assert kept(tmp_path, 2) == b"the last one"
