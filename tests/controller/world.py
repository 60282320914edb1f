"""A world for the search to live in: children, time and accidents, deterministic and in one thread.

What outlives a controller (the jobs and the store) is in ``World``; each controller process gets its own
``WorldExecutor``. Time passes only when the search waits and nothing else can happen.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import MAX_RESULT_BYTES, Result, TrainerInput
from nas_api.decisions import Anchor
from nas_api.experiment import NASExperiment, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.stopping import Rung, Stopped
from nas_controller.executor import End, Ended, Event, Launch, Running
from nas_controller.policies import Proposal, Vitals
from nas_controller.status import SearchStatus
from nas_log.records import Launched, Record
from nas_store import Store
from nas_store.errors import StoreUnreachable, TooLarge

P = ParamSpec("P")
T = TypeVar("T")


class Killed(BaseException):
    """The controller's process dies here: no handler of it may run, so nothing but tests catches this."""


def make_experiment(**spec: Any) -> NASExperiment:
    """Return a valid experiment; keyword arguments are fields of the spec, in camelCase."""
    return NASExperiment.model_validate(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "demo", "namespace": "default", "uid": "0123456789ab", "generation": 1},
            "spec": {
                "searchSpace": {
                    "convolutional": {
                        "layers": {"initial": 2},
                        "filterHeights": [1, 3],
                        "filterWidths": [1, 3],
                        "filters": [4, 8],
                    }
                },
                # The space is small: architectures come again and again.
                "searcher": {"seed": 7, "random": {}, "duplicates": "Train"},
                "parallelism": 3,
                "budget": {"samples": 10},
                "trainer": {"dataset": {"digits": {}}, "epochs": 1},
                "storage": {"s3": {"bucket": "bucket"}},
                **spec,
            },
        }
    )


def accuracy(architecture: Architecture) -> float:
    """Return what training an architecture gives in this world."""
    assert isinstance(architecture, ConvolutionalArchitecture)
    return sum(layer.filters for layer in architecture.layers) / (8 * len(architecture.layers))


def learning_curve(asked: TrainerInput) -> tuple[float, ...]:
    """Return the accuracies of a child that learns all the time, different for each architecture and training."""
    worth = (int(asked.architecture.digest[:8], 16) / 16**8 + asked.seed % 101 / 1000) / 1.1
    return tuple(worth * epoch / asked.epochs for epoch in range(1, asked.epochs + 1))


