"""The example of a user's own trainer on a real cluster: its image holds nothing of ours, and each end is told."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.places import NAMESPACE
from demo.steps import run
from e2e.conftest import Document, World

from nas_api import names
from nas_log.records import Lost, Observed

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
EXAMPLE = Path("examples/custom")
# Four samples fare as a user's may; the rest are trained.
MOODS = """
case $NAS_SAMPLE in
1) echo the licence server is down >&2; exit 3;;
2) echo half a result; echo '{"metrics": {"accuracy"' > "$NAS_DIR/result.json";;
3) echo nothing to say;;
4) exit 10;;
*) exec python3 train.py;;
esac
"""


@pytest.fixture
def document(world: World) -> Iterator[Document]:
    """The example's manifest with its image in the node, deleted at the end of the test."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLE / "experiment.yaml").read_text(encoding="utf-8"))
    image = found["spec"]["trainer"]["image"]
    words = ["-m", "hack.cluster", "image-from-folder", "--name", world.place.name, str(EXAMPLE), image]
    run(sys.executable, *words)
    found["metadata"]["namespace"] = NAMESPACE
    yield found
    world.try_kubectl("delete", "nas", found["metadata"]["name"], "--ignore-not-found")


def test_a_users_own_trainer_completes_and_its_failures_are_told(
    world: World, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = document["spec"]
    spec["budget"] = {"samples": 8}
    spec["trainer"] |= {"command": ["sh", "-c", MOODS], "attempts": 2, "epochs": 3}
    world.apply(document)
    name = document["metadata"]["name"]
    status = world.wait_complete(name)
    assert (status["samples"]["observed"], status["samples"]["lost"]) == (4, 4)

    records = world.log(world.experiment(name), monkeypatch)
    lost = {record.sample: record for record in records if isinstance(record, Lost)}
    assert {sample: record.reason for sample, record in lost.items()} == {
        1: "TrainerFailed",
        2: "InvalidResult",
        3: "InvalidResult",
        4: "InvalidArchitecture",
    }
    assert "the licence server is down" in lost[1].message
    assert "result.json: this is not JSON" in lost[2].message
    assert "did not write it" in lost[3].message
    observed = [record for record in records if isinstance(record, Observed)]
    assert all(0.3 < record.metrics["accuracy"] <= 1 and record.parameters > 0 for record in observed)

    # Where the message says to look, the trainer's own words are.
    words = lost[2].message.rpartition("kubectl ")[2].split()
    assert world.kubectl(*words) == "half a result\n"
    selector = f"{names.LABEL_EXPERIMENT}={name},{names.LABEL_ROLE}={names.ROLE_TRAINER},{names.LABEL_SAMPLE}=0"
    (pod,) = world.items("pods", selector)
    assert "accuracy" in world.kubectl("logs", pod["metadata"]["name"]), "the trainer's log is the default one"
    trainer = next(item for item in pod["spec"]["initContainers"] if item["name"] == names.TRAINER_CONTAINER)
    assert not [item for item in trainer["env"] if item["name"] in names.CREDENTIAL_KEYS]

    best = json.loads(
        world.s3().get_object(Bucket="nas", Key=status["best"]["uri"].partition("nas/")[2])["Body"].read()
    )
    assert best["space"] == "custom" and len(best["choices"]["width"]) == 3
