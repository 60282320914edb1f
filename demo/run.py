"""`make demo`, `make paper` and `make down`: whole searches on a real cluster, from sources to the best architecture.

Standard library only, so that it runs before anything is installed. Three places to run (CLUSTER=...):

- ``built``: a cluster that hack/cluster builds from sources on this machine; Linux and root.
- ``kind``: kind on a Docker engine. The same steps; not tried by this project's own checks, which have no Docker.
- ``current``: the cluster of the current kubeconfig context. Its nodes must be able to pull the images:
  NAS_REGISTRY and NAS_TAG say where they are.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "nas-operator"
MANIFEST = ROOT / "examples" / "digits.yaml"
PAPER = ROOT / "examples" / "paper"
NAMESPACE = "nas-demo"
EXPERIMENT = "digits"
NAME = "demo"
RELEASE = "nas-operator"
SEARCH_SECONDS = 1800
COMPONENTS = ("operator", "controller", "trainer")
# What goes into each image beside the Dockerfile; its tag follows from it, so that no node ever runs a stale one.
SOURCES = {
    "operator": ("operator.txt", "api/nas_api", "kube/nas_kube", "operator/nas_operator"),
    "controller": (
        "controller.txt",
        "api/nas_api",
        "store/nas_store",
        "log/nas_log",
        "report/nas_report",
        "kube/nas_kube",
        "controller_image/nas_controller",
    ),
    "trainer": ("controller.txt", "trainer.txt", "api/nas_api", "store/nas_store", "trainer_image/nas_trainer"),
}
TORCH = ("torch-cpu", "torch-pypi")
VERSITYGW = "1.8.0"


class DemoError(Exception):
    """A step failed; the message says which and shows its last words."""


class SearchFailedError(DemoError):
    """An experiment has ended as Failed; the message is its condition's."""


@cache
def image_tag(component: str) -> str:
    """Return twelve hex digits of everything that goes into an image."""
    digest = hashlib.sha256()
    places = ["Dockerfile", "hack/torch_source.py", *(f"requirements/{name}.txt" for name in ("uv", *TORCH))]
    places += [f"requirements/{place}" if place.endswith(".txt") else place for place in SOURCES[component]]
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass
class Steps:
    """Runs named steps and prints how long each took."""

    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def step(self, title: str, action: Callable[[], object]) -> None:
        """Run a step.

        Raises:
            DemoError: it failed.
        """
        self.say(f"==> {title}")
        start = time.monotonic()
        action()
        self.say(f"    {title}: {time.monotonic() - start:.1f} s")


# hack/cluster's own lines, among those of the programs that it runs.
_PROGRESS = re.compile(r"\[ *[0-9.]+s\] ")


def run(
    *words: str, environment: Mapping[str, str] | None = None, quiet: bool = False, only: re.Pattern[str] | None = None
) -> str:
    """Run a command from the repository's root and return its standard output, which is shown too unless quiet.

    Args:
        only: show no other lines than those that match at their beginning.

    Raises:
        DemoError: it ended with another status than 0, or does not exist.
    """
    everything = {**os.environ, **(environment or {})}
    lines = []
    try:
        if quiet:
            done = subprocess.run(words, cwd=ROOT, env=everything, capture_output=True, text=True, check=False)
            out, errors, status = done.stdout, done.stderr, done.returncode
        else:
            with subprocess.Popen(
                words, cwd=ROOT, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line)
                    if only is None or only.match(line):
                        print("    " + line, end="", flush=True)
            # With a filter the reason for a failure has not been shown yet.
            out, errors, status = "".join(lines), "" if only is None else "".join(lines[-20:]), process.returncode
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]} is not installed or not on PATH") from error
    if status != 0:
        raise DemoError(f"`{' '.join(words)}` ended with {status}\n{errors or (out if quiet else '')}".strip())
    return out


