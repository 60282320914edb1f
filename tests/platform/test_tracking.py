"""A search on the real cluster is followed into the real MLflow, while server, controller and follower are killed."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo.places import NAMESPACE
from e2e.conftest import Document, World
from platform_parts import MLflow

from nas_api import names
from nas_followers import mlflow_runs
from nas_log.follower import Follower

pytestmark = [pytest.mark.platform, pytest.mark.node, pytest.mark.slow]

LOAD = """
import json, sys
import mlflow.pyfunc
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tracked/1")
print(json.dumps({name: list(value.shape) for name, value in model.predict(model.input_example).items()}))
"""


def tags(run: Document) -> dict[str, str]:
    return {item["key"]: item["value"] for item in run["data"].get("tags", ())}


def runs(mlflow: MLflow) -> list[Document]:
    found = mlflow.get("experiments/get-by-name?experiment_name=tracked")["experiment"]["experiment_id"]
    listed: list[Document] = mlflow.post("runs/search", {"experiment_ids": [found], "max_results": 1000})["runs"]
    return listed


def followers(world: World) -> list[Document]:
    found = world.items("pods", f"{names.LABEL_EXPERIMENT}=tracked,{names.LABEL_ROLE}=follower")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def test_mlflow_has_each_sample_once_and_the_model_whatever_is_killed(
    mlflow: MLflow,
    world: World,
    experiment: Callable[..., Document],
    mlflow_python: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    final = {"top": 1, "epochs": 2, "grid": {"learningRate": ["0.1"]}}
    tracking: Document = {"mlflow": {"uri": mlflow.uri}}
    # More than will be trained before all that is to happen has happened.
    experiment("tracked", 10_000, finalTraining=final, tracking=tracking)
    show: Callable[[], Any] = lambda: world.experiment("tracked").get("status")  # noqa: E731

    def observed() -> int:
        return int((world.experiment("tracked").get("status", {}).get("samples") or {}).get("observed", 0))

    def told(reason: str) -> Document | None:
        found = world.conditions("tracked").get("Tracking", {})
        return found if found.get("reason") == reason else None

    world.eventually(lambda: told("Following") and observed() >= 2, show)
    (pod,) = followers(world)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not [item for item in pod["spec"]["volumes"] if "projected" in item]

    mlflow.scale(0)
    before = observed()
    failed = world.eventually(lambda: told("FollowerFailed"), show)
    assert failed["message"].startswith(f"MLflow at {mlflow.uri} does not answer"), failed
    print(failed["message"])
    # The search goes on, and nothing but this condition says otherwise.
    world.eventually(lambda: observed() > before, show)
    assert world.conditions("tracked")["Progressing"]["status"] == "True"
    controller = world.experiment("tracked")["status"]["controller"]["pod"]
    world.kubectl("delete", "pod", controller, "--grace-period=0", "--force")
    mlflow.scale(1)
    world.kubectl("delete", "pod", followers(world)[0]["metadata"]["name"], "--grace-period=0", "--force")
    world.eventually(lambda: told("Following"), show)
    world.propose_no_more("tracked")
    world.wait_complete("tracked")
    done = world.eventually(lambda: told("CaughtUp"), show)
    print(done["message"])

    document = world.experiment("tracked")
    log = Follower(world.store(document, monkeypatch))
    samples = [sample.number for sample in log.read()]
    assert f"has all {len(samples)} samples" in done["message"]
    found = runs(mlflow)
    numbers = Counter(tags(run).get(mlflow_runs.SAMPLE, "") for run in found)
    assert numbers == Counter(["", *map(str, samples)])
    (parent,) = [run for run in found if mlflow_runs.SAMPLE not in tags(run)]
    assert {tags(run).get(mlflow_runs.PARENT) for run in found} == {None, parent["info"]["run_id"]}
    assert {run["info"]["status"] for run in found} == {"FINISHED"}
    best = document["status"]["final"]["testMetric"]
    metrics = {item["key"]: item["value"] for item in parent["data"]["metrics"]}
    assert metrics["test.accuracy"] == pytest.approx(float(best), abs=1e-6)

    command = [str(mlflow_python), "-c", LOAD, mlflow.address]
    loaded = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == {"logits": [1, 10]}

    # A follower that is not wanted any more leaves nothing on the cluster.
    world.patch("tracked", {"tracking": None})
    world.eventually(lambda: not followers(world) and "Tracking" not in world.conditions("tracked"), show)
    assert not world.items("jobs", f"{names.LABEL_ROLE}=follower", NAMESPACE)
