"""What one child costs the API server: its CPU and its requests, by what a Job's body has and how the Job goes.

    .venv/bin/python bench/api_server_work.py

Each variant makes --children Jobs of the product's body, changed in one thing, with --in-flight children at once, on
kwok's fake nodes; nobody but a bare client watches them. A row's figures are for each child. CPU is that of the process
kube-apiserver, once until the last child has ended, and once until its Job and pod are gone too; a busy machine changes
it by a tenth or more, but not the MB that the process has allocated. The first variant is what Kubernetes does with the
product's own body; it runs once more at the end, so that the two say what differences mean nothing. This command brings
up a control plane of its own and takes it down; needs no root. Takes about 5 minutes on 2 busy cores; --verbs says
which requests there were.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fake_cluster import NAMESPACE, Process, components, control_plane, create, job_bodies, manifest

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.reading import finished
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EXPERIMENTS, JOBS, PODS

CLUSTER = "bench-api-server"
IMAGE = "ghcr.io/example/nas-trainer:1.0.0"
# So that all Jobs go within the run, as they do in a search that is longer than their time to live.
KEPT_SECONDS = 10
# What the executor uses too: more would only queue in the API server.
THREADS = 8

Body = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row: what is other than in the product's body, and how its Job goes."""

    name: str
    change: Callable[[Body], None] = lambda body: None
    delete: bool = False
    """The client deletes a Job as it ends; else the controller manager does, when its time to live is over."""
    watch: bool = True
    """The client follows its Jobs by a watch; else it asks for them each 2 s."""
    together: int = 1
    """Children in a pod (trainer.childrenPerPod)."""


def pod(body: Body) -> Body:
    """Return a Job's pod spec."""
    spec: Body = body["spec"]["template"]["spec"]
    return spec


def no_input(body: Body) -> None:
    """Take out what the trainer is told."""
    pod(body)["containers"][0].pop("env")


def no_security(body: Body) -> None:
    """Take out what the restricted standard wants, and the writable folders."""
    pod(body).pop("securityContext")
    pod(body).pop("volumes")
    for field in ("securityContext", "volumeMounts"):
        pod(body)["containers"][0].pop(field)


def minimal(body: Body) -> None:
    """Leave a Job that names an image, and by what it is known."""
    container = pod(body)["containers"][0]
    template = body["spec"]["template"]
    kept = {"fake.nas-operator.io/run-time": template["metadata"]["annotations"]["fake.nas-operator.io/run-time"]}
    body["metadata"].pop("annotations")
    body["metadata"]["labels"] = {
        names.LABEL_EXPERIMENT_UID: body["metadata"]["labels"][names.LABEL_EXPERIMENT_UID],
    }
    body["spec"] = {
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": body["spec"]["ttlSecondsAfterFinished"],
        "template": {
            "metadata": {"annotations": kept},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "containers": [{"name": container["name"], "image": container["image"]}],
            },
        },
    }


VARIANTS = (
    Variant("the product's, by its TTL"),
    Variant("the product's, by DELETE", delete=True),
    Variant("... and nobody watches", delete=True, watch=False),
    Variant("... without the trainer's input", no_input, delete=True),
    Variant("... without security, volumes", no_security, delete=True),
    Variant("minimal, by DELETE", minimal, delete=True),
    Variant("minimal, by its TTL", minimal),
    Variant("four children in a pod, by DELETE", delete=True, together=4),
    Variant("the product's, by its TTL, again"),
)


@dataclass(frozen=True)
class Work:
    """What the API server has done so far."""

    cpu: float
    """Seconds."""
    requests: Counter[tuple[str, str]]
    """By verb and resource."""
    allocated: float
    """MB of memory, those included that are free again."""

    def since(self, earlier: "Work", children: int) -> tuple[float, float, float]:
        """Return milliseconds, requests and MB for each child."""
        requests = sum((self.requests - earlier.requests).values())
        cpu, allocated = self.cpu - earlier.cpu, self.allocated - earlier.allocated
        return 1000 * cpu / children, requests / children, allocated / children


def work(client: KubeClient, server: Process) -> Work:
    """Look at the process's CPU and at its count of requests."""
    requests: Counter[tuple[str, str]] = Counter()
    allocated = 0.0
    for line in client.stream("/metrics", {}, silence_seconds=60.0):
        if line.startswith(b"go_memstats_alloc_bytes_total "):
            allocated = float(line.split()[1]) / 1e6
        if line.startswith(b"apiserver_request_total{"):
            labels, _, value = line.decode().rpartition(" ")
            named = dict(pair.split("=", 1) for pair in labels.partition("{")[2].rstrip("}").split(","))
            verb, resource, sub = (named[key].strip('"') for key in ("verb", "resource", "subresource"))
            if verb != "WATCH":
                requests[verb, f"{resource}/{sub}".rstrip("/")] += int(float(value))
    return Work(server.cpu_seconds, requests, allocated)