class Built:
    """The cluster that hack/cluster builds on this machine, named ``name``."""

    def __init__(self, name: str, audit_log: Path | None = None) -> None:
        """Nothing is done yet.

        Args:
            audit_log: where a line for each API request is to go.
        """
        self.name = name
        self.audit_log = audit_log
        self._environment: dict[str, str] = {}

    def _cluster(self, *words: str, quiet: bool = False) -> str:
        return run(sys.executable, "-m", "hack.cluster", *words, quiet=quiet, only=_PROGRESS)

    def prepare(self, steps: Steps) -> None:
        """Build the programs, start the cluster, build the images and load them."""
        steps.step("programs, from Go modules (cached)", lambda: self._cluster("build"))
        audit = [] if self.audit_log is None else ["--audit-log", str(self.audit_log)]
        steps.step("cluster with a real node", lambda: self._cluster("up", "--name", self.name, *audit))
        steps.step("images, built and loaded", self.load_images)

    def load_images(self) -> None:
        """Build each image and load it into the node; what is there already is kept."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas-operator" / "images"
        for component in COMPONENTS:
            image, tag = f"localhost/nas-{component}", image_tag(component)
            prefix = image.replace("/", "_")
            archives = list(cache.glob(f"{prefix}_{tag}@*.tar"))
            if archives:
                self._cluster("load-image", "--name", self.name, str(archives[0]))
            else:
                self._cluster("image", "--name", self.name, component, f"{image}:{tag}")
            for old in set(cache.glob(f"{prefix}_*.tar")) - set(cache.glob(f"{prefix}_{tag}@*.tar")):
                old.unlink()
        s3 = cache / f"s3-{VERSITYGW}.tar"
        if not s3.exists():
            self._cluster("image-from-binary", f"localhost/nas-s3:{VERSITYGW}", "versitygw", str(s3))
        self._cluster("load-image", "--name", self.name, str(s3))

    def values(self) -> list[str]:
        """Return the chart's values that name the images."""
        tags = [f"images.{component}.tag={image_tag(component)}" for component in COMPONENTS]
        s3 = f"embeddedS3.image.repository=localhost/nas-s3,embeddedS3.image.tag={VERSITYGW}"
        return [*tags, s3, "embeddedS3.image.command=/versitygw"]

    def environment(self) -> dict[str, str]:
        """Return what kubectl and helm need in their environment."""
        if not self._environment:
            code = "import json, os; print(json.dumps(dict(os.environ)))"
            text = self._cluster("run-with", "--name", self.name, "--", sys.executable, "-c", code, quiet=True)
            self._environment = {
                key: value for key, value in json.loads(text).items() if key in ("KUBECONFIG", "KUBECACHEDIR", "PATH")
            }
        return self._environment

    def down(self) -> None:
        """Remove the cluster."""
        self._cluster("down", "--name", self.name)


class Kind:
    """kind on a Docker engine."""

    def __init__(self, name: str) -> None:
        self.name = f"nas-{name}"

    def prepare(self, steps: Steps) -> None:
        """Start the cluster, build the images and load them."""
        if self.name not in run("kind", "get", "clusters", quiet=True).split():
            steps.step("kind cluster", lambda: run("kind", "create", "cluster", "--name", self.name))
        steps.step("images, built and loaded", self.load_images)

    def load_images(self) -> None:
        """Build each image with Docker and load it."""
        for component in COMPONENTS:
            reference = f"localhost/nas-{component}:{image_tag(component)}"
            run("docker", "build", "--target", component, "--tag", reference, ".")
            run("kind", "load", "docker-image", "--name", self.name, reference)

    def values(self) -> list[str]:
        """Return the chart's values that name the images; the embedded S3's is pulled."""
        return [f"images.{component}.tag={image_tag(component)}" for component in COMPONENTS]

    def environment(self) -> dict[str, str]:
        """Return what kubectl and helm need in their environment."""
        kubeconfig = ROOT / "build" / f"{self.name}.kubeconfig"
        if not kubeconfig.exists():
            kubeconfig.parent.mkdir(exist_ok=True)
            run("kind", "export", "kubeconfig", "--name", self.name, "--kubeconfig", str(kubeconfig), quiet=True)
        return {"KUBECONFIG": str(kubeconfig)}

    def down(self) -> None:
        """Remove the cluster."""
        run("kind", "delete", "cluster", "--name", self.name)


class Current:
    """The cluster of the current kubeconfig context."""

    def prepare(self, steps: Steps) -> None:
        """Say which cluster it is; nothing is built."""
        steps.say(f"using the current context, {run('kubectl', 'config', 'current-context', quiet=True).strip()}")

    def values(self) -> list[str]:
        """Return the chart's values that name the images.

        Raises:
            DemoError: NAS_REGISTRY is not set.
        """
        registry = os.environ.get("NAS_REGISTRY")
        if not registry:
            raise DemoError("CLUSTER=current needs NAS_REGISTRY (and NAS_TAG), where the cluster can pull the images")
        values = [f"images.registry={registry}"]
        return values + ([f"images.tag={os.environ['NAS_TAG']}"] if os.environ.get("NAS_TAG") else [])

    def environment(self) -> dict[str, str]:
        """Return nothing: the user's own environment stands."""
        return {}

    def down(self) -> None:
        """Remove the release and its namespace; the cluster and the CRD stay."""
        run("helm", "uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found")
        run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found")


Place = Built | Kind | Current


def choose(wanted: str, name: str) -> Place:
    """Return where to run.

    Raises:
        DemoError: nothing fits this machine; the message names the choices.
    """
    docker = (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )
    if wanted == "kind" or (not wanted and docker and shutil.which("kind")):
        return Kind(name)
    if wanted == "built" or (not wanted and sys.platform == "linux" and os.geteuid() == 0):
        return Built(name)
    if wanted == "current":
        return Current()
    raise DemoError(
        "choose where to run: CLUSTER=kind (a Docker engine and kind), CLUSTER=built (root on Linux, builds Kubernetes "
        "from sources), or CLUSTER=current (your kubeconfig's cluster, with NAS_REGISTRY)"
    )


def install(place: Place, namespace: str, *more: str) -> None:
    """Install or upgrade the chart, with the embedded S3, into a namespace that enforces the restricted standard.

    Args:
        more: further words for helm.
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
            *("helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", namespace),
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


def twins() -> list[str]:
    """Return the names of the small twins of the paper's rows."""
    return sorted(path.stem for path in PAPER.glob("*-small.yaml"))


