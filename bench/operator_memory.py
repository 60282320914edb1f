"""The operator's memory with many experiments, or with the largest that anybody may make.

    python3 -m hack.cluster up --control-plane-only --name memory
    python3 -m hack.cluster run-with --name memory -- .venv/bin/python bench/operator_memory.py 500 ordinary
    python3 -m hack.cluster run-with --name memory -- .venv/bin/python bench/operator_memory.py 100 largest
    python3 -m hack.cluster run-with --name memory -- .venv/bin/python bench/operator_memory.py 50 refused

Kinds: ``ordinary`` as in the examples; ``largest`` with three templates of 64 KiB, made of what takes the most memory
once decoded; ``refused`` with one of 1.3 MB, the most that the API server admits. Makes so many in a namespace of their
own, runs the operator's process for it until all have a status and one more list has been made, prints what was
resident, and removes the namespace.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, EXPERIMENTS, NAMESPACES

_ROOT = Path(__file__).resolve().parents[1]
_CRD = _ROOT / "crds" / f"{names.GROUP}_{names.PLURAL}.yaml"
_LIST_SECONDS = 65.0
_SPEC: dict[str, Any] = {
    "searchSpace": {"convolutional": {"layers": {"initial": 6}, "filters": [6, 12, 24, 36], "strides": [1, 2]}},
    "budget": {"samples": 100},
    "trainer": {"dataset": {"digits": {}}, "epochs": 4},
    "storage": {"s3": {"bucket": "nas", "endpoint": "http://s3.example:9000", "credentialsSecret": {"name": "s3"}}},
}


def spec(kind: str) -> dict[str, Any]:
    """Return the spec of one experiment of a kind."""
    if kind == "ordinary":
        return _SPEC
    # An empty map has three bytes as JSON and 64 decoded. Pods take no such field, so nothing else comes of it.
    template: dict[str, Any] = {"spec": {"x": [{}] * (21_000 if kind == "largest" else 430_000)}}
    out: dict[str, Any] = {**_SPEC, "trainer": {**_SPEC["trainer"], "template": template}}
    if kind == "largest":
        out |= {"controller": {"template": template}, "finalTraining": {"top": 1, "template": template}}
    return out


def resident(pid: int) -> tuple[float, float]:
    """Return what is resident now, and the most that was, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def make(client: KubeClient, namespace: str, number: int, kind: str) -> None:
    """Make an experiment, however often a busy API server must be asked."""
    metadata = {"name": f"e{number:05d}", "namespace": namespace}
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec(kind)}
    while True:
        try:
            client.create(EXPERIMENTS, namespace, body)
        except ApiUnavailable:
            time.sleep(1.0)
        except ApiError as error:
            if error.status != 409:
                raise
            return
        else:
            return


def without_status(client: KubeClient, namespace: str) -> int:
    """Return how many experiments the operator has not yet told of."""
    told = client.list(EXPERIMENTS, namespace, keep=lambda item: {"told": "conditions" in (item.get("status") or {})})
    return sum(not item["told"] for item in told.items)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("kind", choices=("ordinary", "largest", "refused"))
    arguments = parser.parse_args()
    client = KubeClient.from_environment(timeout_seconds=120.0)
    kubectl = ["kubectl", "apply", "--server-side", "-f", str(_CRD)]
    subprocess.run(kubectl, check=True, capture_output=True)
    while not client.get(CUSTOM_RESOURCE_DEFINITIONS, None, f"{names.PLURAL}.{names.GROUP}").get("status"):
        time.sleep(0.5)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    namespace = f"memory-{uuid4().hex[:6]}"
    client.create(NAMESPACES, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    environment = {
        **os.environ,
        "NAS_CONTROLLER_IMAGE": "controller:1",
        "NAS_TRAINER_IMAGE": "trainer:1",
        "NAS_FOLLOWER_IMAGE": "follower:1",
        "NAS_WATCH_NAMESPACES": namespace,
        "NAS_HEALTH_PORT": str(port),
    }
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: make(client, namespace, number, arguments.kind), range(arguments.count)))
        with tempfile.TemporaryFile() as log:
            operator = subprocess.Popen([sys.executable, "-m", "nas_operator"], env=environment, stderr=log)
            try:
                while left := without_status(client, namespace):
                    if operator.poll() is not None:
                        log.seek(0)
                        raise SystemExit(f"the operator has ended: {log.read()[-2000:].decode()}")
                    print(f"{left} to go", file=sys.stderr)
                    time.sleep(5.0)
                time.sleep(_LIST_SECONDS)
                now, most = resident(operator.pid)
            finally:
                operator.terminate()
                operator.wait()
        size = len(json.dumps(spec(arguments.kind))) / 1024
        print(f"{arguments.count} {arguments.kind}, {size:.0f} KiB each: {now:.0f} MiB resident, at most {most:.0f}")
    finally:
        client.delete(NAMESPACES, None, namespace)


if __name__ == "__main__":
    main()
