"""What a controller has of its machine: time, threads, chance and a store's client. A simulation hands in others."""

import random
from collections.abc import Callable
from concurrent import futures
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment
from nas_controller import clock
from nas_kube import clock as kube_clock
from nas_report.writer import ReportWriter
from nas_store import Store, open_store

_CALLS_AT_ONCE = 8


class Clock(clock.Clock, kube_clock.Clock, Protocol):
    """The time of the search and of the threads beside it."""


def _pool(name: str) -> futures.Executor:
    return futures.ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix=name)


@dataclass(frozen=True)
class Machine:
    """The machine's own, unless it is told otherwise."""

    clock: Clock = clock.SYSTEM_CLOCK
    pool: Callable[[str], futures.Executor] = _pool
    """Makes the threads for calls of a kind, which it is told; whoever gets them shuts them down."""
    jitter: Callable[[float, float], float] = random.uniform
    """Draws a pause between two bounds."""
    store: Callable[[StoreLocation], Store] = open_store
    report: Callable[[Store, Callable[[], NASExperiment]], AbstractContextManager[object]] = ReportWriter
    """Keeps the report current while a search goes on, see :class:`nas_report.writer.ReportWriter`."""
    snapshot_every: int = 200
    """Records between two snapshots of the learner."""
