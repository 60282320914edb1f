"""One real cluster with a node, the images, the chart and its embedded S3, shared by all end-to-end tests.

``NAS_E2E_CLUSTER=demo`` uses what `make demo` has left, as it is, and leaves it up: quicker while writing tests.
"""

import base64
import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from demo.demo import CHART, MANIFEST, install
from demo.images import image_tag
from demo.places import NAMESPACE, Built
from demo.steps import Steps
from hack.cluster import deps, leftovers
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import S3Location
from nas_api.child_job import s3_location
from nas_api.experiment import NASExperiment
from nas_log.log import read_log
from nas_log.records import Record
from nas_store import Store
from nas_store.s3 import S3Store

Document = dict[str, Any]
SEARCH_HANG_SECONDS = 1800.0
"""As HANG_SECONDS, for what waits for a search: a slow machine trains a child in half a minute."""


@dataclass(frozen=True)
class World:
    """The cluster, as tests see it."""

    place: Built
    environment: dict[str, str]

    @property
    def endpoint(self) -> str:
        """URL of the embedded S3 from this machine: its pod's, on the node's bridge.

        Not the Service's: a packet to that address follows the default route wherever kube-proxy's rules do not
        catch it, and would leave the machine.
        """
        template = "jsonpath={.items[0].status.podIP}"
        address = self.kubectl("get", "pods", "-l", "app.kubernetes.io/component=s3", "-o", template)
        return f"http://{address}:7070"

    def kubectl(self, *words: str, stdin: str | None = None, namespace: str = NAMESPACE) -> str:
        """Run kubectl and return its output; a failure fails the test."""
        done = self.try_kubectl(*words, stdin=stdin, namespace=namespace)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def try_kubectl(
        self, *words: str, stdin: str | None = None, namespace: str = NAMESPACE
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what became of it."""
        command = ["kubectl", "-n", namespace, *words]
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": HANG_SECONDS}
        return subprocess.run(command, env=self.environment, input=stdin, **options)

    def helm(self, *words: str) -> str:
        """Run helm and return its output; a failure fails the test."""
        command = ["helm", *words, "--namespace", NAMESPACE, "--timeout", f"{HANG_SECONDS:.0f}s"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def apply(self, document: Document) -> None:
        """Create or change an object."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document), namespace=document["metadata"]["namespace"])

    def items(self, kinds: str, selector: str = "", namespace: str = NAMESPACE) -> list[Document]:
        """Return the objects of some kinds, also those that are being deleted."""
        words = ["-l", selector] if selector else []
        found: list[Document] = json.loads(self.kubectl("get", kinds, *words, "-o", "json", namespace=namespace))[
            "items"
        ]
        return found

    def experiment(self, name: str, namespace: str = NAMESPACE) -> Document:
        """Return an experiment."""
        document: Document = json.loads(self.kubectl("get", "nas", name, "-o", "json", namespace=namespace))
        return document

    def conditions(self, name: str, namespace: str = NAMESPACE) -> dict[str, Document]:
        """Return an experiment's conditions by type."""
        status = self.experiment(name, namespace).get("status", {})
        return {item["type"]: item for item in status.get("conditions", ())}

    def install(self, *more: str, chart: Path = CHART) -> None:
        """Install or upgrade the release."""
        install(self.place, NAMESPACE, "--timeout", f"{HANG_SECONDS:.0f}s", *more, chart=chart)

    def patch(self, name: str, spec: Document, namespace: str = NAMESPACE) -> None:
        """Change some fields of an experiment's spec."""
        self.kubectl("patch", "nas", name, "--type=merge", "-p", json.dumps({"spec": spec}), namespace=namespace)

    def propose_no_more(self, name: str) -> None:
        """Spend an experiment's budget: it is complete when what is open has ended.

        A test that must do something before a search ends lets it begin with a budget that no machine spends meanwhile.
        """
        self.patch(name, {"budget": {"samples": 1}})

    def wait_complete(self, name: str, namespace: str = NAMESPACE) -> Document:
        """Return an experiment's status once it is Complete; fail when it is Failed."""

        def done() -> bool:
            conditions = self.conditions(name, namespace)
            assert conditions.get("Failed", {}).get("status") != "True", conditions["Failed"]
            return conditions.get("Complete", {}).get("status") == "True"

        self.eventually(done, lambda: self.experiment(name, namespace).get("status"))
        status: Document = self.experiment(name, namespace)["status"]
        return status

    def eventually(self, check: Callable[[], Any], show: Callable[[], Any]) -> Any:
        """Return the first true value of ``check``; fail with what ``show`` returns when none comes."""
        shown = lambda: json.dumps(show(), indent=1, default=str)  # noqa: E731
        return eventually(check, message=shown, seconds=SEARCH_HANG_SECONDS)

    def objects(self, document: Document) -> list[str]:
        """Return the keys below an experiment's prefix, relative to it."""
        location = self.location(document)
        found: list[str] = []
        for page in self.s3().get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix):
            found += [item["Key"].removeprefix(location.prefix) for item in page.get("Contents", ())]
        return found

    def store(self, document: Document, monkeypatch: pytest.MonkeyPatch) -> Store:
        """Return where an experiment keeps everything, as it is reached from this machine."""
        for key, value in self.keys().items():
            monkeypatch.setenv(key, value)
        return S3Store(self.location(document).model_copy(update={"endpoint": self.endpoint}))

    def log(self, document: Document, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
        """Return an experiment's log, read through the store and checked for gaps and changed objects."""
        return read_log(self.store(document, monkeypatch))

    def s3(self) -> Any:
        """Return an S3 client of this machine."""
        keys = self.keys()
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )

    def requests(self, began: float) -> list[str]:
        """Return verb and address of every API request that our components have made since a time (epoch seconds).

        Empty when the cluster keeps no audit log.
        """
        if self.place.audit_log is None:
            return []
        ours = f"system:serviceaccount:{NAMESPACE}:"
        found = []
        for line in self.place.audit_log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            at = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
            if at >= began and event["user"]["username"].startswith(ours):
                found.append(f"{event['verb']} {event['requestURI'].partition('?')[0]}")
        return found

    def keys(self) -> dict[str, str]:
        """Return the embedded S3's keys."""
        data = json.loads(self.kubectl("get", "secret", "nas-s3", "-o", "json"))["data"]
        return {key: base64.b64decode(data[key]).decode() for key in names.CREDENTIAL_KEYS}

    @staticmethod
    def location(document: Document) -> S3Location:
        return s3_location(NASExperiment.model_validate(document, extra="ignore"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The cluster, up."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: a real node needs root, so no search was run end to end")
    deps.ensure(deps.ALL)
    kept = os.environ.get("NAS_E2E_CLUSTER")
    if not kept and leftovers.nft_tables():
        pytest.skip("this machine has a Kubernetes node already: `make down`, or NAS_E2E_CLUSTER=demo to use it")
    place = Built(kept) if kept else Built("e2e", tmp_path_factory.mktemp("audit") / "audit.log")
    try:
        if not kept:
            place.up(Steps())
        yield place
    finally:
        if not kept:
            place.down()


@pytest.fixture(scope="session")
def world(place: Built) -> World:
    """The cluster, up with everything installed."""
    world = World(place, {**os.environ, **place.environment()})
    if not os.environ.get("NAS_E2E_CLUSTER"):
        place.load_images()
        world.install()
    return world


def small(name: str, samples: int, *, namespace: str = NAMESPACE, **spec: Any) -> Document:
    """Return the example's manifest under another name, with fewer samples and some fields of its spec replaced."""
    document: Document = copy.deepcopy(yaml.safe_load(Path(MANIFEST).read_text(encoding="utf-8")))
    document["metadata"] = {"name": name, "namespace": namespace}
    document["spec"]["budget"] = {"samples": samples}
    document["spec"] |= copy.deepcopy(spec)
    return document


def distributed(world: World, name: str, **scripts: str) -> Document:
    """Return examples/distributed under another name, its program on a volume with the given further ones.

    The image is one with torch that the node has anyway; who applies it deletes the ConfigMap of its name as well.

    Args:
        scripts: Text of programs by name, without their ending.
    """
    example = Path("examples/distributed")
    found: Document = yaml.safe_load((example / "experiment.yaml").read_text(encoding="utf-8"))
    found["metadata"] = metadata = {"name": name, "namespace": NAMESPACE}
    programs = {"train": (example / "train.py").read_text(encoding="utf-8"), **scripts}
    data = {f"{program}.py": text for program, text in programs.items()}
    world.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    trainer = found["spec"]["trainer"]
    trainer |= {"image": f"localhost/nas-trainer:{image_tag('trainer')}", "command": ["torchrun", "/scripts/train.py"]}
    pod = trainer["template"]["spec"]
    pod["volumes"] = [{"name": "scripts", "configMap": {"name": name}}]
    (container,) = pod["containers"]
    container["volumeMounts"] = [{"name": "scripts", "mountPath": "/scripts"}]
    return found


@pytest.fixture
def experiment(world: World, request: pytest.FixtureRequest) -> Iterator[Callable[..., Document]]:
    """Return a function that starts a small experiment, deleted at the end of the test; it returns the manifest."""
    started: list[Document] = []

    def start(name: str, samples: int, **spec: Any) -> Document:
        document = small(name, samples, **spec)
        world.apply(document)
        started.append(document)
        return document

    yield start
    for document in started:
        name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        world.try_kubectl("delete", "nas", name, "--ignore-not-found", namespace=namespace)
