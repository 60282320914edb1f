"""Around each part of a search one that counts and times it, and does nothing else: the instruments of ``metrics``."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

from torch import Tensor

from nas_api import names
from nas_api.experiment import NASExperiment, Problem, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.executor import Admitted, Blocked, Ended, Event, Launch, Outdated, Queued, Running
from nas_controller.instruments import ChangingExecutor, Instruments, ProblemSink
from nas_controller.metrics import CANCELLED, Metrics
from nas_controller.policies import Policy, Proposal, Vitals
from nas_controller.state import MakePolicy
from nas_controller.status import SearchStatus
from nas_kube.clock import SYSTEM_CLOCK, Clock
from nas_store import Store
from nas_store.errors import StoreError, TooLarge

_T = TypeVar("_T")


class MeteredInstruments(Instruments):
    """Instruments that tell metrics."""

    def __init__(self, metrics: Metrics, clock: Clock = SYSTEM_CLOCK) -> None:
        """Tell these metrics; ``clock`` measures what children wait."""
        self._metrics = metrics
        self._clock = clock

    def store(self, store: Store) -> Store:
        """See :class:`nas_controller.instruments.Instruments`."""
        return MeteredStore(store, self._metrics)

    def executor(self, executor: ChangingExecutor, experiment: NASExperiment) -> ChangingExecutor:
        """See :class:`nas_controller.instruments.Instruments`."""
        return MeteredExecutor(executor, experiment, self._metrics, self._clock)

    def policy(self, make_policy: MakePolicy) -> MakePolicy:
        """See :class:`nas_controller.instruments.Instruments`."""

        def make(searcher: SearcherSpec, space: SearchSpace) -> Policy:
            return MeteredPolicy(make_policy(searcher, space), self._metrics)

        return make

    def sink(self, sink: ProblemSink) -> ProblemSink:
        """See :class:`nas_controller.instruments.Instruments`."""
        return MeteredSink(sink, self._metrics)


class MeteredStore:
    """See :class:`nas_store.Store`."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """See :class:`nas_store.Store`."""
        return self._timed("get", lambda: self._store.get(key, limit=limit))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`nas_store.Store`."""
        if not key.startswith(names.LOG_PREFIX):
            return self._put_if_absent(key, data)
        with self._metrics.append_seconds.time():
            stored = self._put_if_absent(key, data)
        if stored:
            sequence = int(key.removeprefix(names.LOG_PREFIX).removesuffix(".json"))
            self._metrics.log_objects.set(sequence + 1)
            self._metrics.log_bytes.inc(len(data))
        return stored

    def put(self, key: str, data: bytes) -> None:
        """See :class:`nas_store.Store`."""
        self._timed("put", lambda: self._store.put(key, data))

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """See :class:`nas_store.Store`."""
        return self._timed("put", lambda: self._store.replace(key, data, allowed))

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """See :class:`nas_store.Store`."""
        return self._timed("copy", lambda: self._store.copy(source, target, limit=limit))

    def digest(self, key: str, *, limit: int) -> str | None:
        """See :class:`nas_store.Store`."""
        return self._timed("get", lambda: self._store.digest(key, limit=limit))

    def list(self, prefix: str) -> list[str]:
        """See :class:`nas_store.Store`."""
        return self._timed("list", lambda: self._store.list(prefix))

    def uri(self, key: str) -> str:
        """See :class:`nas_store.Store`."""
        return self._store.uri(key)

    def probe(self) -> None:
        """See :class:`nas_store.Store`."""
        self._timed("probe", self._store.probe)

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        return self._timed(
            "put_if_absent", lambda: self._store.put_if_absent(key, data), lambda stored: "ok" if stored else "exists"
        )

    def _timed(self, operation: str, call: Callable[[], _T], outcome: Callable[[_T], str] = lambda _: "ok") -> _T:
        metrics = self._metrics
        try:
            with metrics.store_seconds.labels(operation).time():
                answer = call()
        except TooLarge:
            # An answer like any other.
            self._answered(operation, "ok")
            raise
        except StoreError as error:
            metrics.store_requests.labels(operation, error.reason.value).inc()
            metrics.store_up.set(0)
            raise
        self._answered(operation, outcome(answer))
        return answer

    def _answered(self, operation: str, outcome: str) -> None:
        self._metrics.store_requests.labels(operation, outcome).inc()
        self._metrics.store_up.set(1)


@dataclass
class _Out:
    """A launch that has not ended."""

    children: int
    since: float | None
    """When it was launched; None once its wait is known, or for one of an earlier process."""
    state: str = "pending"
    reason: str = ""