class CountingPolicy:
    """A policy whose state depends on the order of everything it is told: any slip of replay shows."""

    def __init__(self, searcher: SearcherSpec, space: SearchSpace) -> None:
        self._space = space
        self._state = torch.tensor([float(searcher.seed), 0.1, 0.0], dtype=torch.float64)

    def propose(self, sample: int) -> Proposal:
        """Draw from the state, so that proposals depend on what was learnt."""
        digit = int(self._state.abs().sum().item() * 1e6) + sample
        choices = [
            digit % (2**each.index if isinstance(each, Anchor) else len(each.options))
            for each in self._space.decisions(sample)
        ]
        return Proposal(tuple(choices), -float(self._state[1]), int(self._state[2]))

    def proposed(self, sample: int, proposal: Proposal) -> None:
        drawn_here = not math.isnan(proposal.log_probability)
        self._fold(1.0 + sample + sum(proposal.choices) + (proposal.log_probability if drawn_here else 0.0))

    def observed(self, sample: int, reward: float) -> None:
        self._fold(2.0 + sample + reward)
        self._state[2] += 1

    def lost(self, sample: int) -> None:
        self._fold(3.0 + sample)

    def vitals(self) -> Vitals:
        return Vitals(updates=int(self._state[2]), entropy=None)

    def dump(self) -> dict[str, Tensor]:
        return {"state": self._state.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        if state["state"].shape != self._state.shape:
            raise ValueError("another policy's state")
        self._state = state["state"].clone()

    def _fold(self, value: float) -> None:
        self._state[0] = torch.sin(self._state[0] * 1.7 + value)
        self._state[1] = torch.cos(self._state[1] * 0.3 + self._state[0])


@dataclass
class Job:
    """A launch in the world, of one child or several."""

    inputs: tuple[TrainerInput, ...]
    running: bool = True
    end: End = End.SUCCEEDED
    message: str = ""


@dataclass
class World:
    """Jobs, the store and time. ``fates`` decides how each job ends, in the order in which they do."""

    store: Store
    fates: Iterator[str]
    picks: Iterator[int]
    jobs: dict[int, Job] = field(default_factory=dict)
    created: list[int] = field(default_factory=list)
    """Launches for which a job was created, in order; one that is here twice was gone in between."""
    cancelled: list[int] = field(default_factory=list)
    gone: Counter[int] = field(default_factory=Counter)
    """How often each launch's job was removed by anybody but us."""
    seconds: float = 0.0
    post: Callable[[Event], None] | None = None
    """The living controller's inbox."""
    fault: Callable[[str], None] = lambda _: None
    """Called before (``name``) and after (``name!``) each call of a port; may raise."""
    waits: int = 0
    accuracy: Callable[[TrainerInput], float] = lambda asked: accuracy(asked.architecture)
    """What each trained child reports as its metric."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What every trained child reports beside its accuracy."""
    curve: Callable[[TrainerInput], tuple[float, ...]] = lambda _: ()
    """What each trained child has after each epoch; where there is any, the last is what it reports as its metric."""

    def records(self) -> list[Record]:
        """Return the log, read without faults."""
        from nas_log.log import read_log

        return read_log(self.store)

    def progress(self) -> bool:
        """Let one running job end as its fate says; return whether there was one."""
        running = [number for number, job in self.jobs.items() if job.running]
        if not running:
            return False
        number = running[next(self.picks) % len(running)]
        self.end(number, next(self.fates))
        return True

    def end(self, number: int, fate: str) -> None:
        """End a job: ``result``, ``result-then-killed``, ``diverged``, ``malformed``, or the name of an End.

        ``some`` leaves the result of every second child, and ends as an unforeseen error does; ``progressed`` comes to
        the deadline and leaves a checkpoint.
        """
        job = self.jobs[number]
        job.running = False
        for place, asked in enumerate(job.inputs):
            if fate == "some" and place % 2 == 0:
                self._leave(asked, "result")
            elif fate != "some":
                self._leave(asked, fate)
        if fate in ("some", "result-then-killed"):
            job.end = End.FAILED
        elif fate == "progressed":
            job.end = End.DEADLINE_EXCEEDED
        elif fate in {end.value for end in End}:
            job.end, job.message = End(fate), f"the trainer's words about {fate}"
        else:
            job.end = End.SUCCEEDED
        if job.end is End.VANISHED:
            del self.jobs[number]
            self.gone[number] += 1
        self._say(Ended(number, job.end, job.message))

    def _leave(self, asked: TrainerInput, fate: str) -> None:
        """Write what a child with this fate leaves in the store, if anything."""
        if fate in ("result", "result-then-killed", "diverged"):
            diverged = fate == "diverged"
            history, stopped = self._trained(asked)
            metric = history[-1] if history else self.accuracy(asked)
            result = Result(
                sample=asked.sample,
                attempt=asked.attempt,
                architecture=asked.architecture.digest,
                status="Diverged" if diverged else "Trained",
                metrics={} if diverged else {asked.metric: metric, **self.metrics},
                history=history,
                stopped=stopped,
                parameters=1000 * len(getattr(asked.architecture, "layers", "1")),
            )
            self.store.put_if_absent(names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode())
            if asked.final is not None and asked.final.test:
                self.store.put(names.preprocessing_key(asked.sample), b"preprocessing")
                self.store.put(names.training_key(asked.sample), b'{"batchSize": 7}')
                self.store.put(names.weights_key(asked.sample), b"weights")
                self.store.put(names.onnx_key(asked.sample), b"onnx")
        elif fate == "progressed":
            self.store.put(names.checkpoint_key(asked.sample, asked.attempt), b"checkpoint")
        elif fate == "too-large":
            self.store.put_if_absent(names.result_key(asked.sample), b" " * (MAX_RESULT_BYTES + 1))
        elif fate == "malformed":
            self.store.put_if_absent(names.result_key(asked.sample), b'{"metrics": "no"')

    def _trained(self, asked: TrainerInput) -> tuple[tuple[float, ...], Stopped | None]:
        """Return how far a child comes, as a trainer decides it."""
        history, rule = self.curve(asked), asked.stop
        if rule is None or not rule.ends(Rung.of(history, rule.epoch, rule.goal)):
            return history, None
        return history[: rule.epoch], Stopped(epoch=rule.epoch, of=asked.epochs)

    def expire(self) -> None:
        """Remove jobs that have ended, as their time to live does."""
        ended = [number for number, job in self.jobs.items() if not job.running]
        for number in ended:
            del self.jobs[number]
            self.gone[number] += 1

    def _say(self, event: Event) -> None:
        if self.post is not None:
            self.post(event)


class WorldExecutor:
    """See :class:`nas_controller.executor.Executor`."""

    def __init__(self, world: World, *, starts: bool = True) -> None:
        self._world = world
        self._starts = starts

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        self._world.fault("start")
        self._world.post = post
        for number, job in self._world.jobs.items():
            if not job.running:
                post(Ended(number, job.end, job.message))
        self._world.fault("start!")
        return frozenset(self._world.jobs)

    def launch(self, launch: Launch) -> None:
        world = self._world
        world.fault("launch")
        intended = {record.launch: record for record in world.records() if isinstance(record, Launched)}
        assert launch.number in intended, f"launch {launch.number} was not in the log before it was created"
        for asked in launch.inputs:
            assert asked.stop in (None, intended[launch.number].stop), "the log says another rule"
            trained = world.store.get(names.result_key(asked.sample))
            assert trained is None, f"sample {asked.sample} has a result and is trained again"
        if launch.number not in world.jobs:
            running = {each.sample for job in world.jobs.values() if job.running for each in job.inputs}
            twins = running & {asked.sample for asked in launch.inputs}
            assert not twins, f"samples {twins} are being trained twice at once"
            world.jobs[launch.number] = Job(launch.inputs)
            world.created.append(launch.number)
        if self._starts and world.post is not None:
            world.post(Running(launch.number))
        world.fault("launch!")

    def cancel(self, launch: int) -> None:
        self._world.fault("cancel")
        self._world.cancelled.append(launch)
        self._world.jobs.pop(launch, None)
        self._world.fault("cancel!")

    def images(self, sample: int) -> dict[str, str]:
        return {"trainer": f"sha256:image of {sample}"}

    def close(self) -> None:
        self._world.post = None


class WorldClock:
    """Virtual time; waiting lets the world go on."""

    def __init__(self, world: World, on_idle: Callable[[], None] = lambda: None) -> None:
        self._world = world
        self._on_idle = on_idle

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._world.seconds)

    def monotonic(self) -> float:
        return self._world.seconds

    def get(self, queue: SimpleQueue[T], seconds: float | None) -> T:
        self._world.fault("wait")
        self._world.waits += 1
        assert self._world.waits < 20_000, "the search is spinning"
        try:
            return queue.get_nowait()
        except Empty:
            pass
        if seconds == 0.0:
            raise Empty
        if not self._world.progress():
            self._on_idle()
            if seconds is None and queue.empty():
                raise AssertionError("the search waits for ever")
            self._world.seconds += seconds or 0.0
        return queue.get_nowait()


