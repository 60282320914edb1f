"""How long a killed controller's successor takes to its first new Job, with a log of so many samples behind it.

    .venv/bin/python bench/recovery.py --done 1000 3000 10000 --in-flight 800

The log is the product's own, with its snapshots, written by a real search whose children end as they are asked to; the
shorter ones are its beginnings. It is put into a real S3. On kwok's fake nodes a controller goes on with it until all
slots are taken and children end; it is killed (SIGKILL), and a second later the next process is started, as a new pod
would. Seconds count from that start, so an interpreter and its imports are among them; the pod's own start is not.

Prints a JSON line for each length; 1 where the first new Job comes after more than 15 s, or where the longest log takes
1.5 times as long as the shortest and more than 2 s longer.
"""

import argparse
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
import torch
from controller_scale import SEARCHERS
from fake_cluster import (
    BUCKET,
    USER_AGENT,
    ControllerProcess,
    S3Server,
    Trainers,
    control_plane,
    create,
    manifest,
)

from nas_api import names
from nas_api.child import Result, StoreLocation
from nas_api.child_job import s3_location
from nas_api.experiment import NASExperiment
from nas_controller import snapshots
from nas_controller.executor import End, Ended, Event, Launch
from nas_controller.policies.factory import make_policy
from nas_controller.recovery import recover
from nas_controller.search import Exit, Search
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient
from nas_log.log import read_objects
from nas_log.records import Observed
from nas_store import Store
from nas_store.folder import FolderStore
from nas_store.s3 import S3Store

CLUSTER = "bench-recovery"
AIM_SECONDS = 15.0
# How many children end with each object of the log: a few, as where they end by themselves.
TOGETHER = 2
THREADS = 8
# What was asked for when the process was killed is answered by then.
SETTLE_SECONDS = 1.0


class OldestFirst:
    """Children of which the oldest end, a few at a time, whenever the log has got on; they leave a result."""

    def __init__(self, store: Store, done: int) -> None:
        """End so many children in all."""
        self._store = store
        self._done = done
        self._waiting: deque[int] = deque()
        self._ended = 0
        self._post: Callable[[Event], None]
        self.stop: Callable[[], None]

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`."""
        self._post = post
        return frozenset()

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        for asked in launch.inputs:
            digest, metrics = asked.architecture.digest, {"accuracy": asked.sample % 97 / 97}
            result = Result(sample=asked.sample, attempt=asked.attempt, architecture=digest, metrics=metrics)
            self._store.put_if_absent(names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode())
        self._waiting.append(launch.number)

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`. Nothing is ended here but by its turn."""

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`. There are none."""
        return {}

    def close(self) -> None:
        """See :class:`nas_controller.executor.Executor`."""

    def publish(self, status: SearchStatus) -> None:
        """Take a status, as the cluster would, and end the next children."""
        observed = 0 if status.samples is None else status.samples.observed
        if observed >= self._done:
            self.stop()
        while self._waiting and self._ended < observed + TOGETHER:
            self._ended += 1
            self._post(Ended(self._waiting.popleft(), End.SUCCEEDED))


def write_log(document: dict[str, Any], folder: str, done: int) -> None:
    """Write log and snapshots of a search that has observed so many samples, with all slots taken."""
    experiment = NASExperiment.model_validate(document)
    store = FolderStore(folder)
    children = OldestFirst(store, done)
    search = Search(
        experiment,
        store=store,
        location=StoreLocation(folder=folder),
        executor=children,
        sink=children,
        pool=ThreadPoolExecutor(THREADS),
    )
    children.stop = search.stop
    if (why := search.run()) is not Exit.STOPPED:
        raise SystemExit(f"the search ended as {why}")


