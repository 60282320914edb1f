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
from pathlib import Path

import structlog
from controller_scale import CLUSTER, NAMESPACE, clear, cluster, controlled, establish, experiment

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import MlflowSpec, NASExperiment
from nas_api.follower import FollowerInput
from nas_controller.metered import MeteredInstruments
from nas_controller.metrics import Metrics
from nas_kube.client import KubeClient
from nas_kube.metered import MeteredClient

AIM = 1.03
SCRAPE_SECONDS = 5.0
PORT = 9464


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
    try:
        cluster("up", "--name", CLUSTER, "--control-plane-only", "--nodes", "kwok:10", "--tuned-for-load")
        kubeconfig = Path(cluster("kubeconfig", "--name", CLUSTER))
        alone = KubeClient.from_kubeconfig(kubeconfig)
        metered = MeteredClient.from_kubeconfig(kubeconfig, metrics=metrics.api)
        establish(alone)
        for number in range(arguments.rounds):
            for arm in makespans:
                name = f"{arm}-{number}-{os.getpid()}"
                wanted = experiment(alone, name, arguments.children, arguments.in_flight, arguments.seconds)
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    if arm == "alone":
                        took = controlled(alone, wanted, folder)
                        caught_up = ""
                    else:
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
                clear(alone, name)
    finally:
        cluster("down", "--name", CLUSTER)
    ratio = min(makespans["followed"]) / min(makespans["alone"])
    print(json.dumps({"ratio": round(ratio, 4), "aim": AIM}))
    return int(ratio > AIM)


if __name__ == "__main__":
    sys.exit(main())