class FaultyStore:
    """The store with the world's faults around every call; an answer can get lost after the effect."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lose_answers: Iterator[bool] = iter(())

    def _call(self, name: str, call: Callable[[], T]) -> T:
        self._world.fault(name)
        answer = call()
        self._world.fault(f"{name}!")
        if next(self.lose_answers, False):
            raise StoreUnreachable(f"the answer to {name} got lost")
        return answer

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        return self._call("get", lambda: self._world.store.get(key, limit=limit))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._call("put_if_absent", lambda: self._world.store.put_if_absent(key, data))

    def put(self, key: str, data: bytes) -> None:
        self._call("put", lambda: self._world.store.put(key, data))

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        return self._call("put", lambda: self._world.store.replace(key, data, allowed))

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        return self._call("copy", lambda: self._world.store.copy(source, target, limit=limit))

    def digest(self, key: str, *, limit: int) -> str | None:
        return self._call("digest", lambda: self._world.store.digest(key, limit=limit))

    def list(self, prefix: str) -> list[str]:
        return self._call("list", lambda: self._world.store.list(prefix))

    def uri(self, key: str) -> str:
        return self._world.store.uri(key)

    def probe(self) -> None:
        self._world.store.probe()


class MemoryStore:
    """A dictionary as a store, for tests that make thousands of calls; the contract suite tests the real ones."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        data = self.objects.get(key)
        if data is not None and limit is not None and len(data) > limit:
            raise TooLarge(f"{key} has {len(data)} bytes, more than {limit}")
        return data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        if not allowed():
            return False
        self.put(key, data)
        return True

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        data = self.get(source, limit=limit)
        if data is not None:
            self.put(target, data)
        return data is not None

    def digest(self, key: str, *, limit: int) -> str | None:
        data = self.get(key, limit=limit)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def uri(self, key: str) -> str:
        return f"memory:{key}"

    def probe(self) -> None:
        pass


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.statuses: list[SearchStatus] = []

    def publish(self, status: SearchStatus) -> None:
        self.statuses.append(status)

    @property
    def last(self) -> SearchStatus:
        return self.statuses[-1]


class InlinePool(Executor):
    """Stands for the pool of threads that fetches results: everything happens in the caller's thread."""

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except BaseException as error:  # noqa: BLE001  As a pool does.
            future.set_exception(error)
        return future
