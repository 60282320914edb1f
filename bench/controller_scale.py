"""Children a second and idle share of the controller on kwok's fake nodes, beside a bare client in the same run.

    .venv/bin/python bench/controller_scale.py --children 400 --in-flight 100

The bare client only creates Jobs and watches them, with the same Job bodies and as many threads; the controller is
the real search (log, policy, results) on the real executor. Both run against one control plane that this command
brings up and takes down; needs no root. Fake pods run for --seconds each and train nothing: their results are
written beforehand, as the random policy's draws are known. Aim: at most 1.25 times the bare client's makespan.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from nas_api import names
from nas_api.child import Result, StoreLocation
from nas_api.child_job import child_job
from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.instruments import Instruments
from nas_controller.kubernetes_status import KubernetesSink
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError
from nas_kube.reading import finished, true_condition
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, EXPERIMENTS, JOBS
from nas_store.folder import FolderStore

REPOSITORY = Path(__file__).resolve().parents[1]
CLUSTER = "bench-scale"
NAMESPACE = "default"
AIM = 1.25
# What the executor uses too: more would only queue in the API server.
THREADS = 8
_UNWATCHED = Instruments()


def cluster(*words: str) -> str:
    """Run the cluster tool and return what it printed."""
    command = [sys.executable, "-m", "hack.cluster", *words]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def establish(client: KubeClient) -> None:
    """Install the CustomResourceDefinition and wait until it is served."""
    from nas_api.crd import custom_resource_definition

    name = f"{names.PLURAL}.{names.GROUP}"
    client.apply(
        CUSTOM_RESOURCE_DEFINITIONS, None, name, custom_resource_definition(), field_manager="controller-scale"
    )
    while True:
        if true_condition(client.get(CUSTOM_RESOURCE_DEFINITIONS, None, name), "Established") is not None:
            return
        time.sleep(0.2)


def experiment(client: KubeClient, name: str, children: int, in_flight: int, seconds: float) -> NASExperiment:
    """Create an experiment whose fake children run for so many seconds."""
    annotations = {"fake.nas-operator.io/run-time": f"{round(seconds * 1000)}ms"}
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "searchSpace": {"convolutional": {}},
            "searcher": {"random": {}},
            "parallelism": in_flight,
            "budget": {"samples": children},
            "trainer": {"dataset": {"digits": {}}, "template": {"metadata": {"annotations": annotations}}},
            "storage": {"s3": {"bucket": "none"}},
        },
    }
    while True:
        try:
            return NASExperiment.model_validate(client.create(EXPERIMENTS, NAMESPACE, body), extra="ignore")
        except ApiError as error:
            # The new resource is established a moment before every path serves it.
            if error.status != 404:
                raise
            time.sleep(0.2)


def bare(client: KubeClient, wanted: NASExperiment, in_flight: int, folder: Path) -> float:
    """Return the seconds that creating and watching Jobs takes, and nothing else."""
    spec = wanted.spec
    space = search_space(spec.search_space)
    policy = make_policy(spec.searcher, space)
    location = StoreLocation(folder=str(folder))
    bodies = [
        child_job(
            wanted,
            sample,
            (trainer_input(wanted, location, sample, 1, space.decode(policy.propose(sample).choices)),),
            "i",
        )
        for sample in range(spec.budget.samples)
    ]
    ended: set[str] = set()
    slots = threading.Semaphore(in_flight)
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


def controlled(client: KubeClient, wanted: NASExperiment, folder: Path, instruments: Instruments = _UNWATCHED) -> float:
    """Return the seconds that the real search takes for the same children."""
    store = FolderStore(folder)
    space = search_space(wanted.spec.search_space)
    policy = make_policy(wanted.spec.searcher, space)
    for sample in range(wanted.spec.budget.samples):
        digest = space.decode(policy.propose(sample).choices).digest
        result = Result(sample=sample, attempt=1, architecture=digest, metrics={"accuracy": sample % 97 / 97})
        store.put_if_absent(names.result_key(sample), result.model_dump_json(by_alias=True).encode())
    executor = instruments.executor(KubernetesExecutor(client, wanted, "i", ThreadPoolExecutor(THREADS)), wanted)
    sink = KubernetesSink(client, wanted, lambda loss: print(f"status lost: {loss}", file=sys.stderr))
    search = Search(
        wanted,
        store=instruments.store(store),
        location=StoreLocation(folder=str(folder)),
        executor=executor,
        sink=instruments.sink(sink),
        pool=ThreadPoolExecutor(THREADS),
        make_policy=instruments.policy(make_policy),
    )
    began = time.monotonic()
    why = search.run()
    took = time.monotonic() - began
    executor.close()
    sink.close()
    if why is not Exit.FINISHED:
        raise SystemExit(f"the search ended as {why}")
    return took


def clear(client: KubeClient, name: str) -> None:
    """Delete an experiment and wait for its Jobs to go: what one arm leaves behind must not slow the next."""
    client.delete(EXPERIMENTS, NAMESPACE, name)
    while client.list(JOBS, NAMESPACE).items:
        time.sleep(0.5)


def main() -> int:
    """Print both makespans, children a second, the idle share, and the ratio; 1 when the ratio misses the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=400)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a fake pod runs")
    parser.add_argument("--rounds", type=int, default=2, help="each arm runs so often, in turn; its minimum counts")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    makespans: dict[str, list[float]] = {"bare client": [], "controller": []}
    try:
        cluster("up", "--name", CLUSTER, "--control-plane-only", "--nodes", "kwok:10", "--tuned-for-load")
        client = KubeClient.from_kubeconfig(Path(cluster("kubeconfig", "--name", CLUSTER)))
        establish(client)
        for number in range(arguments.rounds):
            for arm in makespans:
                name = f"{arm.split()[0]}-{number}"
                wanted = experiment(client, name, arguments.children, arguments.in_flight, arguments.seconds)
                with tempfile.TemporaryDirectory() as folder:
                    if arm == "controller":
                        took = controlled(client, wanted, Path(folder))
                    else:
                        took = bare(client, wanted, arguments.in_flight, Path(folder))
                makespans[arm].append(took)
                idle = 1 - arguments.children * arguments.seconds / (arguments.in_flight * took)
                print(
                    f"{arm:12} {took:6.1f} s  {arguments.children / took:5.1f} children/s  idle {idle:4.0%}", flush=True
                )
                clear(client, name)
        client.close()
    finally:
        cluster("down", "--name", CLUSTER)
    ratio = min(makespans["controller"]) / min(makespans["bare client"])
    print(json.dumps({"ratio": round(ratio, 3), "aim": AIM}))
    return int(ratio > AIM)


if __name__ == "__main__":
    sys.exit(main())
