"""A platform, whole: Kueue, Prometheus, MLflow and Argo around one search, whose workflow ends in an answer.

The search's children wait in a queue, its samples go to MLflow, its numbers to Prometheus; the model is registered,
served and asked. Meanwhile the controller is killed twice and MLflow's server once: nothing is lost, nothing is double.
"""

import base64
import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import yaml
from demo.images import image_tag
from demo.places import NAMESPACE
from e2e.conftest import World, small
from e2e.test_search import assert_nothing_twice_nothing_missing
from hack.addons import mlflow as mlflow_part
from hack.cluster.paths import REPOSITORY
from patience import eventually
from platform_parts import Argo, Kueue, MLflow, Prometheus
from sklearn.datasets import load_digits

from nas_api import names
from nas_log.records import FinalProposed, Launched, Observed, Record, Started

pytestmark = [pytest.mark.platform, pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(5400)]

EXAMPLES = REPOSITORY / "examples"
NAME = "platform"
SAMPLES = 12
# Two of what examples/digits.yaml asks for its children, and enough memory.
QUOTA = {"cpu": "1", "memory": "8Gi"}
FINAL = {"top": 2, "epochs": 8, "grid": {"learningRate": ["0.1", "0.05"]}}


@pytest.fixture
def with_metrics(world: World) -> Iterator[None]:
    world.install("--set", "metrics.enabled=true")
    yield
    world.install()


@pytest.fixture
def queue(kueue: Kueue, world: World) -> str:
    kueue.make_queue(NAMESPACE, "shared", QUOTA)
    return "shared"


@pytest.fixture
def templates(world: World, tmp_path: Path) -> Iterator[None]:
    """The examples' workflow templates and server, which names this cluster's image."""
    for file in ("search.yaml", "search-and-serve.yaml"):
        for document in yaml.safe_load_all((EXAMPLES / "argo" / file).read_text()):
            subjects = [{**subject, "namespace": NAMESPACE} for subject in document.get("subjects", ())]
            metadata = {**document["metadata"], "namespace": NAMESPACE}
            world.apply({**document, "metadata": metadata, **({"subjects": subjects} if subjects else {})})
    shutil.copytree(EXAMPLES / "serve", tmp_path / "serve")
    kustomization = tmp_path / "serve" / "kustomization.yaml"
    image = {"name": "nas-trainer", "newName": "localhost/nas-trainer", "newTag": image_tag("trainer")}
    text = yaml.safe_dump({**yaml.safe_load(kustomization.read_text()), "images": [image]})
    kustomization.write_text(text)
    world.kubectl("apply", "-k", str(kustomization.parent))
    yield
    world.kubectl("delete", "-k", str(kustomization.parent))
    # Argo has made it, so no other fixture knows of it.
    world.kubectl("delete", "workflows,nas", NAME, "--ignore-not-found")


def observed(world: World) -> int:
    found = json.loads(world.kubectl("get", "nas", "-o", "json"))["items"]
    return sum(
        item.get("status", {}).get("samples", {}).get("observed", 0)
        for item in found
        if item["metadata"]["name"] == NAME
    )


def kill_controller(world: World, epoch: int) -> None:
    """Kill the controller, and wait until the next one, the epoch-th, is at work."""
    pod = world.experiment(NAME)["status"]["controller"]["pod"]
    world.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    world.eventually(
        lambda: world.experiment(NAME)["status"].get("epoch", 0) >= epoch, lambda: world.experiment(NAME)["status"]
    )


def query(prometheus: Prometheus, expression: str) -> dict[str, float]:
    """Return the series of a query by their state, or by their one other label."""
    found = prometheus.ask("query?" + urllib.parse.urlencode({"query": expression}))["result"]
    return {" ".join(item["metric"].values()): float(item["value"][1]) for item in found}


def assert_each_once_in_the_log(records: list[Record]) -> int:
    """Nothing was proposed, launched or decided twice or never; return how many samples there were in all."""
    final = [record.sample for record in records if isinstance(record, FinalProposed)]
    search = [record for record in records if getattr(record, "sample", -1) not in final]
    assert_nothing_twice_nothing_missing(search, SAMPLES)
    assert sum(isinstance(record, Started) for record in records) >= 3
    every = list(range(SAMPLES + len(final)))
    assert sorted(record.sample for record in records if isinstance(record, Observed)) == every
    assert sorted(sample for record in records if isinstance(record, Launched) for sample in record.samples) == every
    return len(every)


