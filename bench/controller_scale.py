"""What a search costs at scale, on kwok's fake nodes with a real S3, beside a bare client in the same run.

    .venv/bin/python bench/controller_scale.py --children 400 --in-flight 100
    .venv/bin/python bench/controller_scale.py --children 12800 --in-flight 800 --searcher reinforce --no-bare

The bare client only creates Jobs and watches them, with the same Job bodies and as many threads. The controller is the
real one, in a process of its own. Fake pods run for --seconds each and train nothing; the bench puts their results into
the store as their Jobs are created, in both arms. Control plane, S3 server and bench share this machine's processors.

Prints a JSON line for each arm, then a table beside the aims; the exit code is 1 where one is missed. The makespan runs
from the first Job to the controller's end, its last report and status included. The controller's CPU counts from where
its search begins. "Idle" is the share of slots without a training, of the whole makespan.
"""

import argparse
import json
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from fake_cluster import (
    NAMESPACE,
    USER_AGENT,
    ControllerProcess,
    Process,
    S3Server,
    Trainers,
    components,
    control_plane,
    create,
    job_bodies,
    manifest,
)

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_kube.client import KubeClient
from nas_kube.reading import finished
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EXPERIMENTS, JOBS

CLUSTER = "bench-scale"
# What the executor uses too: more would only queue in the API server.
THREADS = 8
EVERY = 500
FLAT_FROM = 2000
SEARCHERS: dict[str, dict[str, Any]] = {
    "random": {"random": {}},
    # As in examples/paper/cifar-v1.yaml.
    "reinforce": {"reinforce": {"replicas": 100, "batch": 8}},
    "guided": {"guided": {}},
}


