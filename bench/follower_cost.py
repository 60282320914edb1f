"""What followers cost a search: its makespan on kwok's fake nodes with all of them, and without, in the same run.

    .venv/bin/python bench/follower_cost.py --mlflow http://127.0.0.1:5000 [--children 400 --in-flight 100 --seconds 30]

With: metrics are counted and scraped every 5 s, as by Prometheus, and MLflow's follower, a process of its own, hands
each sample over to a real server (start one: ``mlflow server --artifacts-destination FOLDER``). Everything is on this
machine, the control plane, too, so this is the most that it can cost: in a cluster the follower has a pod elsewhere.
The children last --seconds, so that the machine has time to spare as a controller has. Aim: at most 3 % longer.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from fake_cluster import NAMESPACE, control_plane, create, manifest

from nas_api import names
from nas_api.child import Result, StoreLocation
from nas_api.experiment import MlflowSpec, NASExperiment
from nas_api.follower import FollowerInput
from nas_api.search_space import search_space
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.instruments import Instruments
from nas_controller.kubernetes_status import KubernetesSink
from nas_controller.metered import MeteredInstruments
from nas_controller.metrics import Metrics
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_kube.client import KubeClient
from nas_kube.metered import MeteredClient
from nas_store.folder import FolderStore

AIM = 1.03
SCRAPE_SECONDS = 5.0
PORT = 9464
CLUSTER = "bench-followers"
THREADS = 8


def scrape(over: threading.Event) -> None:
    """Read the metrics again and again."""
    while not over.wait(SCRAPE_SECONDS):
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=60) as answer:
            answer.read()


def follower(wanted: NASExperiment, folder: Path, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process that the operator would make a pod for."""
    asked = FollowerInput(
        experiment=wanted.metadata.name,
        namespace=NAMESPACE,
        uid=wanted.metadata.uid,
        store=StoreLocation(folder=str(folder)),
        mlflow=MlflowSpec(uri=uri),
    )
    environment = {**os.environ, names.ENV_FOLLOWER_INPUT: asked.model_dump_json(by_alias=True)}
    return subprocess.Popen([sys.executable, "-m", "nas_followers"], env=environment, stdout=subprocess.DEVNULL)


def controlled(client: KubeClient, wanted: NASExperiment, folder: Path, instruments: Instruments) -> float:
    """Return the seconds that a search takes, whose results are written beforehand: its draws are known."""
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


def main() -> int:
    """Print the makespans and their ratio; 1 when that misses the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlflow", required=True, metavar="URL")
    parser.add_argument("--children", type=int, default=400)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a fake pod runs")
    parser.add_argument("--rounds", type=int, default=2, help="each arm runs so often, in turn; its minimum counts")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    metrics = Metrics()
    metrics.serve(PORT)
    makespans: dict[str, list[float]] = {"alone": [], "followed": []}
    spec = {
        "searchSpace": {"convolutional": {}},
        "searcher": {"random": {}},
        "parallelism": arguments.in_flight,
        "budget": {"samples": arguments.children},
        "storage": {"s3": {"bucket": "none"}},
    }
    for number in range(arguments.rounds):
        for arm in makespans:
            document = manifest(f"{arm}-{number}-{os.getpid()}", spec, arguments.seconds)
            # Of its own, so that no arm finds what another has left.
            with tempfile.TemporaryDirectory() as temporary, control_plane(CLUSTER, "--tuned-for-load") as kubeconfig:
                folder = Path(temporary)
                alone = KubeClient.from_kubeconfig(kubeconfig)
                wanted = create(alone, document)
                if arm == "alone":
                    took = controlled(alone, wanted, folder, Instruments())
                    caught_up = ""
                else:
                    metered = MeteredClient.from_kubeconfig(kubeconfig, metrics=metrics.api)
                    over = threading.Event()
                    threading.Thread(target=scrape, args=(over,), daemon=True).start()
                    with follower(wanted, folder, arguments.mlflow) as process:
                        took = controlled(metered, wanted, folder, MeteredInstruments(metrics))
                        ended = time.monotonic()
                        code = process.wait()
                    over.set()
                    if code != 0:
                        raise SystemExit(f"the follower ended with code {code}")
                    caught_up = f"  the follower was done {time.monotonic() - ended:.1f} s later"
            makespans[arm].append(took)
            print(f"{arm:9} {took:6.1f} s{caught_up}", flush=True)
    ratio = min(makespans["followed"]) / min(makespans["alone"])
    print(json.dumps({"ratio": round(ratio, 4), "aim": AIM}))
    return int(ratio > AIM)


if __name__ == "__main__":
    sys.exit(main())
