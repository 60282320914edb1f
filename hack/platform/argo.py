"""Argo Workflows: its controller, and the executor that runs in each step's pod and has kubectl compiled in."""

import json
import subprocess
from pathlib import Path

from hack.cluster import binaries, images
from hack.cluster.errors import ClusterError
from hack.cluster.paths import TOOLS
from hack.platform.cluster import Cluster, manifest

VERSION = binaries.BINARIES["workflow-controller"].version
NAMESPACE = "argo"
EXECUTOR_ROLE = "argo-executor"
_CRDS = binaries.BINARIES["workflow-controller"].path.with_name("crds.yaml")


def _keep_definitions() -> None:
    """Write the module's CustomResourceDefinitions beside its program, for Go's own cache may be emptied."""
    if _CRDS.exists():
        return
    command = ["go", "mod", "download", "-json", "github.com/argoproj/argo-workflows/v3"]
    listed = subprocess.run(command, cwd=TOOLS / "argo", capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise ClusterError(f"the module of Argo Workflows cannot be read: {listed.stderr.strip()}")
    files = sorted(Path(json.loads(listed.stdout)["Dir"]).glob("manifests/base/crds/minimal/argoproj.io_*.yaml"))
    temporary = _CRDS.with_suffix(".tmp")
    temporary.write_text("---\n".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    temporary.rename(_CRDS)


def make() -> dict[str, Path]:
    """Build what is missing; return the archives of its images by their references.

    Raises: ClusterError for a failed build.
    """
    made = {}
    for program in ("workflow-controller", "argoexec"):
        reference = f"localhost/{program}:v{VERSION}"
        # Argo names them without a folder, so they must be on PATH.
        made[reference] = images.of_program(reference, program, place=f"/bin/{program}")
    _keep_definitions()
    return made


def install(cluster: Cluster) -> None:
    """Install the controller for all namespaces, and wait until it runs."""
    cluster.make_namespace(NAMESPACE)
    cluster.apply(_CRDS.read_text(encoding="utf-8"))
    cluster.run("kubectl", "wait", "--for=condition=Established", "crd/workflows.argoproj.io", "--timeout=60s")
    cluster.apply(manifest("argo", VERSION=VERSION))
    cluster.await_deployment(NAMESPACE, "workflow-controller")
