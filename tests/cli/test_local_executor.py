"""Children as processes: how each end is told, and that none outlives its run."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_cli.local_executor import LocalExecutor
from nas_cli.local_trainer import BuiltInTrainer
from nas_controller.executor import End, Ended, Event, Launch, Running
from nas_store import open_store
from nas_store.folder import FolderStore

SMALL = ConvolutionalArchitecture.parse_short("3x3:4")


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., Launch]:
    def make(number: int, **changes: Any) -> Launch:
        values: dict[str, Any] = {
            "experiment": "digits",
            "sample": number,
            "attempt": 1,
            "seed": 1,
            "metric": "accuracy",
            "architecture": SMALL,
            "dataset": DatasetSpec(digits=DigitsDataset(training_images=100)),
            "epochs": 1,
            "reward_epochs": 1,
            "batch_size": 50,
            "optimizer": OptimizerSpec(),
            "store": StoreLocation(folder=str(tmp_path / "store")),
            **changes,
        }
        return Launch(number, (TrainerInput.model_validate(values),))

    return make


Child = Callable[..., Launch]

Events = queue.SimpleQueue[Event]


@pytest.fixture
def events() -> Events:
    return queue.SimpleQueue()


def built_in(folder: Path, seconds: float = HANG_SECONDS) -> LocalExecutor:
    return LocalExecutor(BuiltInTrainer(folder / "children"), lambda _launch: seconds, lambda _launch, _message: None)


def pids(executor: LocalExecutor) -> list[int]:
    """Return the processes of an executor's children."""
    return [each.process._process.pid for each in executor._children.values()]  # type: ignore[attr-defined]


@pytest.fixture
def executor(tmp_path: Path, events: Events) -> Iterator[LocalExecutor]:
    local = built_in(tmp_path)
    assert local.start(events.put) == frozenset()
    yield local
    local.close()


def ended(events: Events) -> Ended:
    """Return the next end; a start must come before it."""
    event = events.get(timeout=HANG_SECONDS)
    assert isinstance(event, Running)
    event = events.get(timeout=HANG_SECONDS)
    assert isinstance(event, Ended)
    return event


def endless(child: Child, number: int = 0) -> Launch:
    return child(number, epochs=10_000, batch_size=2, dataset=DatasetSpec(digits=DigitsDataset(training_images=1000)))