def spec(children: int, in_flight: int, together: int) -> dict[str, Any]:
    """Return the spec of a search at random, so many of whose children share a pod."""
    return {
        "searchSpace": {"convolutional": {}},
        "searcher": {"random": {}},
        "parallelism": in_flight,
        "budget": {"samples": children},
        "trainer": {"childrenPerPod": together, "ttlSecondsAfterFinished": KEPT_SECONDS},
        "storage": {"s3": {"bucket": "nas", "endpoint": "http://s3:9000", "credentialsSecret": {"name": "keys"}}},
    }


def train(client: KubeClient, uid: str, bodies: list[Body], in_flight: int, variant: Variant) -> float:
    """Create the Jobs, wait for their ends, delete them where that is asked for; return the seconds it took."""
    ended: set[str] = set()
    slots = threading.Semaphore(in_flight)
    over = threading.Event()
    selector = f"{names.LABEL_EXPERIMENT_UID}={uid}"

    def on_event(kind: EventType, job: Body) -> None:
        name = job["metadata"]["name"]
        if name in ended or not (finished(job) or kind is EventType.DELETED):
            return
        ended.add(name)
        slots.release()
        if variant.delete:
            pool.submit(client.delete, JOBS, NAMESPACE, name)
        if len(ended) == len(bodies):
            over.set()

    def ask() -> None:
        while not over.wait(2.0):
            for job in client.list(JOBS, NAMESPACE, label_selector=selector).items:
                on_event(EventType.MODIFIED, job)

    began = time.monotonic()
    reflector = Reflector(client, JOBS, NAMESPACE, on_event, label_selector=selector)
    with ThreadPoolExecutor(THREADS) as pool:
        if variant.watch:
            reflector.start()
            reflector.wait_synced(30)
        else:
            pool.submit(ask)
        for body in bodies:
            slots.acquire()
            pool.submit(client.create, JOBS, NAMESPACE, body)
        over.wait()
    took = time.monotonic() - began
    reflector.stop()
    return took


def clear(client: KubeClient, name: str) -> None:
    """Wait for all Jobs and pods to go, then delete their experiment."""
    while client.list(JOBS, NAMESPACE).items or client.list(PODS, NAMESPACE).items:
        time.sleep(1.0)
    client.delete(EXPERIMENTS, NAMESPACE, name)


def main() -> int:
    """Print a row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=400)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a fake pod runs")
    parser.add_argument("--only", default="", help="variants whose names have this")
    parser.add_argument("--verbs", action="store_true", help="say which requests there were")
    arguments = parser.parse_args()
    with control_plane(CLUSTER, "--tuned-for-load") as kubeconfig:
        server = components(kubeconfig)["apiserver"]
        client = KubeClient.from_kubeconfig(kubeconfig)
        print(
            f"{'':36}{'bytes':>7}{'ms to end':>11}{'ms in all':>11}{'':7}"
            f"{'requests':>10}{'MB':>8}{'children/s':>12}{'MiB':>7}"
        )
        first = 0.0
        for number, variant in enumerate(VARIANTS):
            if arguments.only not in variant.name:
                continue
            asked = spec(arguments.children, arguments.in_flight, variant.together)
            wanted = create(client, manifest(f"v{number}", asked, arguments.seconds))
            bodies = job_bodies(wanted, IMAGE)
            for body in bodies:
                variant.change(body)
            before = work(client, server)
            took = train(client, wanted.metadata.uid, bodies, arguments.in_flight // variant.together, variant)
            end, memory = work(client, server), server.resident_mib
            clear(client, wanted.metadata.name)
            gone = work(client, server)
            size = len(json.dumps(bodies[-1], separators=(",", ":")))
            to_end, _, _ = end.since(before, arguments.children)
            in_all, requests, allocated = gone.since(before, arguments.children)
            first = first or in_all
            print(
                f"{variant.name:36}{size:7,}{to_end:11.1f}{in_all:11.1f}{in_all / first:7.0%}"
                f"{requests:10.1f}{allocated:8.2f}{arguments.children / took:12.1f}{memory:7,.0f}",
                flush=True,
            )
            if arguments.verbs:
                for what, count in (gone.requests - before.requests).most_common(25):
                    print(f"    {count / arguments.children:6.2f} {' '.join(what)}")
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
