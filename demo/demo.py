"""The demonstration: the chart with an embedded S3, one search, and what it has found."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.places import NAMESPACE, RELEASE, Place
from demo.steps import ROOT, DemoError, SearchFailedError, Steps, run

CHART = ROOT / "helm" / "nas-operator"
MANIFEST = ROOT / "examples" / "digits.yaml"
EXPERIMENT = "digits"
SEARCH_SECONDS = 1800


def install(place: Place, namespace: str, *more: str, chart: Path = CHART) -> None:
    """Install or upgrade the chart, with the embedded S3, into a namespace that enforces the restricted standard.

    Args:
        more: further words for helm.
        chart: its folder.
    """
    environment = place.environment()
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
    subprocess.run(
        ["kubectl", "apply", "-f", "-"],
        input=json.dumps(body),
        text=True,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    _forget_interrupted(namespace, environment)
    # As strings: a tag of digits only would become a number.
    values = [word for value in place.values() for word in ("--set-string", value)]
    try:
        run(
            *("helm", "upgrade", "--install", RELEASE, str(chart), "--namespace", namespace),
            *("--wait", "--timeout", "3m", *values, "--set", "embeddedS3.enabled=true", *more),
            environment=environment,
            quiet=True,
        )
    except DemoError as error:
        # helm says that the time is up; why, only the pods know.
        raise DemoError("\n".join([str(error), *_unready(namespace, environment)])) from error


def _unready(namespace: str, environment: Mapping[str, str]) -> list[str]:
    """Return a line for each container that waits, with the kubelet's words."""
    listed = run("kubectl", "get", "pods", "-n", namespace, "-o", "json", environment=environment, quiet=True)
    lines = []
    for pod in json.loads(listed)["items"]:
        for container in pod["status"].get("containerStatuses", ()):
            if waiting := container["state"].get("waiting"):
                words = f"{waiting.get('reason', 'waiting')}: {waiting.get('message', '')}"
                lines.append(f"pod {pod['metadata']['name']}, image {container['image']}: {words}")
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                lines.append(f"pod {pod['metadata']['name']}: {condition.get('message', 'not scheduled')}")
    return lines


def _forget_interrupted(namespace: str, environment: Mapping[str, str]) -> None:
    """Remove a release whose helm was killed half way: helm itself would refuse to go on."""
    listed = run("helm", "list", "--all", "-o", "json", "-n", namespace, environment=environment, quiet=True)
    if any(release["status"].startswith("pending") for release in json.loads(listed)):
        run("helm", "uninstall", RELEASE, "-n", namespace, environment=environment, quiet=True)


class Demo:
    """The demonstration on one cluster."""

    def __init__(self, place: Place, steps: Steps, manifest: Path = MANIFEST, experiment: str = EXPERIMENT) -> None:
        """Prepare it.

        Args:
            manifest: the file to apply.
            experiment: the name that it gives.
        """
        self.place = place
        self.steps = steps
        self.manifest = manifest
        self.name = experiment

    def kubectl(self, *words: str, quiet: bool = True) -> str:
        """Run kubectl in the demonstration's namespace."""
        return run("kubectl", "-n", NAMESPACE, *words, environment=self.place.environment(), quiet=quiet)

    def install(self) -> None:
        """Install the chart and show its pods."""
        install(self.place, NAMESPACE)
        self.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={RELEASE}", quiet=False)

    def search(self, keep: bool = False) -> None:
        """Apply the example and follow it to its end; one that has ended is deleted before.

        Args:
            keep: leave one that is complete as it is, unless its manifest has changed.

        Raises:
            SearchFailedError: it failed.
            DemoError: it did not end in 30 minutes.
        """
        there = self.kubectl("get", "nas", self.name, "--ignore-not-found") != ""
        if there and self._ended() and not (keep and self._complete_as_written()):
            self.kubectl("delete", "nas", self.name)
        self.kubectl("apply", "-f", str(self.manifest), quiet=False)
        self.steps.say("    kubectl get nas --watch:")
        deadline = time.monotonic() + SEARCH_SECONDS
        while not self._ended():
            self._watch(deadline)
            if time.monotonic() > deadline:
                raise DemoError(f"the experiment did not end: {json.dumps(self.experiment().get('status'), indent=1)}")
        status = self.experiment()["status"]
        kind = status["state"]
        message = next(condition["message"] for condition in status["conditions"] if condition["type"] == kind)
        self.steps.say(f"    {kind}: {message}")
        if kind == "Failed":
            raise SearchFailedError(f"{self.name} failed: {message}")

    def _ended(self) -> bool:
        return self.experiment().get("status", {}).get("state") in ("Complete", "Failed")

    def _complete_as_written(self) -> bool:
        if self.experiment()["status"]["state"] != "Complete":
            return False
        return "unchanged" in self.kubectl("apply", "--dry-run=server", "-f", str(self.manifest))

    def source(self) -> str | None:
        """Return the experiment whose architecture the manifest asks for, where it searches for none itself."""
        manifest = json.loads(self.kubectl("create", "--dry-run=client", "-o", "json", "-f", str(self.manifest)))
        name: str | None = manifest["spec"]["searchSpace"].get("fixed", {}).get("experiment")
        return name

    def _watch(self, deadline: float) -> None:
        """Print what kubectl shows of the experiment until its end, the deadline or the end of the watch."""
        words = ("kubectl", "-n", NAMESPACE, "get", "nas", self.name, "--watch")
        environment = {**os.environ, **self.place.environment()}
        shown = ""
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            timer = threading.Timer(deadline - time.monotonic(), process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                # The age would make every line new.
                row = line.rstrip().rsplit(None, 1)[0]
                if row != shown:
                    self.steps.say(f"    {row}")
                    shown = row
                if set(row.split()[1:2]) & {"Complete", "Failed"}:
                    break
            timer.cancel()
            process.kill()

    def experiment(self) -> dict[str, Any]:
        """Return the experiment as the API server has it."""
        document: dict[str, Any] = json.loads(self.kubectl("get", "nas", self.name, "-o", "json"))
        return document

    def show(self) -> None:
        """Print the best architecture, its accuracy, the policy's progress and the pods."""
        status = self.experiment()["status"]
        program = ROOT / ".venv" / "bin" / "nas"
        if program.exists():
            run(
                str(program),
                *("best", self.name, "--namespace", NAMESPACE),
                environment=self.place.environment(),
            )
        best, policy, samples = status["best"], status.get("policy", {}), status["samples"]
        print(f"\n  best architecture   sample {best['sample']}: {best['architecture']}")
        print(f"  accuracy            {best['metric']} (reward {best['reward']})")
        if "firstMeanReward" in policy and "meanReward" in policy:
            print(
                f"  policy's progress   mean reward {policy['meanReward']} over the last 20 samples, "
                f"{policy['firstMeanReward']} over the first 20"
            )
        print(
            f"  samples             {samples['observed']} observed, {samples.get('lost', 0)} lost, "
            f"{samples.get('retried', 0)} launched again\n"
        )
        print(f"  pods, all admitted by the `restricted` Pod Security Standard that {NAMESPACE} enforces:")
        rows = self.kubectl("get", "pods", "-L", "nas-operator.io/role,nas-operator.io/sample").splitlines()
        trainers = [row for row in rows if " trainer " in row]
        for row in (*(row for row in rows if row not in trainers), *trainers[:3]):
            print(f"    {row}")
        print(f"    ... and {len(trainers) - 3} trainers more\n" if len(trainers) > 3 else "")