def spec(arguments: argparse.Namespace, storage: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the search that the command line asks for."""
    trainer: dict[str, Any] = {"childrenPerPod": arguments.children_per_pod}
    if arguments.ttl is not None:
        trainer["ttlSecondsAfterFinished"] = arguments.ttl
    return {
        "searchSpace": {"convolutional": {"layers": {"initial": arguments.layers}}},
        "searcher": {"duplicates": "Train", **SEARCHERS[arguments.searcher]},
        "parallelism": arguments.in_flight,
        "budget": {"samples": arguments.children},
        "trainer": trainer,
        "storage": storage,
    }


def bare(client: KubeClient, wanted: NASExperiment) -> float:
    """Return the seconds that creating and watching Jobs takes, and nothing else."""
    bodies = job_bodies(wanted, "trainer:1")
    ended: set[str] = set()
    slots = threading.Semaphore(wanted.spec.parallelism // wanted.spec.trainer.children_per_pod)
    over = threading.Event()

    def on_event(kind: EventType, job: dict[str, Any]) -> None:
        if finished(job) and job["metadata"]["name"] not in ended:
            ended.add(job["metadata"]["name"])
            slots.release()
            if len(ended) == len(bodies):
                over.set()

    selector = f"{names.LABEL_EXPERIMENT_UID}={wanted.metadata.uid}"
    reflector = Reflector(client, JOBS, NAMESPACE, on_event, label_selector=selector)
    reflector.start()
    reflector.wait_synced(30)
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for body in bodies:
            slots.acquire()
            pool.submit(client.create, JOBS, NAMESPACE, body)
        over.wait()
    took = time.monotonic() - began
    reflector.stop()
    return took


@dataclass
class Controlled:
    """What the controller's arm has measured."""

    makespan: float
    costs: list[dict[str, Any]]
    """What it has told, see ``counted_controller``."""
    s3: dict[str, int]
    status_bytes: int

    def figures(self, children: int) -> dict[str, Any]:
        """Return what one child costs, and how the memory went."""
        first, last = self.costs[0], self.costs[-1]
        cpu = last["cpu_seconds"] - first["cpu_seconds"]
        policy = last["policy_seconds"] - first["policy_seconds"]
        resident = {report["observed"]: report["resident_mib"] for report in self.costs[1:]}
        return {
            "api_calls_a_child": round(sum(last["api"].values()) / children, 2),
            "api_calls": last["api"],
            "s3_requests_a_child": round(sum(self.s3.values()) / children, 2),
            "s3_requests": self.s3,
            "controller_ms_a_child": round(1000 * (cpu - policy) / children, 2),
            "policy_ms_a_child": round(1000 * policy / children, 2),
            "resident_mib": resident,
            "status_bytes": self.status_bytes,
        }


def controlled(
    client: KubeClient, kubeconfig: Path, s3: S3Server, wanted: NASExperiment, trainers: Trainers
) -> Controlled:
    """Run the controller's process to its end."""
    before = s3.requests()
    process = ControllerProcess(kubeconfig, wanted, EVERY)
    try:
        costs = list(process.costs())
        ended = time.monotonic()
    finally:
        process.kill()
    began = min(trainers.created.values())
    status = client.get(EXPERIMENTS, NAMESPACE, wanted.metadata.name)["status"]
    requests = s3.requests() - before
    return Controlled(ended - began, costs, dict(requests), len(json.dumps(status, separators=(",", ":"))))


@dataclass(frozen=True)
class Row:
    """A line of the table: a measured value and the most that it may be."""

    what: str
    value: float
    aim: float
    unit: str = ""

    def __str__(self) -> str:
        verdict = "" if self.value <= self.aim else "  MISSED"
        return f"{self.what:42} {self.value:9.2f} {self.unit:6} at most {self.aim:7.2f}{verdict}"


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return what the controller's arm is held to."""
    resident = {int(observed): value for observed, value in figures["resident_mib"].items()}
    late = [value for observed, value in resident.items() if observed >= FLAT_FROM]
    out = [
        Row("API calls of the controller a child", figures["api_calls_a_child"], 2.2),
        Row("S3 requests of the controller a child", figures["s3_requests_a_child"], 3.0),
        Row("controller's CPU beside the policy's, a child", figures["controller_ms_a_child"], 15.0, "ms"),
        Row("resident, at most", max(resident.values()), 500.0, "MiB"),
        Row("status", figures["status_bytes"] / 1024, 16.0, "KiB"),
    ]
    if len(late) > 1:
        out.append(Row(f"resident at the end over {FLAT_FROM:,}th child's", late[-1] / late[0], 1.1))
    return out


def run(arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run an arm in a control plane of its own, so that none finds what another has left; print and return its line."""
    children, together = arguments.children, arguments.children_per_pod
    with S3Server() as s3, control_plane(CLUSTER, "--tuned-for-load") as kubeconfig:
        client = KubeClient.from_kubeconfig(kubeconfig, user_agent=USER_AGENT)
        wanted = create(client, manifest(arm, spec(arguments, s3.storage), arguments.seconds))
        processes = {**components(kubeconfig), "s3": s3.process, "bench": Process(os.getpid())}
        before = {name: process.cpu_seconds for name, process in processes.items()}
        with Trainers(client, wanted) as trainers:
            if arm == "bare":
                makespan, figures = bare(client, wanted), {}
            else:
                told = controlled(client, kubeconfig, s3, wanted, trainers)
                makespan, figures = told.makespan, told.figures(children)
        cpu = {name: process.cpu_seconds - before[name] for name, process in processes.items()}
        resident = round(processes["apiserver"].resident_mib)
        client.close()
    line = {
        "arm": arm,
        **{key: getattr(arguments, key) for key in ("searcher", "layers", "children", "in_flight", "seconds")},
        "children_per_pod": together,
        "makespan_seconds": round(makespan, 1),
        "children_a_second": round(children / makespan, 2),
        "idle": round(1 - children * arguments.seconds / (arguments.in_flight * makespan), 4),
        "cpu_ms_a_child": {name: round(1000 * seconds / children, 1) for name, seconds in cpu.items()},
        "apiserver_mib": resident,
        **figures,
    }
    print(json.dumps(line), flush=True)
    return line


def main() -> int:
    """Run the arms, print their lines and the table; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=400)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a child trains")
    parser.add_argument("--rounds", type=int, default=1, help="each arm runs so often, in turn; its minimum counts")
    parser.add_argument("--searcher", choices=list(SEARCHERS), default="random")
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--children-per-pod", type=int, default=1, help="they train at the same time")
    parser.add_argument("--ttl", type=int, help="trainer.ttlSecondsAfterFinished; the product's own if not given")
    parser.add_argument("--aim", type=float, default=1.2, help="of the controller's makespan over the bare client's")
    parser.add_argument("--bare", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    arms = ["bare", "controller"] if arguments.bare else ["controller"]
    lines: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(arguments.rounds):
        for arm in arms:
            lines[arm].append(run(arm, arguments))
    best = {arm: min(line["makespan_seconds"] for line in lines[arm]) for arm in arms}
    table = rows(lines["controller"][-1])
    if arguments.bare:
        table.insert(0, Row("makespan over the bare client's", best["controller"] / best["bare"], arguments.aim))
    print(*table, sep="\n")
    return int(any(row.value > row.aim for row in table))


if __name__ == "__main__":
    sys.exit(main())
