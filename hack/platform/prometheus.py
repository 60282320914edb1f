"""Prometheus: it scrapes itself and every pod's port that is called `metrics`, and evaluates rules that are given."""

from pathlib import Path

from hack.cluster import binaries, images
from hack.platform.cluster import Cluster, manifest

VERSION = binaries.BINARIES["prometheus"].version
NAMESPACE = "prometheus"


def make() -> dict[str, Path]:
    """Build what is missing; return the archives of its images by their references.

    Raises: ClusterError for a failed build.
    """
    binaries.ensure(["promtool"])
    reference = f"localhost/prometheus:v{VERSION}"
    return {reference: images.of_program(reference, "prometheus")}


def install(cluster: Cluster) -> None:
    """Install one server, and wait until it is ready."""
    cluster.make_namespace(NAMESPACE)
    cluster.apply(manifest("prometheus", VERSION=VERSION))
    cluster.await_deployment(NAMESPACE, "prometheus")
