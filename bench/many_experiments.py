"""What many experiments cost the operator: memory, CPU when nothing happens and at a restart, and writes then.

    .venv/bin/python bench/many_experiments.py --experiments 500 --namespaces 50

A real API server with kwok's fake nodes, on which the controllers' pods run and do nothing. The operator's process is
started for all namespaces and left until every experiment has its conditions and a running controller, and no write
came for --quiet seconds. Then it is watched for --watch seconds, ended, started anew and watched as long again.
Requests are the audit log's, by user agent, each written before its answer was sent.

Prints a JSON line for each of the two; the exit code is 1 where the restart writes anything.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError

from fake_cluster import USER_AGENT, Process, control_plane

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.reading import true_condition
from nas_kube.resources import EXPERIMENTS, NAMESPACES, PODS

CLUSTER = "bench-many"
MAKERS = 4
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
# The operator's own client, and kopf's.
AGENTS = ("nas-operator", "kopf", "Python/")
_SPEC: dict[str, Any] = {
    "searchSpace": {"convolutional": {"layers": {"initial": 6}, "filters": [6, 12, 24, 36], "strides": [1, 2]}},
    "budget": {"samples": 100},
    "trainer": {"dataset": {"digits": {}}, "epochs": 4},
    "storage": {"s3": {"bucket": "nas", "endpoint": "http://s3.example:9000", "credentialsSecret": {"name": "s3"}}},
}


def operators_requests(lines: Iterable[str], began: float, ended: float) -> Counter[str]:
    """Return how often the operator has asked between two times (epoch seconds), by verb and resource.

    Args:
        lines: of an audit log, a JSON document each.
        began: what was received before is left out.
        ended: and so is what was received from then on.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        event = json.loads(line)
        at = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
        if began <= at < ended and event.get("userAgent", "").startswith(AGENTS):
            about = event.get("objectRef") or {}
            resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            counts[f"{event['verb']} {resource or event['requestURI'].partition('?')[0]}"] += 1
    return counts


def writes(counts: Counter[str]) -> int:
    """Return how many of these requests change anything."""
    return sum(count for what, count in counts.items() if what.split()[0] in WRITES)


def make(client: KubeClient, number: int, namespaces: int) -> None:
    """Make an experiment in its namespace."""
    metadata = {"name": f"e{number:05d}", "namespace": f"team-{number % namespaces:03d}"}
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": _SPEC}
    client.create(EXPERIMENTS, metadata["namespace"], body)


@contextmanager
def operator(kubeconfig: Path) -> Iterator[tuple[Process, int]]:
    """Run the operator's process for all namespaces; give the process and the port of its health."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "NAS_CONTROLLER_IMAGE": "controller:1",
        "NAS_TRAINER_IMAGE": "trainer:1",
        "NAS_FOLLOWER_IMAGE": "follower:1",
        "NAS_HEALTH_PORT": str(port),
        "NAS_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-m", "nas_operator"], env=environment)
    try:
        yield Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    """Return whether the operator says that it works."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def settled(client: KubeClient, experiments: int) -> bool:
    """Return whether every experiment has its conditions and a controller that runs."""
    told = client.list(EXPERIMENTS, keep=lambda item: {} if "conditions" in (item.get("status") or {}) else None)
    label = f"{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"
    running = client.list(PODS, label_selector=label, keep=lambda pod: {} if true_condition(pod, "Ready") else None)
    return len(told.items) == len(running.items) == experiments


def main() -> int:
    """Print what was measured; 1 where the restart writes anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--namespaces", type=int, default=50)
    parser.add_argument("--watch", type=float, default=60.0, help="seconds")
    parser.add_argument("--quiet", type=float, default=20.0, help="seconds without a write before the watch begins")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        audit = Path(folder) / "audit.log"

        def asked(began: float, ended: float) -> Counter[str]:
            with audit.open(encoding="utf-8") as lines:
                return operators_requests(lines, began, ended)

        def watched(what: str, process: Process, began: float, cpu: float) -> Counter[str]:
            """Print what the operator has done since a time, from so many CPU seconds on, and return its requests."""
            ended = time.time()
            requests = asked(began, ended)
            line = {
                "when": what,
                "experiments": arguments.experiments,
                "namespaces": arguments.namespaces,
                "seconds": round(ended - began, 1),
                "cpu_seconds": round(process.cpu_seconds - cpu, 2),
                "resident_mib": round(process.resident_mib, 1),
                "writes": writes(requests),
                "requests": dict(sorted(requests.items())),
            }
            print(json.dumps(line), flush=True)
            return requests

        with control_plane(CLUSTER, "--tuned-for-load", "--audit-log", str(audit)) as kubeconfig:
            client = KubeClient.from_kubeconfig(kubeconfig, user_agent=USER_AGENT)
            for number in range(arguments.namespaces):
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"team-{number:03d}"}}
                client.create(NAMESPACES, None, body)
            with ThreadPoolExecutor(MAKERS) as pool:
                list(pool.map(lambda number: make(client, number, arguments.namespaces), range(arguments.experiments)))
            with operator(kubeconfig) as (process, _):
                while not settled(client, arguments.experiments):
                    time.sleep(2.0)
                while writes(asked(time.time() - arguments.quiet, time.time())):
                    time.sleep(2.0)
                began, cpu = time.time(), process.cpu_seconds
                time.sleep(arguments.watch)
                watched("idle", process, began, cpu)
            began = time.time()
            with operator(kubeconfig) as (process, port):
                while not ready(port):
                    time.sleep(0.2)
                print(f"ready after {time.time() - began:.1f} s", file=sys.stderr)
                time.sleep(arguments.watch)
                restart = watched("restart", process, began, 0.0)
            client.close()
    return int(writes(restart) > 0)


if __name__ == "__main__":
    sys.exit(main())
