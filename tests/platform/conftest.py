"""The heavy real parts of a platform on the end-to-end tests' cluster, each installed when the first test asks for it.

``make test-platform`` builds them; here what is missing is built too. Only Kueue needs something from outside, the
source of its release: without it the tests that want Kueue are skipped.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from demo.places import Built
from e2e.conftest import experiment, place, world
from hack.addons import kueue as kueue_part
from hack.addons import parts
from hack.addons.cluster import Cluster
from hack.cluster import instance as instances
from hack.cluster.paths import REPOSITORY
from platform_parts import Argo, Kueue, MLflow, Prometheus
from venvs import python_with

# Fixtures of the end-to-end tests, on whose cluster the parts are.
__all__ = ["experiment", "place", "world"]

MLFLOW = REPOSITORY / "requirements" / "mlflow.txt"
TRAINER = REPOSITORY / "requirements" / "trainer.txt"
# What the flavour `onnx` needs beside MLflow, as it is pinned for the trainer.
FLAVOUR = ("flatbuffers", "ml-dtypes", "onnx", "onnxruntime")


@pytest.fixture(scope="session")
def mlflow_python() -> Path:
    """Python with MLflow and onnxruntime, in an environment of its own, made once in the cache for its requirements."""
    pins = re.findall(rf"^(?:{'|'.join(FLAVOUR)})==.*?(?=^\S|\Z)", TRAINER.read_text(), re.DOTALL | re.MULTILINE)
    assert len(pins) == len(FLAVOUR)
    return python_with("mlflow", "".join([MLFLOW.read_text(), *pins]))


@pytest.fixture(scope="session")
def cluster(place: Built) -> Cluster:
    """The cluster as its administrator sees it, whether or not anything of ours is on it."""
    return Cluster(instances.load_existing(place.name))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the restricted standard for one test, removed in the background after it."""
    name = f"test-{uuid4().hex[:10]}"
    cluster.make_namespace(name)
    yield name
    cluster.run("kubectl", "delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def kueue(cluster: Cluster) -> Kueue:
    """Kueue, installed. A namespace's Jobs are its business if they name a queue."""
    if why := kueue_part.absent():
        pytest.skip(f"NO KUEUE: {why}")
    parts.up(cluster.instance, "kueue")
    return Kueue(cluster)


@pytest.fixture(scope="session")
def argo(cluster: Cluster) -> Argo:
    """Argo Workflows, installed."""
    parts.up(cluster.instance, "argo")
    return Argo(cluster)


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster) -> Prometheus:
    """Prometheus, installed: it scrapes each pod's port that is called ``metrics``."""
    parts.up(cluster.instance, "prometheus")
    return Prometheus(cluster)


@pytest.fixture(scope="session")
def mlflow(cluster: Cluster) -> MLflow:
    """MLflow's server, installed; its data live as long as the cluster."""
    parts.up(cluster.instance, "mlflow")
    return MLflow(cluster)
