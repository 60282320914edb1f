"""From the version before this one to this one and back, chart and images, while a search runs.

Here, and not with the other end-to-end tests, because it first builds the images of the version before, and because one
cluster is for all of these tests.
"""

import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo.images import COMPONENTS, image_tag
from demo.steps import ROOT
from e2e.conftest import Document, World
from e2e.test_search import assert_nothing_twice_nothing_missing
from hack.cluster import images
from hack.cluster import instance as instances

from nas_api import names
from nas_api.child import ExitCode
from nas_log.records import Launched, Started

pytestmark = [pytest.mark.node, pytest.mark.platform, pytest.mark.slow, pytest.mark.timeout(3600)]
Start = Callable[..., Document]
BEFORE = "dea8734b104d44f493011c8579c797ad114531c1"
"""The commit that people upgrade from. With a release it becomes that release's."""


@dataclass(frozen=True)
class Version:
    """A version that can be installed beside this one."""

    folder: Path
    """Its sources."""

    @property
    def components(self) -> list[str]:
        """Those of ours that it has images of."""
        return [each for each in COMPONENTS if f" AS {each}\n" in (self.folder / "Dockerfile").read_text()]

    def tag(self, component: str) -> str:
        """Return the tag of one of its images; one whose sources have not changed since is this version's, too."""
        return image_tag(component, self.folder)

    def load_images(self, world: World) -> None:
        """Build each image and load it into the node; what is there already is kept."""
        cluster = instances.load_existing(world.place.name)
        for component in self.components:
            reference = f"localhost/nas-{component}:{self.tag(component)}"
            archive = images.built(reference) or images.build(component, reference, folder=self.folder, only="torch: ")
            images.load_if_new(cluster, reference, archive)

    def install(self, world: World) -> None:
        """Install or upgrade the release to it."""
        tags = [f"--set-string=images.{component}.tag={self.tag(component)}" for component in self.components]
        # The place names all images of today, of which a chart of before may know fewer.
        world.install(*tags, "--skip-schema-validation", chart=self.folder / "helm" / "nas-operator")


@pytest.fixture(scope="module")
def before(world: World, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The version before, as the history has it; its images are built and loaded."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode != 0:
        said = archive.stderr.decode().strip()
        pytest.skip(f"NO HISTORY: no upgrade was tried, because git has no commit {BEFORE[:12]} here ({said})")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    version = Version(folder)
    version.load_images(world)
    return version


def pods(world: World, selector: str) -> dict[str, str]:
    """Return the image of each pod that is not being deleted, by the pod's uid."""
    return {
        item["metadata"]["uid"]: item["spec"]["containers"][0]["image"]
        for item in world.items("pods", selector)
        if "deletionTimestamp" not in item["metadata"]
    }


def tags(pods: dict[str, str]) -> list[str]:
    """Return the tags of the pods' images."""
    return [image.rpartition(":")[2] for image in pods.values()]


def test_a_search_outlives_an_upgrade_and_the_way_back(
    world: World, experiment: Start, before: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "crossing"
    controller = f"{names.LABEL_EXPERIMENT}={name},{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"
    store = "app.kubernetes.io/component=s3"

    def observed() -> int:
        return int(world.experiment(name).get("status", {}).get("samples", {}).get("observed", 0))

    def goes_on(parallelism: int) -> None:
        """More children end, and the operator follows a change of the spec."""
        seen = observed()
        world.patch(name, {"parallelism": parallelism})
        generation = world.experiment(name)["metadata"]["generation"]

        def reached() -> bool:
            status = world.experiment(name)["status"]
            followed = status["observedGeneration"] >= generation and status["state"] == "Searching"
            return followed and observed() > seen

        world.eventually(reached, lambda: world.experiment(name).get("status"))

    def operator_becomes(tag: str) -> None:
        """Helm does not wait until the pod before has begun to end."""
        operator = "app.kubernetes.io/component=operator"
        world.eventually(lambda: tags(pods(world, operator)) == [tag], lambda: world.items("pods", operator))

    before.install(world)
    operator_becomes(before.tag("operator"))
    stores, keys = pods(world, store), world.keys()
    experiment(name, 1000)
    world.eventually(observed, lambda: world.experiment(name).get("status"))
    first = pods(world, controller)
    assert tags(first) == [before.tag("controller")]

    world.install()
    operator_becomes(image_tag("operator"))
    goes_on(1)
    assert pods(world, controller) == first

    # As docs/installing.md says, this moves a search to the new version.
    world.kubectl("delete", "pod", "-l", controller)
    second = world.eventually(lambda: pods(world, controller), lambda: world.items("pods", controller))
    assert tags(second) == [image_tag("controller")]
    goes_on(2)

    before.install(world)
    operator_becomes(before.tag("operator"))
    goes_on(1)
    assert pods(world, controller) == second
    world.install()
    operator_becomes(image_tag("operator"))
    goes_on(2)
    assert pods(world, controller) == second

    world.propose_no_more(name)
    samples = world.wait_complete(name)["samples"]
    assert samples["observed"] == samples["proposed"]
    assert samples["lost"] == 0
    records = world.log(world.experiment(name), monkeypatch)
    assert_nothing_twice_nothing_missing(records, samples["proposed"])
    assert sum(isinstance(record, Started) for record in records) == 2
    # A child may fail where the machine is too slow for the store, but none was taken away or killed.
    trainers = world.items("pods", f"{names.LABEL_EXPERIMENT}={name},{names.LABEL_ROLE}={names.ROLE_TRAINER}")
    launches = sorted(int(pod["metadata"]["labels"][names.LABEL_LAUNCH]) for pod in trainers)
    assert launches == [record.launch for record in records if isinstance(record, Launched)]
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in trainers]
    assert not [state for state in ended if state["exitCode"] in (ExitCode.OUT_OF_MEMORY_KILL, ExitCode.TERMINATED)]
    assert pods(world, store) == stores
    assert world.keys() == keys