def in_order(wanted: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """Return what to run: each once, and what another takes its architecture from before all, wanted or not.

    Args:
        sources: by experiment, where its architecture comes from; one that searches itself is not in it.
    """
    needed = [sources[name] for name in wanted if name in sources]
    return list(dict.fromkeys([*needed, *wanted]))


COLUMNS = (
    *("twin", "samples", "first 20, last 20", "best of the search", "final trainings"),
    *("validation", "test", "tau", "wall time"),
)


def row(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a complete experiment's status says in the COLUMNS; empty where it says nothing.

    Metrics have four significant digits, rewards two. The wall time is that from its creation to its completion.
    """
    status = experiment["status"]
    samples, policy, final = (status.get(part, {}) for part in ("samples", "policy", "final"))

    def number(value: str | None, digits: int) -> str:
        return "" if value is None else f"{float(value):#.{digits}g}"

    rewards = [number(policy.get(key), 2) for key in ("firstMeanReward", "meanReward") if samples["observed"] >= 20]
    tau = number(final.get("kendallTau"), 2)
    if "kendallLow" in final:
        tau += f" ({number(final['kendallLow'], 2)} to {number(final.get('kendallHigh'), 2)})"
    ended = next(condition for condition in status["conditions"] if condition["type"] == "Complete")
    times = (experiment["metadata"]["creationTimestamp"], ended["lastTransitionTime"])
    began, completed = (datetime.fromisoformat(time) for time in times)
    return (
        experiment["metadata"]["name"],
        f"{samples['observed']}" + (f", {samples['lost']} lost" if samples.get("lost") else ""),
        ", ".join(filter(None, rewards)),
        f"{experiment['spec']['objective']['metric']} {number(status['best']['metric'], 4)}",
        f"{final.get('trained', '')}" + (f", {final['lost']} lost" if final.get("lost") else ""),
        number(final.get("bestMetric"), 4),
        number(final.get("testMetric"), 4),
        tau,
        f"{(completed - began).total_seconds():.0f} s",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows under the COLUMNS as a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [COLUMNS, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def paper(place: Place, steps: Steps, wanted: Sequence[str]) -> None:
    """Run small twins of the paper's rows one after the other and print a table of them, also when interrupted.

    One that is complete already is not run again. After one that failed the others go on.

    Args:
        wanted: their names.

    Raises:
        DemoError: some failed, named with their reasons; or one did not end, and those behind it were not begun.
    """
    experiments = {name: Demo(place, steps, PAPER / f"{name}.yaml", name) for name in twins()}
    sources = {name: source for name in wanted if (source := experiments[name].source()) is not None}
    names = in_order(wanted, sources)
    rows: list[tuple[str, ...]] = []
    failed: dict[str, str] = {}
    try:
        for count, name in enumerate(names, 1):
            if sources.get(name) in failed:
                failed[name] = f"{name} was not run: it needs the architecture of {sources[name]}"
                continue
            try:
                steps.step(f"{name}, {count} of {len(names)}", partial(experiments[name].search, keep=True))
            except SearchFailedError as error:
                failed[name] = str(error)
            else:
                rows.append(row(experiments[name].experiment()))
    finally:
        if rows:
            print(f"\n{table(rows)}\n", flush=True)
    if failed:
        raise DemoError("\n  ".join([f"{len(failed)} of {len(names)} twins have no result", *failed.values()]))


def main() -> int:
    """Run the demonstration or the paper's twins, or remove them; return the exit status."""
    parser = argparse.ArgumentParser(description="Whole searches on a real cluster.")
    parser.add_argument("command", choices=["demo", "paper", "down", "images"])
    parser.add_argument(
        "twins", nargs="*", metavar="TWIN", help="for paper: which of examples/paper (default: every *-small.yaml)"
    )
    parser.add_argument("--cluster", default=os.environ.get("CLUSTER", ""), choices=["", "built", "kind", "current"])
    parser.add_argument("--name", default=NAME, help="name of the cluster (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.twins and arguments.command != "paper":
        parser.error(f"{arguments.command} takes no names of twins")
    steps = Steps()
    try:
        if unknown := sorted(set(arguments.twins) - set(twins())):
            raise DemoError(f"no twin is named {', '.join(unknown)}: choose from {', '.join(twins())}")
        place = choose(arguments.cluster, arguments.name)
        if arguments.command == "down":
            place.down()
            return 0
        if arguments.command == "images":
            if isinstance(place, Current):
                raise DemoError("images are built for CLUSTER=built or CLUSTER=kind")
            steps.step("images, built and loaded", place.load_images)
            return 0
        demo = Demo(place, steps)
        place.prepare(steps)
        steps.step("chart with an embedded S3", demo.install)
        if arguments.command == "paper":
            paper(place, steps, arguments.twins or twins())
        else:
            steps.step("search", demo.search)
            demo.show()
        steps.say("done; `make down` removes the cluster")
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on, `make down` removes the cluster", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