def processes(parent: int) -> list[int]:
    """Return the process ids below one, deepest last."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found += [int(path.parent.name), *processes(int(path.parent.name))]
    return found


@pytest.mark.slow
def test_a_child_trains_and_says_so(executor: LocalExecutor, child: Child, events: Events, tmp_path: Path) -> None:
    executor.launch(child(4))
    end = ended(events)
    assert (end.launch, end.end) == (4, End.SUCCEEDED)
    assert '"accuracy"' in end.message
    assert FolderStore(tmp_path / "store").get(names.result_key(4)) is not None
    assert '"event": "result"' in (tmp_path / "children" / "4.log").read_text()


@pytest.mark.parametrize(
    ("change", "end", "words"),
    [
        ({"metric": "perplexity"}, End.INVALID_INPUT, "spec.objective.metric"),
        ({"dataset": DatasetSpec(cifar10=CifarDataset(uri="/nowhere"))}, End.DATASET_UNAVAILABLE, "is missing"),
        ({"store": StoreLocation(folder="/proc/nowhere")}, End.STORAGE_UNREACHABLE, "/proc/nowhere"),
    ],
)
def test_exit_codes_become_ends_with_the_childs_own_words(
    executor: LocalExecutor, child: Child, events: Events, change: dict[str, Any], end: End, words: str
) -> None:
    executor.launch(child(0, **change))
    said = ended(events)
    assert said.end is end
    assert words in said.message


@pytest.mark.slow
def test_a_deadline_is_enforced(tmp_path: Path, child: Child, events: Events) -> None:
    local = built_in(tmp_path, 3)
    local.start(events.put)
    try:
        local.launch(endless(child))
        end = ended(events)
        assert end.end is End.DEADLINE_EXCEEDED
        assert "trainer.deadline" in end.message
    finally:
        local.close()


@pytest.mark.slow
def test_a_child_past_its_deadline_saves_its_checkpoint(tmp_path: Path, child: Child, events: Events) -> None:
    local = built_in(tmp_path, 10)
    local.start(events.put)
    quick = DatasetSpec(digits=DigitsDataset(training_images=100))
    launch = child(0, epochs=10_000, batch_size=100, dataset=quick)
    try:
        local.launch(launch)
        assert ended(events).end is End.DEADLINE_EXCEEDED
    finally:
        local.close()
    (asked,) = launch.inputs
    assert open_store(asked.store).get(names.checkpoint_key(asked.sample)) is not None


@pytest.mark.parametrize(("number", "end"), [(signal.SIGKILL, End.FAILED), (signal.SIGTERM, End.DISRUPTED)])
def test_a_child_that_somebody_kills(
    executor: LocalExecutor, child: Child, events: Events, number: signal.Signals, end: End
) -> None:
    executor.launch(endless(child))
    assert isinstance(events.get(timeout=HANG_SECONDS), Running)
    (process,) = pids(executor)
    os.kill(process, number)
    said = events.get(timeout=HANG_SECONDS)
    assert isinstance(said, Ended)
    assert said.end is end


def test_a_cancelled_child_says_nothing_more(executor: LocalExecutor, child: Child, events: Events) -> None:
    executor.launch(endless(child))
    assert isinstance(events.get(timeout=HANG_SECONDS), Running)
    executor.cancel(0)
    executor.cancel(7)  # one that does not exist is no error
    executor.launch(child(1))
    assert ended(events).launch == 1
    assert events.empty()


def test_a_launch_that_exists_is_adopted(executor: LocalExecutor, child: Child, events: Events) -> None:
    executor.launch(endless(child))
    executor.launch(endless(child))
    assert isinstance(events.get(timeout=HANG_SECONDS), Running)
    executor.launch(endless(child, 1))
    assert events.get(timeout=HANG_SECONDS) == Running(1)


def test_nothing_outlives_close(tmp_path: Path, child: Child, events: Events) -> None:
    local = built_in(tmp_path)
    local.start(events.put)
    for number in range(2):
        local.launch(endless(child, number))
        assert isinstance(events.get(timeout=HANG_SECONDS), Running)
    running = pids(local)
    local.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
    assert events.empty()


@pytest.mark.slow
def test_nothing_outlives_a_killed_run(tmp_path: Path, child: Child) -> None:
    program = (
        "import sys, time; from pathlib import Path; from nas_api.child import TrainerInput;"
        "from nas_cli.local_executor import LocalExecutor; from nas_cli.local_trainer import BuiltInTrainer;"
        "from nas_controller.executor import Launch;"
        "local = LocalExecutor(BuiltInTrainer(Path(sys.argv[1])), lambda _: 7777, print);"
        "local.start(lambda event: print(event, flush=True));"
        "local.launch(Launch(0, (TrainerInput.model_validate_json(sys.argv[2]),))); time.sleep(7777)"
    )
    text = endless(child).inputs[0].model_dump_json(by_alias=True)
    run = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), text], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert "Running" in run.stdout.readline()
    below = processes(run.pid)
    assert len(below) >= 2  # the fork server and the child
    run.kill()
    run.communicate()
    eventually(lambda: all(_gone(pid) for pid in below), message=lambda: [pid for pid in below if not _gone(pid)])


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_fork_server_has_torch_loaded_and_one_thread(executor: LocalExecutor, child: Child, events: Events) -> None:
    """A fork takes one thread along: a lock that another one held would never be free in the child."""
    executor.launch(child(0))
    ended(events)
    server = Path(f"/proc/{forkserver._forkserver._forkserver_pid}")  # type: ignore[attr-defined]
    assert "libtorch" in (server / "maps").read_text()
    assert len(list((server / "task").iterdir())) == 1
