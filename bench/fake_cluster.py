"""What the benches on fake nodes share: control plane, S3 server, children that leave results, a controller's process.

The control plane is real (``hack/cluster``), its nodes are kwok's: a pod runs as long as its annotation says and trains
nothing. The S3 server is versitygw, whose access log says how often who has asked it. Nothing here needs root.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import boto3

from nas_api import names
from nas_api.child import Result, StoreLocation, read_trainer_document
from nas_api.child_job import child_job, s3_location
from nas_api.crd import custom_resource_definition
from nas_api.experiment import NASExperiment, SearcherSpec
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_controller.policies.factory import make_policy
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError
from nas_kube.reading import true_condition
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, EXPERIMENTS, JOBS
from nas_store.s3 import S3Store

REPOSITORY = Path(__file__).resolve().parents[1]
NAMESPACE = "default"
BUCKET = "bench"
USER_AGENT = "bench"
_APP_VARIABLE = "AWS_SDK_UA_APP_ID"
"""What boto3 adds to its user agent, and the access log has."""
_CONTROLLER_APP = "controller"
_PARTS = ("log", "samples", "snapshots", "best", "report")
_THREADS = 8
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def cluster(*words: str) -> str:
    """Run the cluster tool and return what it printed."""
    command = [sys.executable, "-m", "hack.cluster", *words]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def control_plane(name: str, *options: str) -> Iterator[Path]:
    """Bring up a control plane with ten fake nodes and our resource, give its kubeconfig, and remove it in the end."""
    try:
        cluster("up", "--name", name, "--control-plane-only", "--nodes", "kwok:10", *options)
        kubeconfig = Path(cluster("kubeconfig", "--name", name))
        client = KubeClient.from_kubeconfig(kubeconfig, user_agent=USER_AGENT)
        establish(client)
        client.close()
        yield kubeconfig
    finally:
        cluster("down", "--name", name)


def establish(client: KubeClient) -> None:
    """Install the CustomResourceDefinition and wait until it is served."""
    name = f"{names.PLURAL}.{names.GROUP}"
    client.apply(CUSTOM_RESOURCE_DEFINITIONS, None, name, custom_resource_definition(), field_manager=USER_AGENT)
    while True:
        if true_condition(client.get(CUSTOM_RESOURCE_DEFINITIONS, None, name), "Established") is not None:
            return
        time.sleep(0.2)


def manifest(name: str, spec: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return an experiment whose fake pods run for so many seconds.

    Args:
        name: the experiment's.
        spec: what it has beside its trainer's dataset and pod template.
        seconds: how long a pod runs.
    """
    annotations = {"fake.nas-operator.io/run-time": f"{round(seconds * 1000)}ms"}
    template = {"metadata": {"annotations": annotations}}
    trainer = {"dataset": {"digits": {}}, "template": template, **spec.get("trainer", {})}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {**spec, "trainer": trainer},
    }


def create(client: KubeClient, document: dict[str, Any]) -> NASExperiment:
    """Create an experiment and return it as stored."""
    while True:
        try:
            return NASExperiment.model_validate(client.create(EXPERIMENTS, NAMESPACE, document), extra="ignore")
        except ApiError as error:
            # The new resource is established a moment before every path serves it.
            if error.status != 404:
                raise
            time.sleep(0.2)


def job_bodies(wanted: NASExperiment, image: str) -> list[dict[str, Any]]:
    """Return the Jobs of a search at random: of any other it is not known before what it draws."""
    spec = wanted.spec
    space = search_space(spec.search_space)
    policy = make_policy(SearcherSpec.model_validate({"random": {}}), space)
    location = StoreLocation(s3=s3_location(wanted))
    inputs = [
        trainer_input(wanted, location, sample, 1, space.decode(policy.propose(sample).choices))
        for sample in range(spec.budget.samples)
    ]
    together = spec.trainer.children_per_pod
    packs = [tuple(inputs[first : first + together]) for first in range(0, len(inputs), together)]
    return [child_job(wanted, launch, pack, image) for launch, pack in enumerate(packs)]


