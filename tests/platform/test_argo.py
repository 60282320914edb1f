"""examples/argo/search.yaml on the real Argo: a workflow ends as its search does, and hands on what was found."""

from typing import Any

import pytest
import yaml
from demo.places import NAMESPACE
from e2e.conftest import World
from hack.addons import mlflow as mlflow_part
from hack.cluster.paths import REPOSITORY
from patience import eventually
from platform_parts import Argo, MLflow

pytestmark = [pytest.mark.platform, pytest.mark.node]

TEMPLATE = REPOSITORY / "examples" / "argo" / "search.yaml"


def run(argo: Argo, world: World, name: str, **spec: Any) -> dict[str, Any]:
    """Search by the example's template; return how the workflow ended."""
    for document in yaml.safe_load_all(TEMPLATE.read_text()):
        metadata = {**document["metadata"], "namespace": NAMESPACE}
        subjects = [{**subject, "namespace": NAMESPACE} for subject in document.get("subjects", ())]
        world.apply({**document, "metadata": metadata, **({"subjects": subjects} if subjects else {})})
    search = yaml.safe_load((REPOSITORY / "examples" / "digits.yaml").read_text())
    search["metadata"]["name"] = name
    search["spec"] |= spec
    # MLflow's image is on the node, and has `echo`.
    values = {"manifest": yaml.safe_dump(search), "image": mlflow_part.reference()}
    parameters = [{"name": key, "value": value} for key, value in values.items()]
    reference = {"workflowTemplateRef": {"name": "nas-search"}, "arguments": {"parameters": parameters}}
    argo.start(NAMESPACE, name, reference)
    ended = eventually(lambda: argo.ended(NAMESPACE, name), seconds=1800)
    assert isinstance(ended, dict)
    return ended


def test_a_workflow_hands_on_what_its_search_has_found(argo: Argo, mlflow: MLflow, world: World) -> None:
    ended = run(argo, world, "argo-good", budget={"samples": 3})
    assert ended["phase"] == "Succeeded", ended
    found = world.experiment("argo-good")
    best = found["status"]["best"]
    outputs = {item["name"]: item["value"] for item in ended["nodes"]["search"]["outputs"]["parameters"]}
    assert outputs == {"uri": best["uri"], "metric": best["metric"], "uid": found["metadata"]["uid"]}
    inputs = {item["name"]: item["value"] for item in ended["nodes"]["go-on"]["inputs"]["parameters"]}
    assert inputs == {"uri": best["uri"], "metric": best["metric"]}


def test_a_workflow_fails_with_its_search(argo: Argo, mlflow: MLflow, world: World) -> None:
    ended = run(
        argo,
        world,
        "argo-bad",
        budget={"samples": 50, "consecutiveFailures": 2},
        trainer={"dataset": {"custom": {}}, "image": mlflow_part.reference(), "command": ["false"]},
    )
    assert ended["phase"] == "Failed", ended
    assert world.experiment("argo-bad")["status"]["outcome"]["type"] == "Failed"
    assert "go-on" not in ended["nodes"]
