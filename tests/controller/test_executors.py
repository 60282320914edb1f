"""What the search may expect of any executor: one suite for Jobs, local processes and the table, metered or not."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import pytest
from controller.test_kubernetes import Bench
from experiments import manifest
from patience import HANG_SECONDS

from nas_api import names
from nas_api.child import Result, StoreLocation
from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_cli.local_executor import LocalExecutor
from nas_cli.local_trainer import BuiltInTrainer
from nas_controller.executor import End, Ended, Event, Executor, Launch, Running
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.executors.table import TableExecutor
from nas_controller.metered import MeteredExecutor
from nas_controller.metrics import Metrics
from nas_kube.clock import SYSTEM_CLOCK
from nas_store.folder import FolderStore


class Place(Protocol):
    """An executor, and what makes its children end."""

    executor: Executor

    def train(self, launch: Launch) -> None:
        """Have a launched child train, where nobody else does."""


class Table:
    def __init__(self, store: FolderStore, folder: Path, request: pytest.FixtureRequest) -> None:
        self.executor: Executor = TableExecutor(store, lambda sample, architecture: {"accuracy": 0.5})

    def train(self, launch: Launch) -> None:
        """The table has answered."""


class Local:
    def __init__(self, store: FolderStore, folder: Path, request: pytest.FixtureRequest) -> None:
        trainer = BuiltInTrainer(folder / "children")
        self.executor: Executor = LocalExecutor(trainer, lambda launch: HANG_SECONDS, lambda launch, words: None)

    def train(self, launch: Launch) -> None:
        """The process trains."""


class Jobs:
    def __init__(self, store: FolderStore, folder: Path, request: pytest.FixtureRequest) -> None:
        plane = request.getfixturevalue("control_plane")
        self._bench = Bench(plane.client, request.getfixturevalue("namespace"))
        self._store = store
        self.executor: Executor = KubernetesExecutor(
            plane.client, self._bench.experiment, "trainer:test", ThreadPoolExecutor(8)
        )

    def train(self, launch: Launch) -> None:
        """Write the result, as a trainer would, and end the pod, as a kubelet would."""
        for asked in launch.inputs:
            digest = asked.architecture.digest
            result = Result(sample=asked.sample, attempt=1, architecture=digest, metrics={"accuracy": 0.5})
            self._store.put_if_absent(names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode())
        self._bench.end_pod(launch.number, 0)


class Changing(TableExecutor):
    """A table that takes over manifests, which change nothing in it."""

    def change(self, experiment: NASExperiment) -> None:
        """See :class:`nas_controller.instruments.ChangingExecutor`."""


class MeteredTable(Table):
    def __init__(self, store: FolderStore, folder: Path, request: pytest.FixtureRequest) -> None:
        table = Changing(store, lambda sample, architecture: {"accuracy": 0.5})
        experiment = NASExperiment.model_validate(manifest())
        self.executor = MeteredExecutor(table, experiment, Metrics(), SYSTEM_CLOCK)


class MeteredJobs(Jobs):
    def __init__(self, store: FolderStore, folder: Path, request: pytest.FixtureRequest) -> None:
        super().__init__(store, folder, request)
        assert isinstance(self.executor, KubernetesExecutor)
        self.executor = MeteredExecutor(self.executor, self._bench.experiment, Metrics(), SYSTEM_CLOCK)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture(
    params=[
        Table,
        MeteredTable,
        pytest.param(Local, marks=pytest.mark.slow),
        pytest.param(Jobs, marks=pytest.mark.cluster),
        pytest.param(MeteredJobs, marks=pytest.mark.cluster),
    ]
)
def place(request: pytest.FixtureRequest, store: FolderStore, tmp_path: Path) -> Iterator[Place]:
    made: Place = request.param(store, tmp_path, request)
    yield made
    made.executor.close()


def child(tmp_path: Path, number: int, *samples: int) -> Launch:
    """Return a launch of these samples, or of the one that has its number."""
    trainer = {"dataset": {"digits": {"trainingImages": 100}}, "epochs": 1}
    experiment = NASExperiment.model_validate(manifest(trainer=trainer))
    space = search_space(experiment.spec.search_space)
    architecture = space.decode((0,) * len(space.decisions(number)))
    location = StoreLocation(folder=str(tmp_path / "store"))
    inputs = [trainer_input(experiment, location, sample, 1, architecture) for sample in samples or (number,)]
    return Launch(number, tuple(inputs))


def next_end(events: "SimpleQueue[Event]") -> Ended:
    """Return the next end; before it a child may say that it runs."""
    event = events.get(timeout=HANG_SECONDS)
    while isinstance(event, Running):
        event = events.get(timeout=HANG_SECONDS)
    assert isinstance(event, Ended)
    return event


def nothing_more(events: "SimpleQueue[Event]") -> None:
    with pytest.raises(Empty):
        pytest.fail(f"unexpected: {events.get(timeout=1)}")


def test_a_child_ends_once_with_its_result_in_the_store(place: Place, store: FolderStore, tmp_path: Path) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    assert place.executor.start(events.put) == frozenset()
    launches = [child(tmp_path, number) for number in range(2)]
    for launch in launches:
        place.executor.launch(launch)
        place.train(launch)
    ends = [next_end(events) for _ in launches]
    assert sorted(end.launch for end in ends) == [0, 1]
    assert {end.end for end in ends} == {End.SUCCEEDED}
    assert_results(store, launches)
    nothing_more(events)


def assert_results(store: FolderStore, launches: list[Launch]) -> None:
    for asked in [asked for launch in launches for asked in launch.inputs]:
        data = store.get(names.result_key(asked.sample))
        assert data is not None, "an end is told after the result is there"
        result = Result.parse(data, sample=asked.sample, digest=asked.architecture.digest, metric="accuracy")
        assert 0 <= result.metrics["accuracy"] <= 1


def test_children_of_one_launch_end_together(place: Place, store: FolderStore, tmp_path: Path) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    place.executor.start(events.put)
    launch = child(tmp_path, 0, 3, 5, 6)
    place.executor.launch(launch)
    place.train(launch)
    assert next_end(events) in (Ended(0, End.SUCCEEDED, words) for words in ("", "all 3 children have their results"))
    assert_results(store, [launch])
    nothing_more(events)


def test_to_cancel_what_does_not_run_is_no_error(place: Place, tmp_path: Path) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    place.executor.start(events.put)
    place.executor.cancel(7)
    launch = child(tmp_path, 0)
    place.executor.launch(launch)
    place.train(launch)
    assert next_end(events).end is End.SUCCEEDED
    place.executor.cancel(0)
    nothing_more(events)