@dataclass(frozen=True)
class Process:
    """A live process, measured from outside."""

    pid: int

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        fields = stat[stat.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_mib(self) -> float:
        """What is resident now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE_MIB


def components(kubeconfig: Path) -> dict[str, Process]:
    """Return the processes of a control plane by name: etcd, apiserver, controller-manager, scheduler, kwok."""
    record = json.loads((kubeconfig.parent / "cluster.json").read_text(encoding="utf-8"))
    return {process["name"]: Process(process["pid"]) for process in record["processes"]}


class S3Server:
    """versitygw over a temporary folder; a context, in which boto3 finds its address and its keys."""

    def __init__(self) -> None:
        """Prepare."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nas-operator" / "bin"
        found = sorted(cache.glob("versitygw-*/versitygw"))
        if not found:
            raise SystemExit("no versitygw: `python3 -m hack.cluster build` makes it")
        self._program = found[-1]

    def __enter__(self) -> Self:
        """Start the server and make the bucket."""
        self._folder = TemporaryDirectory()
        root = Path(self._folder.name)
        self._log = root / "access.log"
        for name in ("data", "metadata"):
            (root / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        keys = {"AWS_ACCESS_KEY_ID": "bench-access-key", "AWS_SECRET_ACCESS_KEY": "bench-secret-key"}
        os.environ.update(keys)
        self.endpoint = f"http://127.0.0.1:{port}"
        access, secret = keys.values()
        command = [self._program, "--port", f"127.0.0.1:{port}", "--access", access, "--secret", secret, "--quiet"]
        command += ["--access-log", self._log, "posix", "--sidecar", root / "metadata", root / "data"]
        self._server = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        self.process = Process(self._server.pid)
        client = boto3.session.Session().client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and remove what it has kept."""
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()

    @property
    def storage(self) -> dict[str, Any]:
        """``spec.storage`` of experiments that keep everything here."""
        return {"s3": {"bucket": BUCKET, "endpoint": self.endpoint}}

    def requests(self) -> Counter[str]:
        """Return how often controllers have asked so far, by operation."""
        return controllers_requests(self._log.read_text(encoding="utf-8"))


def controllers_requests(log: str) -> Counter[str]:
    """Return how many requests controllers have made, by operation and part of the prefix, such as ``GetObject log``.

    Args:
        log: an access log in the format of S3's own, with versitygw's names of operations.
    """
    counts: Counter[str] = Counter()
    for line in log.splitlines():
        if f" app/{_CONTROLLER_APP} " in line:
            operation, key = line.split()[7:9]
            part = next((part for part in _PARTS if f"/{part}/" in key), "other")
            counts[f"{operation.removeprefix('s3_')} {part}"] += 1
    return counts


class Trainers:
    """Puts the results of all children into the store as their Jobs are created: nobody knows before what is drawn.

    What they cost is the bench's own and in every arm alike: one watch of Jobs, and one S3 request a child.
    """

    def __init__(self, client: KubeClient, experiment: NASExperiment) -> None:
        """Prepare for the children of one experiment."""
        self._store = S3Store(s3_location(experiment))
        self._pool = ThreadPoolExecutor(_THREADS)
        self._reflector = Reflector(
            client,
            JOBS,
            experiment.metadata.namespace,
            self._on_job,
            label_selector=f"{names.LABEL_EXPERIMENT_UID}={experiment.metadata.uid}",
        )
        self.created: dict[str, float] = {}
        """When a Job was seen first (monotonic seconds), by name, in that order."""

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._reflector.start()
        self._reflector.wait_synced(30.0)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._reflector.stop()
        self._pool.shutdown()

    def _on_job(self, kind: EventType, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        if kind is EventType.ADDED and name not in self.created:
            self.created[name] = time.monotonic()
            self._pool.submit(self._train, job)

    def _train(self, job: dict[str, Any]) -> None:
        containers = job["spec"]["template"]["spec"]["containers"]
        environment = next(item["env"] for item in containers if item["name"] == names.TRAINER_CONTAINER)
        document = next(item["value"] for item in environment if item["name"] == names.ENV_TRAINER_INPUT)
        for asked in read_trainer_document(document):
            result = Result(
                sample=asked.sample,
                attempt=asked.attempt,
                architecture=asked.architecture.digest,
                metrics={"accuracy": asked.sample % 97 / 97},
            )
            self._store.put_if_absent(names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode())


class ControllerProcess:
    """The controller of an experiment in a process of its own, as its pod runs it; see ``counted_controller``."""

    def __init__(self, kubeconfig: Path, experiment: NASExperiment, every: int) -> None:
        """Start it; it tells its costs at every so many observed samples."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "NAS_NAMESPACE": experiment.metadata.namespace,
            "NAS_EXPERIMENT": experiment.metadata.name,
            "NAS_UID": experiment.metadata.uid,
            "NAS_TRAINER_IMAGE": "trainer:1",
            _APP_VARIABLE: _CONTROLLER_APP,
        }
        command = [sys.executable, str(Path(__file__).with_name("counted_controller.py")), str(every)]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def costs(self) -> Iterator[dict[str, Any]]:
        """Yield what it tells, until it ends.

        Raises:
            SystemExit: it ended otherwise than after its search.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        if (code := self._process.wait()) != 0:
            raise SystemExit(f"the controller ended with code {code}")

    def kill(self) -> None:
        """End it as a lost node does, if it has not ended."""
        self._process.kill()
        self._process.wait()