def assert_each_once_in_mlflow(mlflow: MLflow, uid: str, samples: int) -> None:
    """One run for the experiment, one below it for each of its samples, and one version of its model."""
    experiment = mlflow.get(f"experiments/get-by-name?experiment_name={NAME}")["experiment"]["experiment_id"]
    asked = {"experiment_ids": [experiment], "filter": f"tags.`nas.uid` = '{uid}'", "max_results": 1000}

    def whole() -> list[Any] | None:
        """The parent's end comes after the model, which the workflow has waited for."""
        found: list[Any] = mlflow.post("runs/search", asked)["runs"]
        return found if {run["info"]["status"] for run in found} == {"FINISHED"} else None

    runs = eventually(whole)
    tags = {run["info"]["run_id"]: {tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs}
    (parent,) = [run for run, each in tags.items() if "mlflow.parentRunId" not in each]
    children = {run: each for run, each in tags.items() if run != parent}
    assert {each["mlflow.parentRunId"] for each in children.values()} == {parent}
    assert sorted(int(each["nas.sample"]) for each in children.values()) == list(range(samples))
    ours = urllib.parse.urlencode({"filter": f"tags.`nas.uid` = '{uid}'"})
    versions = mlflow.get(f"model-versions/search?{ours}")["model_versions"]
    assert [(version["name"], version["run_id"]) for version in versions] == [(NAME, parent)]


def assert_all_waited_in_the_queue(kueue: Kueue, world: World, uid: str, samples: int) -> None:
    """Kueue has let in every child, and no more at a time than there was room for."""
    jobs = world.items("jobs", f"{names.LABEL_EXPERIMENT_UID}={uid},{names.LABEL_ROLE}={names.ROLE_TRAINER}")
    assert len(jobs) == samples
    workloads = kueue.workloads(NAMESPACE)
    assert {job["metadata"]["name"] for job in jobs} <= workloads.keys()
    times = sorted(
        [(job["status"]["startTime"], 1) for job in jobs] + [(job["status"]["completionTime"], -1) for job in jobs]
    )
    running = [sum(change for _, change in times[: end + 1]) for end in range(len(times))]
    assert max(running) <= 2


def assert_prometheus_has_seen_it(prometheus: Prometheus, uid: str, samples: int) -> None:
    """Each controller was scraped, and the operator, and what they counted fits."""
    search = f'pod=~"{names.controller_pod(NAME, uid, 0)[:-1]}.+"'
    assert len(query(prometheus, f"count by (pod) (max_over_time(up{{{search}}}[1h]))")) >= 3
    assert query(prometheus, f"max by (state) (max_over_time(nas_samples{{{search}}}[1h]))")["observed"] == SAMPLES
    # Each counts for itself; what one did between its last scrape and its death nobody has seen.
    assert 0 < query(prometheus, f"sum(max_over_time(nas_children_launched_total{{{search}}}[1h]))")[""] <= samples
    assert query(prometheus, f"max(max_over_time(nas_children{{{search}}}[1h]))")[""] >= 1
    assert query(prometheus, f"max(max_over_time(nas_best_metric{{{search}}}[1h]))")[""] > 0.5
    operator = 'nas_reconciles_total{container="operator",outcome="ok"}'
    assert query(prometheus, f"sum(max_over_time({operator}[1h]))")[""] > 0


def test_one_workflow_searches_registers_serves_and_answers_through_deaths(
    argo: Argo,
    kueue: Kueue,
    mlflow: MLflow,
    prometheus: Prometheus,
    world: World,
    queue: str,
    with_metrics: None,
    templates: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each sample is a child: an architecture that comes up again would take its result from the log.
    searcher = {"duplicates": "Train"}
    tracking = {"mlflow": {"uri": mlflow.uri}}
    search = small(NAME, SAMPLES, parallelism=3, searcher=searcher, finalTraining=FINAL, tracking=tracking)
    search["spec"]["trainer"] |= {"queue": queue, "epochs": 12}
    del search["metadata"]["namespace"]
    digits = load_digits()
    image, label = digits.images[-1], str(digits.target[-1])
    values = {
        "manifest": yaml.safe_dump(search),
        "pixels": base64.b64encode(image.astype(numpy.uint8).tobytes()).decode(),
        "mlflow": mlflow.uri,
        # It is on the node, and has Python.
        "image": mlflow_part.reference(),
    }
    parameters = [{"name": key, "value": value} for key, value in values.items()]
    workflow = {"workflowTemplateRef": {"name": "nas-search-and-serve"}, "arguments": {"parameters": parameters}}
    argo.start(NAMESPACE, NAME, workflow)

    def show() -> Any:
        return world.try_kubectl("get", "nas,workflows,pods").stdout

    world.eventually(lambda: observed(world) >= 2, show)
    kill_controller(world, epoch=2)
    mlflow.kill()
    world.eventually(lambda: observed(world) >= SAMPLES / 2, show)
    kill_controller(world, epoch=3)

    ended = world.eventually(lambda: argo.ended(NAMESPACE, NAME), show)
    assert ended["phase"] == "Succeeded", ended
    document = world.experiment(NAME)
    uid = document["metadata"]["uid"]
    samples = assert_each_once_in_the_log(world.log(document, monkeypatch))
    assert samples == SAMPLES + document["status"]["final"]["total"] + 1
    assert_each_once_in_mlflow(mlflow, uid, samples)
    assert_all_waited_in_the_queue(kueue, world, uid, samples)
    assert_prometheus_has_seen_it(prometheus, uid, samples)

    # The answer is the model's.
    (answer,) = ended["nodes"][NAME]["outputs"]["parameters"]
    said = json.loads(answer["value"])
    model = onnxruntime.InferenceSession(world.store(document, monkeypatch).get(names.BEST_ONNX))
    (logits,) = model.run(["logits"], {"pixels": image[None, None].astype(numpy.float32)})[0]
    chances = numpy.exp(logits - logits.max())
    numpy.testing.assert_allclose(list(said["probabilities"].values()), chances / chances.sum(), rtol=1e-3, atol=1e-5)
    assert said["class"] == str(logits.argmax())
    print(f"an image of {label} was taken for {said['class']}")