class MeteredExecutor:
    """See :class:`nas_controller.executor.Executor`.

    Of a launch that an earlier controller made, it is not known how many children it has: as many as the manifest lets
    share a pod.
    """

    def __init__(self, executor: ChangingExecutor, experiment: NASExperiment, metrics: Metrics, clock: Clock) -> None:
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._out: dict[int, _Out] = {}
        self._found: set[int] | None = set()
        """Launches that were told of while the executor started; None: it has."""
        self._together = experiment.spec.trainer.children_per_pod
        self._count_slots(experiment)

    def change(self, experiment: NASExperiment) -> None:
        """See :class:`nas_controller.instruments.ChangingExecutor`."""
        self._count_slots(experiment)
        self._executor.change(experiment)

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`."""

        def told(event: Event) -> None:
            self._take(event)
            post(event)

        existing = self._executor.start(told)
        with self._lock:
            for launch in existing:
                self._find(launch)
            self._found = None
        return existing

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        children = len(launch.inputs)
        with self._lock:
            self._remove(launch.number)
            self._add(launch.number, _Out(children, self._clock.monotonic()))
        self._metrics.launched.inc(children)
        self._executor.launch(launch)

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        with self._lock:
            self._end(launch, CANCELLED)
        self._executor.cancel(launch)

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`."""
        return self._executor.images(sample)

    def close(self) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        self._executor.close()
        with self._lock:
            for launch in list(self._out):
                self._remove(launch)

    def _count_slots(self, experiment: NASExperiment) -> None:
        spec = experiment.spec
        self._metrics.slots.set(0 if spec.suspend else spec.parallelism)

    def _take(self, event: Event) -> None:
        with self._lock:
            self._find(event.launch)
            match event:
                case Ended():
                    self._end(event.launch, event.end.value)
                case Running():
                    self._move(event.launch, "running", "")
                case Blocked():
                    self._move(event.launch, "blocked", event.reason.value)
                case Queued():
                    self._move(event.launch, "queued", "")
                case Admitted():
                    self._move(event.launch, "pending", "")
                case Outdated():
                    # The search has it replaced, or it runs by now.
                    pass
                case unknown:
                    assert_never(unknown)

    def _find(self, launch: int) -> None:
        """Add a launch of an earlier process, once."""
        if self._found is not None and launch not in self._found:
            self._found.add(launch)
            self._add(launch, _Out(self._together, None))

    def _end(self, launch: int, end: str) -> None:
        out = self._remove(launch)
        if out is not None:
            self._metrics.ended.labels(end).inc(out.children)

    def _move(self, launch: int, state: str, reason: str) -> None:
        out = self._out.get(launch)
        if out is None:
            # Events cross each other: it may have ended, or been cancelled, before.
            return
        if state == "running" and out.since is not None:
            self._metrics.queue_seconds.observe(self._clock.monotonic() - out.since)
            out.since = None
        self._metrics.children.labels(out.state, out.reason).dec(out.children)
        out.state, out.reason = state, reason
        self._metrics.children.labels(state, reason).inc(out.children)

    def _add(self, launch: int, out: _Out) -> None:
        self._out[launch] = out
        self._metrics.children.labels(out.state, out.reason).inc(out.children)

    def _remove(self, launch: int) -> _Out | None:
        out = self._out.pop(launch, None)
        if out is not None:
            self._metrics.children.labels(out.state, out.reason).dec(out.children)
        return out


class MeteredPolicy:
    """See :class:`nas_controller.policies.Policy`."""

    def __init__(self, policy: Policy, metrics: Metrics) -> None:
        self._policy = policy
        self._metrics = metrics

    def propose(self, sample: int) -> Proposal:
        """See :class:`nas_controller.policies.Policy`."""
        return self._policy.propose(sample)

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`nas_controller.policies.Policy`."""
        self._policy.proposed(sample, proposal)

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`nas_controller.policies.Policy`."""
        with self._metrics.update_seconds.time():
            self._policy.observed(sample, reward)
        self._metrics.reward_last.set(reward)

    def lost(self, sample: int) -> None:
        """See :class:`nas_controller.policies.Policy`."""
        self._policy.lost(sample)

    def vitals(self) -> Vitals:
        """See :class:`nas_controller.policies.Policy`."""
        return self._policy.vitals()

    def dump(self) -> dict[str, Tensor]:
        """See :class:`nas_controller.policies.Policy`."""
        return self._policy.dump()

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`nas_controller.policies.Policy`."""
        self._policy.load(state)


class MeteredSink:
    """See :class:`nas_controller.instruments.ProblemSink`."""

    def __init__(self, sink: ProblemSink, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._problem: Problem | None = None

    def publish(self, status: SearchStatus) -> None:
        """See :class:`nas_controller.status.StatusSink`."""
        self._measure(status)
        self._note(status.problem)
        self._sink.publish(status)

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        """See :class:`nas_controller.instruments.ProblemSink`."""
        self._note(problem)
        self._sink.publish_problem(problem, rests=rests)

    def _measure(self, status: SearchStatus) -> None:
        metrics, counts, best, policy = self._metrics, status.samples, status.best, status.policy
        if counts is not None:
            metrics.budget.set(counts.budget)
            metrics.samples.labels("open").set(counts.proposed - counts.observed - counts.lost)
            metrics.samples.labels("observed").set(counts.observed)
            metrics.samples.labels("lost").set(counts.lost)
            metrics.diverged.set(counts.diverged)
            metrics.stopped.set(counts.stopped)
            metrics.reused.set(counts.reused)
            metrics.retried.set(counts.retried)
        if best is not None:
            metrics.best_reward.set(float(best.reward))
            metrics.best_metric.set(float(best.metric))
        if policy is not None and policy.mean_reward is not None:
            metrics.reward_mean.set(float(policy.mean_reward))
        if policy is not None and policy.entropy is not None:
            metrics.entropy.set(float(policy.entropy))

    def _note(self, problem: Problem | None) -> None:
        if self._problem is not None:
            self._metrics.problem.labels(self._problem.reason).set(0)
        if problem is not None:
            self._metrics.problem.labels(problem.reason).set(1)
        self._problem = problem