def upload(source: Store, target: Store, done: int) -> dict[str, Any]:
    """Copy the log's beginning with so many observed samples, and its snapshots; return how large it is."""
    observed, objects = 0, 0
    for current in read_objects(source, -1, ""):
        objects += 1
        observed += sum(isinstance(record, Observed) for record in current.records)
        if observed >= done:
            break
    logged = [names.log_key(number) for number in range(objects)]
    # The newest one needs an object after it that vouches for it.
    covering = [key for key in source.list(names.SNAPSHOT_PREFIX) if key < names.snapshot_key(objects - 1)]

    def copy(key: str) -> int:
        data = source.get(key)
        assert data is not None
        target.put(key, data)
        return len(data)

    with ThreadPoolExecutor(THREADS) as pool:
        log_sizes, snapshot_sizes = list(pool.map(copy, logged)), list(pool.map(copy, covering))
    return {
        "done": observed,
        "log_objects": objects,
        "log_bytes": sum(log_sizes),
        "snapshots": len(covering),
        "snapshot_bytes": snapshot_sizes[-1] if snapshot_sizes else 0,
    }


def replayed(store: Store) -> dict[str, float]:
    """Return the CPU time of the way back up, without a process's start and the cluster, and of one snapshot more."""
    began = time.process_time()
    state = recover(store, make_policy).state
    back = time.process_time()
    assert state is not None
    snapshots.encode(state, "")
    snapshot = time.process_time()
    return {"recover_cpu_ms": round(1000 * (back - began)), "snapshot_cpu_ms": round(1000 * (snapshot - back))}


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    while not condition():
        time.sleep(0.05)


def recovered(client: KubeClient, kubeconfig: Path, experiment: NASExperiment) -> dict[str, float]:
    """Kill a controller with all slots taken and return how long the next one takes."""
    with Trainers(client, experiment) as trainers:
        slots = experiment.spec.parallelism
        first = ControllerProcess(kubeconfig, experiment, 500)
        try:
            # Some have ended, and others have their places.
            until(lambda: len(trainers.created) >= slots * 1.1)
        finally:
            first.kill()
        time.sleep(SETTLE_SECONDS)
        before = len(trainers.created)
        began = time.monotonic()
        second = ControllerProcess(kubeconfig, experiment, 500)
        try:
            searching = next(second.costs())
            until(lambda: len(trainers.created) > before)
        finally:
            second.kill()
        job = list(trainers.created.values())[before] - began
    return {
        "first_status_cpu_seconds": round(searching["cpu_seconds"], 2),
        "first_status_seconds": round(searching["at"] - began, 2),
        "first_job_seconds": round(job, 2),
    }


def main() -> int:
    """Print a line for each length; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--done", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--in-flight", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a child trains")
    parser.add_argument("--searcher", choices=list(SEARCHERS), default="reinforce")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # As a controller has it.
    torch.set_num_threads(1)
    lengths = sorted(arguments.done)
    found: list[float] = []
    spec = {
        "searchSpace": {"convolutional": {"layers": {"initial": 15}}},
        "searcher": {"duplicates": "Train", **SEARCHERS[arguments.searcher]},
        "parallelism": arguments.in_flight,
        "budget": {"samples": lengths[-1] + 10 * arguments.in_flight},
    }
    with TemporaryDirectory(dir="/dev/shm") as folder:
        began = time.monotonic()
        write_log(
            manifest("log", {**spec, "storage": {"s3": {"bucket": BUCKET}}}, arguments.seconds), folder, lengths[-1]
        )
        print(f"log written in {time.monotonic() - began:.0f} s", file=sys.stderr)
        for done in lengths:
            with S3Server() as s3, control_plane(CLUSTER, "--tuned-for-load") as kubeconfig:
                client = KubeClient.from_kubeconfig(kubeconfig, user_agent=USER_AGENT)
                document = manifest(f"done-{done}", {**spec, "storage": s3.storage}, arguments.seconds)
                experiment = create(client, document)
                store = S3Store(s3_location(experiment))
                size = upload(FolderStore(folder), store, done) | replayed(store)
                took = recovered(client, kubeconfig, experiment)
                client.close()
            found.append(took["first_job_seconds"])
            line = {"searcher": arguments.searcher, "in_flight": arguments.in_flight, **size, **took}
            print(json.dumps(line), flush=True)
    grows = found[-1] > 1.5 * found[0] and found[-1] > found[0] + 2.0
    return int(max(found) > AIM_SECONDS or grows)


if __name__ == "__main__":
    sys.exit(main())
