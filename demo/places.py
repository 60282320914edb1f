"""Where the demonstration runs: three kinds of cluster (CLUSTER=...), and how the images get there.

- ``built``: a cluster that hack/cluster builds from sources on this machine; Linux and root.
- ``kind``: kind on a Docker engine. The same steps; not tried by this project's own checks, which have no Docker.
- ``current``: the cluster of the current kubeconfig context. Its nodes must be able to pull the images:
  NAS_REGISTRY and NAS_TAG say where they are.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hack.cluster import binaries, images, lifecycle
from hack.cluster import instance as instances

from demo.images import COMPONENTS, image_tag, wanted
from demo.steps import ROOT, DemoError, Steps, run

NAMESPACE = "nas-demo"
RELEASE = "nas-operator"
VERSITYGW = binaries.BINARIES["versitygw"].version


class Built:
    """The cluster that hack/cluster builds on this machine, named ``name``."""

    def __init__(self, name: str, audit_log: Path | None = None) -> None:
        """Nothing is done yet.

        Args:
            audit_log: where a line for each API request is to go.
        """
        self.name = name
        self.audit_log = audit_log

    def prepare(self, steps: Steps) -> None:
        """Build the programs, start the cluster, build the images and load them."""
        self.up(steps)
        steps.step("images, built and loaded", self.load_images)

    def up(self, steps: Steps) -> None:
        """Build the programs and start the cluster, with nothing of ours on it."""
        audit = "" if self.audit_log is None else str(self.audit_log)
        wanted = lifecycle.Wanted(self.name, node=True, kwok_nodes=0, tuned=False, audit_log=audit)
        steps.step("programs, from Go modules (cached)", lambda: binaries.ensure(binaries.DEFAULT))
        steps.step("cluster with a real node", lambda: lifecycle.up(wanted))

    def load_images(self) -> None:
        """Build each image and load it into the node; what is there already is kept."""
        cluster = instances.load_existing(self.name)
        for component in wanted(os.environ):
            reference = f"localhost/nas-{component}:{image_tag(component)}"
            archive = images.built(reference) or images.build(component, reference, only="torch: ")
            images.load_if_new(cluster, reference, archive)
            images.forget_other_tags(reference)
        reference = f"localhost/nas-s3:{VERSITYGW}"
        images.load_if_new(cluster, reference, images.of_program(reference, "versitygw"))

    def values(self) -> list[str]:
        """Return the chart's values that name the images."""
        tags = [f"images.{component}.tag={image_tag(component)}" for component in COMPONENTS]
        s3 = f"embeddedS3.image.repository=localhost/nas-s3,embeddedS3.image.tag={VERSITYGW}"
        return [*tags, s3, "embeddedS3.image.command=/versitygw"]

    def environment(self) -> dict[str, str]:
        """Return what kubectl and helm need in their environment."""
        return lifecycle.environment(instances.load_existing(self.name))

    def down(self) -> None:
        """Remove the cluster."""
        lifecycle.down(self.name)


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
        for component in wanted(os.environ):
            reference = f"localhost/nas-{component}:{image_tag(component)}"
            # An argument without a value is taken from the environment, if it is there.
            run("docker", "build", "--build-arg", "TORCH_INDEX", "--target", component, "--tag", reference, ".")
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
