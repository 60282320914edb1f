"""The real executor in virtual time: a clock whose threads take turns, and a model of the API server's Jobs and pods.

One test is one history: a thread runs until it waits, and time passes only when all of them do.
"""

import copy
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from controller.world import make_experiment

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_controller.executor import Ended, Event, Launch
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_kube.client import KubeClient, Listing
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.resources import EVENTS, JOBS, PODS, Resource

Object = dict[str, Any]


class _Turn(threading.Thread):
    """A thread that runs when it is its turn."""

    def __init__(self, clock: "TurnClock", name: str, run: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.clock, self.call = clock, run
        self.go = threading.Semaphore(0)
        self.due: float | None = 0.0
        self.ended = False

    def run(self) -> None:
        self.go.acquire()
        try:
            self.call()
        finally:
            self.ended = True
            self.clock.back.release()

    def join(self, timeout: float | None = None) -> None:
        """Let it come to its end, which it is about to."""
        while not self.ended and self.clock.settle():
            pass


class TurnClock:
    """See :class:`nas_kube.clock.Clock`. Everything but the test's own thread is started by it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.back = threading.Semaphore(0)
        self.activity = 0
        """Counts what threads do to each other, so that it is seen when all of them only wait."""
        self._turns: list[_Turn] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def monotonic(self) -> float:
        return self.time

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        thread = _Turn(self, name, run)
        self._turns.append(thread)
        thread.start()
        return thread

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        due = None if seconds is None else self.time + seconds
        thread = threading.current_thread()
        condition.release()
        try:
            if isinstance(thread, _Turn):
                thread.due = due
                self.back.release()
                thread.go.acquire()
            elif not self.settle():
                self._advance(math.inf if due is None else due)
        finally:
            condition.acquire()

    def sleep(self, seconds: float) -> None:
        """Wait in a thread of this clock."""
        end, condition = self.time + seconds, threading.Condition()
        with condition:
            while self.time < end:
                self.wait(condition, end - self.time)

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Have something happen so many seconds from now."""

        def happen() -> None:
            self.sleep(seconds)
            self.activity += 1
            call()

        self.start("happening", happen)

    def run(self, seconds: float) -> None:
        """Let so many seconds pass, and all that is due in them happen."""
        end = self.time + seconds
        while self.time < end:
            self.settle()
            self._advance(end)
        self.settle()

    def settle(self) -> bool:
        """Let all threads run until they wait; return whether any of them did something."""
        did = False
        while True:
            before = self._sign()
            for thread in list(self._turns):
                if not thread.ended:
                    thread.go.release()
                    self.back.acquire()
            self._turns = [thread for thread in self._turns if not thread.ended]
            if self._sign() == before:
                return did
            did = True

    def _advance(self, until: float) -> None:
        due = min([until, *(thread.due for thread in self._turns if thread.due is not None)])
        assert due < math.inf, "it would wait for ever"
        # What is due is due a moment later, whatever was lost in rounding.
        self.time = max(due, math.nextafter(self.time, math.inf))
        self.settle()

    def _sign(self) -> tuple[object, ...]:
        return self.activity, *((id(thread), thread.due) for thread in self._turns)


class TurnPool(Executor):
    """A pool of threads of a clock: each call has one of its own."""

    def __init__(self, clock: TurnClock) -> None:
        self._clock = clock
        self._closed = False

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call(*arguments, **named))
            except BaseException as error:  # noqa: BLE001  As a pool does.
                future.set_exception(error)

        self._clock.start("call", run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True


class _Watch:
    """See :class:`nas_kube.client.Stream`."""

    def __init__(self, api: "ApiModel", version: int, seconds: float, silence: float) -> None:
        self._api, self._version, self._end, self._silence = api, version, api.clock.time + seconds, silence
        self._condition = threading.Condition()
        self._closed = False
        self.deaf = False

    def __iter__(self) -> Iterator[bytes]:
        clock, heard = self._api.clock, self._api.clock.time
        while not self._closed:
            news = [] if self.deaf else [each for each in self._api.history if each[0] > self._version]
            for version, kind, item in news:
                self._version, heard = version, clock.time
                yield json.dumps({"type": kind, "object": item}).encode()
            if news:
                continue
            if clock.time >= self._end and not self.deaf:
                return
            if clock.time >= heard + self._silence:
                raise ApiUnavailable("the stream broke: Read timed out.")
            if self._api.cut > self._version:
                raise ApiUnavailable("the stream broke: connection reset")
            with self._condition:
                ends = [heard + self._silence] if self.deaf else [heard + self._silence, self._end]
                clock.wait(self._condition, max(0.0, min(ends) - clock.time))

    def close(self) -> None:
        self._closed = True
        self._api.clock.activity += 1


class ApiModel:
    """Jobs and pods, as the executor's client sees them: see :class:`nas_kube.client.KubeClient`."""

    def __init__(self, clock: TurnClock) -> None:
        self.clock = clock
        self.jobs: dict[str, Object] = {}
        self.pods: list[Object] = []
        self.history: list[tuple[int, str, Object]] = []
        self.version = 1
        self.cut = 0
        """Watches that began at a version below are broken."""
        self.expired = 0
        """Versions below are too old to go on from."""
        self._watches: list[_Watch] = []
        self.fault: Callable[[str, str], None] = lambda call, name: None
        """Called before (``POST``) and after (``POST!``) each call with the object's name; may raise, or sleep."""
        self.calls: list[tuple[float, str, str]] = []
        self.created: list[int] = []
        """Launches whose Job was made, in order."""

    # ------------------------------------------------------------ the client

    def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        assert resource is JOBS
        name = body["metadata"]["name"]
        self._call("POST", name)
        if name in self.jobs:
            raise ApiError(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        made = copy.deepcopy(body)
        self.version += 1
        made["metadata"] |= {"uid": f"uid-{self.version}", "creationTimestamp": self.clock.now().isoformat()}
        made["status"] = {}
        self.jobs[name] = made
        self.created.append(_number(made))
        self._changed("ADDED", made)
        self._answered("POST", name)
        return copy.deepcopy(made)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        self._call("GET", name)
        if name not in self.jobs:
            raise ApiError(404, "NotFound", name)
        self._answered("GET", name)
        return copy.deepcopy(self.jobs[name])

    def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listing:
        self._call("LIST", resource.plural)
        found = {JOBS: list(self.jobs.values()), PODS: self.pods, EVENTS: []}[resource]
        items = copy.deepcopy([item for item in found if _selected(item, label_selector)])
        version = str(self.version)
        self._answered("LIST", resource.plural)
        return Listing(items, version)

    def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        self._call("DELETE", name)
        job = self.jobs.get(name)
        there = job is not None and uid in (None, job["metadata"]["uid"])
        if there:
            self.remove(name)
        self._answered("DELETE", name)
        return there

    def stream(self, path: str, query: dict[str, str], *, silence_seconds: float) -> _Watch:
        self._call("WATCH", path)
        version = int(query["resourceVersion"])
        if version < self.expired:
            raise ApiError(410, "Expired", "too old resource version")
        watch = _Watch(self, version, float(query["timeoutSeconds"]), silence_seconds)
        self._watches.append(watch)
        return watch

    def _call(self, call: str, name: str) -> None:
        self.calls.append((self.clock.time, call, name))
        self.clock.activity += 1
        self.fault(call, name)

    def _answered(self, call: str, name: str) -> None:
        self.fault(f"{call}!", name)

    def _changed(self, kind: str, job: Object) -> None:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, copy.deepcopy(job)))
        self.clock.activity += 1

    # ------------------------------------------------------------ the cluster

    def gap(self) -> None:
        """Break all watches, and forget what has happened: only a list tells how things stand."""
        self.version += 1
        self.cut = self.expired = self.version
        self.clock.activity += 1

    def half_open(self) -> None:
        """Let watches that are open say nothing any more, and not end either."""
        for watch in self._watches:
            watch.deaf = True

    def job(self, launch: int) -> Object | None:
        return next((job for job in self.jobs.values() if _number(job) == launch), None)

    @property
    def running(self) -> set[int]:
        """Launches whose Job has not ended."""
        return {_number(job) for job in self.jobs.values() if not (job["status"].get("conditions"))}

    def update(self, launch: int, *, suspend: bool | None = None, **status: Any) -> None:
        """Change a Job's status as its controller would, or whether it is suspended."""
        job = self.job(launch)
        assert job is not None
        job["status"] |= status
        if suspend is not None:
            job["spec"]["suspend"] = suspend
        self._changed("MODIFIED", job)

    def succeed(self, launch: int) -> None:
        self.update(launch, conditions=[{"type": "Complete", "status": "True"}])

    def fail(self, launch: int, reason: str = "BackoffLimitExceeded", message: str = "it has") -> None:
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        self.update(launch, conditions=[condition])

    def pod(self, launch: int, code: int | None = None, **status: Any) -> Object:
        """Make a Job's pod, which runs, or has ended with an exit code."""
        job = self.job(launch)
        assert job is not None
        template = job["spec"]["template"]
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "message": "last words"}}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        pod = {
            "metadata": {
                "name": f"{job['metadata']['name']}-pod",
                **copy.deepcopy(template["metadata"]),
                "creationTimestamp": self.clock.now().isoformat(),
                "ownerReferences": [
                    {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
                ],
            },
            "spec": {**template["spec"], "nodeName": "worker-1"},
            "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}], **status},
        }
        self.pods.append(pod)
        return pod

    def remove(self, name: str) -> None:
        """Remove a Job, as its time to live, or anybody, does. Its pods are for the test to end."""
        self._changed("DELETED", self.jobs.pop(name))

    def name(self, launch: int) -> str:
        return names.child_job("demo", "0123456789ab", launch)

    def posts(self) -> Sequence[float]:
        """Return when a Job was posted."""
        return [at for at, call, _ in self.calls if call == "POST"]


class Bench:
    """An executor on a model, and what it has told."""

    def __init__(self, api: ApiModel | None = None, clock: TurnClock | None = None, **spec: Any) -> None:
        self.clock = clock or TurnClock()
        self.api = api or ApiModel(self.clock)
        self.experiment: NASExperiment = make_experiment(**spec)
        self.events: list[Event] = []

    def executor(self, **more: Any) -> KubernetesExecutor:
        """Return one that has started."""
        executor = KubernetesExecutor(
            cast(KubeClient, self.api),
            self.experiment,
            "trainer:test",
            TurnPool(self.clock),
            clock=self.clock,
            jitter=lambda _, longest: longest,
            **more,
        )
        self.existing = executor.start(self._post)
        return executor

    def _post(self, event: Event) -> None:
        self.clock.activity += 1
        self.events.append(event)

    def child(self, launch: int, sample: int | None = None, attempt: int = 1) -> Launch:
        sample = launch if sample is None else sample
        space = search_space(self.experiment.spec.search_space)
        architecture = space.decode((0,) * len(space.decisions(sample)))
        asked = trainer_input(self.experiment, StoreLocation(folder="/store"), sample, attempt, architecture)
        return Launch(launch, (asked,))

    @property
    def ends(self) -> "list[Ended]":
        return [event for event in self.events if isinstance(event, Ended)]


def once(error: Exception, call: str, times: int = 1) -> Callable[[str, str], None]:
    """Return a fault: a call's first tries fail."""
    left = itertools.count(times, -1)

    def fault(called: str, name: str) -> None:
        if called == call and next(left) > 0:
            raise error

    return fault


def _number(job: Object) -> int:
    return int(job["metadata"]["labels"][names.LABEL_LAUNCH])


def _selected(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    for term in filter(None, _terms(selector)):
        if " in (" in term:
            key, _, values = term.partition(" in (")
            if labels.get(key) not in values.rstrip(")").split(","):
                return False
        else:
            key, _, value = term.partition("=")
            if labels.get(key) != value:
                return False
    return True


def _terms(selector: str) -> Iterator[str]:
    depth, start = 0, 0
    for place, letter in enumerate(selector):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            yield selector[start:place]
            start = place + 1
    yield selector[start:]
