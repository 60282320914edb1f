"""Argo Workflows: its controller, and the executor that runs in each step's pod and has kubectl compiled in.

Both are built in the folder of their own module, for the archive of a module holds no symbolic links, and one source of
the executor for Linux is a link to another.
"""

import json
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from hack.addons.cluster import Cluster, manifest
from hack.cluster import binaries, images
from hack.cluster.errors import ClusterError
from hack.cluster.paths import TOOLS, binaries_folder, locked

VERSION = "3.6.0"
NAMESPACE = "argo"
EXECUTOR_ROLE = "argo-executor"
_MODULE = "github.com/argoproj/argo-workflows/v3"


def _binary(name: str) -> binaries.Binary:
    return binaries.Binary(name, VERSION, "argo", f"./cmd/{name}", {f"{_MODULE}.version": f"v{VERSION}"})


_BINARIES = (_binary("workflow-controller"), _binary("argoexec"))
# Beside the last program that is built: where that is, the definitions are.
_CRDS = _BINARIES[-1].path.with_name("crds.yaml")


def _unpack(archive: Path, folder: Path) -> Path:
    """The folder of the module in its archive, with the link that the archive has not."""
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    module = folder / f"{_MODULE}@v{VERSION}"
    sources = module / "workflow" / "executor" / "os-specific"
    shutil.copy(sources / "signal_darwin.go", sources / "signal_linux.go")
    return module


def _archive() -> Path:
    """The module's archive, fetched if need be and checked by its hash in the tools module's go.sum."""
    command = ["go", "mod", "download", "-json", _MODULE]
    listed = subprocess.run(command, cwd=TOOLS / "argo", capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise ClusterError(f"the module of Argo Workflows cannot be had: {listed.stderr or listed.stdout}")
    return Path(json.loads(listed.stdout)["Zip"])


def _build() -> None:
    # Nothing is waited for where there is nothing to build.
    if all(binary.path.exists() for binary in _BINARIES):
        return
    binaries.need_compiler()
    with locked(binaries_folder()), tempfile.TemporaryDirectory(prefix=".argo-", dir=binaries_folder()) as temporary:
        module = _unpack(_archive(), Path(temporary))
        crds = sorted(module.glob("manifests/base/crds/minimal/argoproj.io_*.yaml"))
        _CRDS.parent.mkdir(exist_ok=True)
        _CRDS.write_text("---\n".join(file.read_text(encoding="utf-8") for file in crds), encoding="utf-8")
        for binary in _BINARIES:
            if not binary.path.exists():
                binaries.build(binary, module)


def make() -> dict[str, Path]:
    """Build what is missing; return the archives of its images by their references.

    Raises: ClusterError for a failed build.
    """
    _build()
    references = {f"localhost/{binary.name}:v{VERSION}": binary.path for binary in _BINARIES}
    # Argo names its programs without a folder, so they must be on PATH.
    return {name: images.of_binary(name, path, f"/bin/{path.name}") for name, path in references.items()}


def install(cluster: Cluster) -> None:
    """Install the controller for all namespaces, and wait until it runs."""
    cluster.make_namespace(NAMESPACE)
    cluster.apply(_CRDS.read_text(encoding="utf-8"))
    cluster.run("kubectl", "wait", "--for=condition=Established", "crd/workflows.argoproj.io", "--timeout=60s")
    cluster.apply(manifest("argo", VERSION=VERSION))
    cluster.await_deployment(NAMESPACE, "workflow-controller")
