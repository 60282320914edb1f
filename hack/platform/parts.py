"""The parts of a platform that can be installed beside ours, and how one is."""

from pathlib import Path
from typing import Protocol

from hack.cluster import images
from hack.cluster.instance import Instance
from hack.cluster.say import say
from hack.platform import argo, kueue, mlflow, prometheus
from hack.platform.cluster import Cluster


class Part(Protocol):
    """What each module of a part has."""

    def make(self) -> dict[str, Path]:
        """Build what is missing in the cache; return the archives of its images by their references."""

    def install(self, cluster: Cluster) -> None:
        """Install it on a node that has its images, or see that it is, and wait until it works."""


PARTS: dict[str, Part] = {"kueue": kueue, "argo": argo, "prometheus": prometheus, "mlflow": mlflow}


def up(instance: Instance, name: str) -> None:
    """Build a part, load its images and install it; what is there already is kept.

    Raises: ClusterError when it cannot be built or does not come up.
    """
    part = PARTS[name]
    for reference, archive in part.make().items():
        images.load_if_new(instance, reference, archive)
    say(f"install {name}")
    part.install(Cluster(instance))
    say(f"{name} is up")
