"""A controller that says what it has cost so far: the real one, in a process of its own, with counters around it.

It is started by ``fake_cluster.ControllerProcess`` with the environment of ``nas_controller.main`` and the number of
observed samples between two reports. A report is a JSON line on standard output: when it is (monotonic seconds of the
machine), what was observed, CPU seconds of the process and of the policy in it, what is resident, calls of the API.
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import structlog
import torch

from nas_api.experiment import Problem, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.controller import Controller
from nas_controller.instruments import Instruments, ProblemSink
from nas_controller.policies import Policy
from nas_controller.state import MakePolicy
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient

_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class CountingClient(KubeClient):
    """Counts requests by method and resource; a watch is one, and so is each page of a list."""

    def __init__(self, configuration: Any, *, requests: Counter[str], **options: Any) -> None:
        """Use a ``kubernetes.client.Configuration`` and count in ``requests``; ``options`` are KubeClient's."""
        super().__init__(configuration, **options)
        self._requests = requests

    def _send(self, method: str, path: str, *rest: Any, **options: Any) -> Any:
        self._requests[f"{method} {resource_of(path)}"] += 1
        return super()._send(method, path, *rest, **options)


def resource_of(path: str) -> str:
    """Return what a path of the API is about, such as ``jobs`` or ``nasexperiments/status``: no names of objects."""
    words = path.strip("/").split("/")
    # api/VERSION or apis/GROUP/VERSION, then perhaps namespaces/NAME.
    words = words[2:] if words[0] == "api" else words[3:]
    if words[0] == "namespaces" and len(words) > 2:
        words = words[2:]
    return "/".join((words[0], *words[2:]))


class Counted(Instruments):
    """Adds up the policy's CPU time, and reports as samples are observed."""

    def __init__(self, every: int, requests: Counter[str]) -> None:
        """Report at every so many observed samples, these calls of the API among it."""
        self._every = every
        self._requests = requests
        self._policy_seconds = 0.0
        self._observed = 0
        self._due: int | None = None

    def policy(self, make_policy: MakePolicy) -> MakePolicy:
        """See :class:`nas_controller.instruments.Instruments`."""
        return lambda searcher, space: self._timed(make_policy, searcher, space)

    def sink(self, sink: ProblemSink) -> ProblemSink:
        """See :class:`nas_controller.instruments.Instruments`."""
        return _Watched(sink, self._saw)

    def report(self) -> None:
        """Print what it has cost so far."""
        resident = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * _PAGE_MIB
        costs = {
            "at": time.monotonic(),
            "observed": self._observed,
            "cpu_seconds": time.process_time(),
            "policy_seconds": self._policy_seconds,
            "resident_mib": round(resident, 1),
            "api": dict(self._requests),
        }
        print(json.dumps(costs), flush=True)

    def _timed(self, make_policy: MakePolicy, searcher: SearcherSpec, space: SearchSpace) -> Policy:
        return cast("Policy", _Timed(make_policy(searcher, space), self._spent))

    def _spent(self, seconds: float) -> None:
        self._policy_seconds += seconds

    def _saw(self, status: SearchStatus) -> None:
        if status.samples is not None:
            self._observed = status.samples.observed
        if self._due is None:
            # The search begins: what came before was the interpreter's start, and the way back up.
            self.report()
            self._due = (self._observed // self._every + 1) * self._every
        elif self._observed >= self._due:
            self.report()
            self._due += self._every


class _Timed:
    """A policy whose every method tells the CPU time of its thread."""

    def __init__(self, policy: Policy, spent: Callable[[float], None]) -> None:
        self._policy = policy
        self._spent = spent

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._policy, name)

        def timed(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*arguments)
            finally:
                self._spent(time.thread_time() - began)

        return timed


class _Watched:
    """A sink that shows each status to somebody else, too."""

    def __init__(self, sink: ProblemSink, saw: Callable[[SearchStatus], None]) -> None:
        self._sink = sink
        self._saw = saw

    def publish(self, status: SearchStatus) -> None:
        self._saw(status)
        self._sink.publish(status)

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        print(f"{problem.reason}: {problem.message}", file=sys.stderr)
        self._sink.publish_problem(problem, rests=rests)


def main() -> int:
    """Run the controller that the environment describes; return its exit code."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # As nas_controller.main has it.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    requests: Counter[str] = Counter()
    client = CountingClient.from_environment(requests=requests, user_agent="nas-controller")
    counted = Counted(int(sys.argv[1]), requests)
    namespace, name, uid, image = (
        os.environ[key] for key in ("NAS_NAMESPACE", "NAS_EXPERIMENT", "NAS_UID", "NAS_TRAINER_IMAGE")
    )
    code = Controller(client, namespace, name, uid, image, counted).run()
    counted.report()
    return code


if __name__ == "__main__":
    sys.exit(main())
