"""Kueue, built from the source of a release: no module proxy serves its releases, so an archive must be given."""

import json
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from hack.addons.cluster import READY_SECONDS, Cluster
from hack.cluster import binaries, images
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY, binaries_folder, locked

VERSION = "0.17.8"
NAMESPACE = "kueue-system"
_VARIABLE = "SOURCES"
_REPOSITORY = "localhost/kueue"
_VERSION_VARIABLE = {"sigs.k8s.io/kueue/pkg/version.GitVersion": f"v{VERSION}"}
_BINARY = binaries.Binary("kueue", VERSION, "", "./cmd/kueue", _VERSION_VARIABLE)
# The chart of this release lies beside its program, so that the archive is needed once.
_CHART = _BINARY.path.with_name("chart")


def archive() -> Path | None:
    """The source of the release: in the folder that $SOURCES names, else in one beside the checkout; None without."""
    name = f"kueue-{VERSION}.tar.gz"
    if _VARIABLE in os.environ:
        folders = [Path(os.environ[_VARIABLE])] if os.environ[_VARIABLE] else []
    else:
        folders = sorted(REPOSITORY.parent.glob("*/sources"))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def absent() -> str:
    """Why there can be no Kueue, and the cure; empty when it is built or can be."""
    if _BINARY.path.exists() or archive() is not None:
        return ""
    return f"no source of Kueue: {_VARIABLE}=FOLDER names where kueue-{VERSION}.tar.gz, the release's source, lies"


def _unpack(source: Path, folder: Path) -> Path:
    """The folder of the module in an archive, which may have one folder around it, as GitHub's has."""
    with tarfile.open(source) as tar:
        tar.extractall(folder, filter="data")
    found = [place for place in (folder, *folder.iterdir()) if (place / "go.mod").is_file()]
    if not found:
        raise ClusterError(f"{source} holds no Go module")
    return found[0]


def _build() -> None:
    # Nothing is waited for where there is nothing to build.
    if _BINARY.path.exists():
        return
    with locked(binaries_folder()):
        if _BINARY.path.exists():
            return
        source = archive()
        if source is None:
            raise ClusterError(absent())
        with tempfile.TemporaryDirectory(prefix=".kueue-", dir=binaries_folder()) as temporary:
            module = _unpack(source, Path(temporary))
            shutil.rmtree(_CHART, ignore_errors=True)
            shutil.copytree(module / "charts" / "kueue", _CHART)
            # The program comes last: where it is, the chart is too.
            binaries.build(_BINARY, module)


def make() -> dict[str, Path]:
    """Build what is missing; return the archives of its images by their references.

    Raises: ClusterError without the source, or for a failed build.
    """
    _build()
    reference = f"{_REPOSITORY}:v{VERSION}"
    # Where the chart starts it.
    return {reference: images.of_binary(reference, _BINARY.path, place="/manager")}


def install(cluster: Cluster) -> None:
    """Install Kueue with its own chart, and wait until it answers.

    Raises: ClusterError when it does not.
    """
    image = "controllerManager.manager.image"
    values = {
        f"{image}.repository": _REPOSITORY,
        f"{image}.tag": f"v{VERSION}",
        f"{image}.pullPolicy": "Never",
        "controllerManager.manager.resources.requests.cpu": "50m",
    }
    words = [word for name, value in values.items() for word in ("--set-string", f"{name}={value}")]
    place = ("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", f"{READY_SECONDS}s")
    cluster.run("helm", "upgrade", "--install", "kueue", str(_CHART), *place, *words)
    _await_webhooks(cluster)


def _await_webhooks(cluster: Cluster) -> None:
    """It is ready before the API server trusts the certificates that it has made: one of its objects is tried."""
    body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "is-kueue-there"}}
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            cluster.run("kubectl", "create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
            return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
