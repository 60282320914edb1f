"""MLflow's server, with SQLite and its artifacts on a volume that outlives its pod and goes with the cluster."""

import hashlib
import os
from pathlib import Path

from hack.cluster import images
from hack.cluster.paths import REPOSITORY
from hack.platform.cluster import Cluster, manifest

NAMESPACE = "mlflow"
# As the image's user.
_USER = 65532
_DOCKERFILE = Path(__file__).with_name("mlflow.Dockerfile")
_REQUIREMENTS = REPOSITORY / "requirements" / "mlflow.txt"


def reference() -> str:
    """The image's name; its tag follows from all that goes into it."""
    digest = hashlib.sha256(_DOCKERFILE.read_bytes() + _REQUIREMENTS.read_bytes())
    return f"localhost/mlflow:{digest.hexdigest()[:12]}"


def make() -> dict[str, Path]:
    """Build what is missing; return the archives of its images by their references.

    Raises: ClusterError for a failed build, or without root.
    """
    name = reference()
    archive = images.built(name) or images.build(None, name, dockerfile=_DOCKERFILE, only="[")
    images.forget_other_tags(name)
    return {name: archive}


def install(cluster: Cluster) -> None:
    """Install one server, and wait until it answers."""
    volume = cluster.instance.folder / "mlflow"
    volume.mkdir(exist_ok=True)
    os.chown(volume, _USER, _USER)
    cluster.make_namespace(NAMESPACE)
    cluster.apply(manifest("mlflow", IMAGE=reference(), VOLUME=str(volume)))
    cluster.await_deployment(NAMESPACE, "mlflow")
