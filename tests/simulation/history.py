"""One history: a search from its manifest to its end, with everything that a seed lets happen on the way."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from unittest import mock

import structlog
from simulation.api_server import ApiServer, Client, Object, ours
from simulation.bucket import Bucket, BucketStore
from simulation.checker import Checker, Violation
from simulation.nodes import Nodes
from simulation.operator_process import Operator, is_controller
from simulation.queue import Queue
from simulation.scheduler import InlinePool, Process, Scheduler, Stuck
from simulation.scripts import EARLIER, Happening, Script, calm, script
from simulation.weather import Front, Weather

from nas_api import names
from nas_api.child import StoreLocation
from nas_controller import earlier
from nas_controller.controller import Controller
from nas_controller.machine import Machine
from nas_kube.errors import ApiError
from nas_kube.resources import EXPERIMENTS, JOBS, PODS
from nas_log import log
from nas_store import Store

NAMESPACE, NAME, UID = "default", "demo", "0123abcd-uid"
_LONGEST_SECONDS = 5 * 3600.0
"""After the last trouble a search has this long to come to its end."""
_AFTERWARDS_SECONDS = 900.0


@dataclass
class History:
    """What there is in one history, and what has happened so far."""

    seed: int
    script: Script
    events: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set everything up; nothing happens yet."""
        self.scheduler = Scheduler(random.Random(self.seed))
        self.weather = Weather(self.scheduler, list(self.script.fronts))
        self.server = ApiServer(self.scheduler)
        self.bucket = Bucket(self.scheduler)
        self.earlier = Bucket(self.scheduler)
        """Of the experiment that this one begins from."""
        self.nodes = Nodes(self.scheduler, self.server, self.bucket, self.weather, NAMESPACE, self.tell, self._fate)
        self.queue = Queue(self.scheduler, self.server, NAMESPACE, self.script.room, self.tell)
        self.controllers: dict[str, Process] = {}
        """By their pods' names."""
        self.effects = 0
        """Calls of controllers that have had their effect ..."""
        self.posts = 0
        """... and those of them that were to create a child."""
        self.woken: dict[Process, float] = {}
        """When controllers that stood still have woken up."""
        self._hung = 0
        self.operator = Process(self.scheduler, "operator")
        self.checker = Checker(self)
        self.nodes.begins = self.checker.training_begins
        self.server.listeners.append(self._changed)

    # ------------------------------------------------------------ running it

    def run(self) -> None:
        """Let it happen, and check it."""
        with _quiet(), _as_simulated(self.scheduler.chance), mock.patch.object(earlier, "open_store", self._beside):
            try:
                self._begin()
                limit = max(self.script.clears, self.weather.clears) + _LONGEST_SECONDS
                self.scheduler.run(limit, lambda: self.checker.over or bool(self.violations))
                if not self.violations and self.checker.over:
                    until = max(self.scheduler.now, self.script.clears) + _AFTERWARDS_SECONDS
                    self.scheduler.run(until, lambda: bool(self.violations))
                if not self.violations:
                    self.checker.at_the_end()
            except Stuck as error:
                self.violate("progress", str(error))
            finally:
                self.scheduler.close()

    def tell(self, event: str) -> None:
        """Write a line of the history."""
        self.events.append(f"{self.scheduler.now:9.2f}  {event}")

    def violate(self, rule: str, words: str) -> None:
        """Take note that something has happened that must not."""
        self.tell(f"VIOLATION {rule}: {words}")
        self.violations.append(Violation(rule, words))

    def _begin(self) -> None:
        self.server.create(EXPERIMENTS, NAMESPACE, manifest(self.script))
        self._start_operator()
        for happening in self.script.happenings:
            self.scheduler.at(happening.at, partial(self._happen, happening))
        for front in self.script.fronts:
            self.scheduler.at(front.start, partial(self.tell, str(front)))
        if self.script.earlier_at is not None:
            left = left_by_another()
            self.scheduler.at(self.script.earlier_at, lambda: self.earlier.objects.update(left))
        self.checker.look()

    def _start_operator(self) -> None:
        self.operator = process = Process(self.scheduler, "operator")
        client = Client(self.server, process, self.weather, lambda _: None, lambda *_: None)
        process.start("main", Operator(client, process, NAMESPACE, NAME).run)

    # ------------------------------------------------------------ controllers' pods

    def _changed(self, kind: str, item: Object) -> None:
        if item.get("kind") != "Pod" or not is_controller(item):
            return
        name = item["metadata"]["name"]
        if kind == "ADDED":
            self.scheduler.at(self.scheduler.chance.uniform(0.3, 5.0), lambda: self._start_controller(name))
        elif kind == "MODIFIED" and "deletionTimestamp" in item["metadata"]:
            self.scheduler.at(
                self.scheduler.chance.uniform(0.1, 2.0), lambda: self._end_controller(name, 143, gone=True)
            )

    def _start_controller(self, pod: str) -> None:
        found = self.server.find(PODS, NAMESPACE, pod)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return
        process = self.controllers[pod] = Process(self.scheduler, f"controller-{pod.rpartition('-')[2]}")
        client = Client(self.server, process, self.weather, self.tell, self._effect)
        machine = Machine(
            clock=process,
            pool=process.pool,
            jitter=self.scheduler.chance.uniform,
            store=lambda _: self._store(process),
            report=lambda store, experiment: nullcontext(),
            snapshot_every=self.script.snapshot_every,
        )
        controller = Controller(client, NAMESPACE, NAME, UID, "trainer", machine=machine)
        self.tell(f"{process.name} starts")
        self.checker.controller_started(process.name)

        def run() -> None:
            code = int(controller.run())
            self.checker.controller_ended(process.name, code)
            self._end_controller(pod, code)

        status = {"phase": "Running", "startTime": self.server.timestamp()}
        self.server.change(PODS, NAMESPACE, pod, status=status)
        process.start("main", run)

    def _store(self, process: Process) -> Store:
        return BucketStore(self.bucket, process, self.weather, self.tell, self._effect)

    def _beside(self, location: StoreLocation) -> Store:
        """Return another experiment's store, as whoever asks sees it."""
        assert location.s3 is not None and location.s3.prefix.endswith("/".join((NAMESPACE, *EARLIER, "")))
        process = self.scheduler.current().process
        return BucketStore(self.earlier, process, self.weather, self.tell, self._effect)

    def _end_controller(self, pod: str, code: int, *, gone: bool = False) -> None:
        """End a controller's process, and say so in its pod."""
        process = self.controllers.get(pod)
        if process is not None and not process.dead and not (gone and process.frozen):
            self.tell(f"{process.name} ends with code {code}")
            process.kill()
        if gone:
            self.server.remove(PODS, NAMESPACE, pod)
            return
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": self.server.timestamp()}
        container = {"name": names.CONTROLLER_CONTAINER, "state": {"terminated": ended}}
        phase = "Failed" if code else "Succeeded"
        self.server.change(PODS, NAMESPACE, pod, status={"phase": phase, "containerStatuses": [container]})

    def living(self) -> list[tuple[str, Process]]:
        """Return the controllers whose processes live, the newest last."""
        return [(pod, process) for pod, process in self.controllers.items() if not process.dead]

    def _effect(self, process: Process, call: str) -> None:
        """Count the calls of controllers, and let happen what a script has happen just after one of them."""
        self.effects += 1
        pod = next(pod for pod, each in self.controllers.items() if each is process)
        if self.effects in self.script.crashes:
            self.tell(f"{process.name} dies after its call")
            self._end_controller(pod, 137)
        elif (seconds := self.script.pauses.get(self.effects)) is not None:
            self.tell(f"{process.name} stands still after its call for {seconds:.0f} s")
            self._lose_node(pod, process, seconds)
        if call == "POST jobs":
            self.posts += 1
            if (seconds := self.script.gaps.get(self.posts)) is not None:
                self.tell(f"no watch for {seconds:.0f} s")
                now = self.scheduler.now
                self.weather.fronts.append(Front("api-watch", now, now + seconds, 1.0, "controller"))
                self.server.break_watches()

    # ------------------------------------------------------------ what happens

    def _happen(self, happening: Happening) -> None:
        chance = self.scheduler.chance
        match happening.kind:
            case "watches-break":
                self.server.break_watches()
            case "watches-fall-silent":
                self.server.break_watches(silently=True)
            case "compaction":
                self.server.break_watches()
                self.server.compact()
            case "controller-dies":
                self._with_controller(lambda pod, _: self._end_controller(pod, 137))
            case "controller-stands-still":
                self._with_controller(lambda pod, process: self._lose_node(pod, process, happening.seconds))
            case "controller-is-cut-off":
                self._with_controller(lambda pod, _: self.server.remove(PODS, NAMESPACE, pod))
            case "operator-restarts":
                self.operator.kill()
                self.scheduler.at(happening.seconds, self._start_operator)
            case "job-is-deleted":
                if jobs := self.jobs():
                    gone = chance.choice(jobs)["metadata"]["name"]
                    self.tell(f"somebody deletes Job {gone}")
                    self.server.delete(JOBS, NAMESPACE, gone)
                return
            case "spec":
                self.server.change(EXPERIMENTS, NAMESPACE, NAME, spec=happening.spec)
            case "image-is-corrected":
                trainer = {**experiment(self)["spec"]["trainer"], "image": "somewhere/trainer:2"}
                self.server.change(EXPERIMENTS, NAMESPACE, NAME, spec={"trainer": trainer})
            case "queue-stops":
                self.queue.stop(happening.seconds)
            case "queue-preempts":
                self.queue.preempt()
            case "log-is-cut":
                self._cut_log(happening)
            case "foreign-job":
                self._foreign(happening)
        self.tell(f"{happening}")

    def _with_controller(self, call: Callable[[str, Process], None]) -> None:
        living = [(pod, process) for pod, process in self.living() if not process.frozen]
        if living:
            call(*living[-1])

    def _lose_node(self, pod: str, process: Process, seconds: float) -> None:
        """Let a controller stand still on a node that is given up for lost, and come back."""
        process.stop()
        self.scheduler.at(min(20.0, seconds / 2), lambda: self.server.remove(PODS, NAMESPACE, pod))

        def wake() -> None:
            self.tell(f"{process.name} wakes up")
            self.woken[process] = self.scheduler.now
            process.go_on()

        self.scheduler.at(seconds, wake)

    def _cut_log(self, happening: Happening) -> None:
        """Take the last objects of the log away, or all, while no controller runs, and bring them back.

        The newest that the status has the digest of is among them: what came after it in the last seconds of a
        controller nobody knows of, and nobody is promised to notice that it is gone.
        """
        for pod, _ in self.living():
            self._end_controller(pod, 137)
        keys = self.bucket.list(names.LOG_PREFIX)
        known = (self.checker.status.get("log") or {}).get("sequence", -1) + 1
        keys = keys[max(0, known - happening.launch) :] if known else []
        cut = {key: self.bucket.objects.pop(key) for key in keys}

        def restore() -> None:
            for key, data in cut.items():
                if self.bucket.objects.setdefault(key, data) != data:
                    self.violate("a cut log is noticed", f"{key} was written anew")
            self.tell("the log is restored")

        self.scheduler.at(happening.seconds, restore)

    def _foreign(self, happening: Happening) -> None:
        """Make a Job that looks like a child of ours and is not."""
        chance, launch = self.scheduler.chance, happening.launch
        labels = {**names.labels(NAME, UID, names.ROLE_TRAINER), names.LABEL_LAUNCH: str(launch)}
        name = names.child_job(NAME, UID, launch) if happening.namesake else f"foreign-{launch}"
        body = {"kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"ready": 1}}
        try:
            made = self.server.create(JOBS, NAMESPACE, body)
        except ApiError:
            return
        self.checker.foreign.add(made["metadata"]["uid"])
        if not happening.namesake:
            ended = {"conditions": [{"type": chance.choice(("Complete", "Failed")), "status": "True"}]}
            after = chance.uniform(1.0, 200.0)
            self.scheduler.at(after, lambda: self.server.change(JOBS, NAMESPACE, name, status=ended))
        if happening.seconds:

            def end() -> None:
                self.checker.foreign.discard(made["metadata"]["uid"])
                self.server.remove(JOBS, NAMESPACE, name)

            self.scheduler.at(happening.seconds, end)

    def jobs(self) -> list[Object]:
        """Return the Jobs that are the experiment's."""
        return [job for job in self.server.items(JOBS.plural) if ours(job, UID)]

    def _fate(self) -> str:
        if self.scheduler.now > self.script.clears:
            return "trained"
        fate = self.scheduler.chance.choices(list(self.script.fates), list(self.script.fates.values()))[0]
        if fate in ("node-dies", "node-is-away"):
            self._hung += 1
            if self._hung > 2:
                return "trained"
        return fate


def manifest(chosen: Script) -> Object:
    """Return the experiment as it is made."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": UID},
        "spec": chosen.spec,
    }


def experiment(history: History) -> Object:
    """Return the experiment as it is."""
    return history.server.get(EXPERIMENTS, NAMESPACE, NAME)


@cache
def left_by_another() -> dict[str, bytes]:
    """Return what a calm history has left in its bucket."""
    history = History(0, calm())
    history.run()
    return dict(history.bucket.objects)


def simulate(seed: int, chosen: Script | None = None) -> History:
    """Return the history of a seed, run and checked."""
    history = History(seed, script(seed) if chosen is None else chosen)
    history.run()
    return history


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be logged: the history has its own words."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)


def _as_simulated(chance: random.Random) -> AbstractContextManager[Any]:
    """Let the log's reader use no threads, and its writers' names follow from the seed."""
    named = mock.Mock(side_effect=lambda: mock.Mock(hex=f"{chance.getrandbits(128):032x}"))
    return mock.patch.multiple(log, ThreadPoolExecutor=InlinePool, uuid4=named)
