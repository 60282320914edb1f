"""What the API server itself refuses, accepts and explains, with the generated CustomResourceDefinition."""

import copy
import json
import subprocess
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from experiments import MANIFEST, manifest

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_kube.errors import ApiError
from nas_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, EXPERIMENTS

pytestmark = pytest.mark.cluster

_REMOVE = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the valid manifest with values set at dotted paths."""
    out = copy.deepcopy(MANIFEST)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is _REMOVE:
            del node[last]
        else:
            node[last] = value
    return out


def apply(control_plane: ControlPlane, namespace: str, body: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Apply as a user does: nothing is dropped in silence."""
    return control_plane.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=json.dumps(body))


def custom(*decisions: dict[str, Any]) -> dict[str, Any]:
    return {"custom": {"decisions": list(decisions)}}


SPACE = "spec.searchSpace.convolutional"
TRAINER = "spec.trainer"
S3 = "spec.storage.s3"

# A change to a valid manifest, and what the refusal must name.
BAD: list[tuple[dict[str, Any], str]] = [
    ({"metadata.name": "a" * 41}, "at most 40 characters"),
    ({"metadata.name": "with.dot"}, "must not contain a dot"),
    ({"metadata.name": "Upper"}, "metadata.name"),
    ({"apiVersion": "nas-operator.io/v2"}, "NASExperiment"),
    ({"spec": _REMOVE}, "spec: Required value"),
    ({"spec.searchSpace": _REMOVE}, "spec.searchSpace"),
    ({"spec.searchSpace": {}}, "set exactly one of convolutional, convolutionalCell"),
    (
        {"spec.searchSpace.recurrentCell": {}},
        "set exactly one of convolutional, convolutionalCell, recurrentCell, custom",
    ),
    ({"spec.searchSpace": {"recurrentCell": {}}}, "searchSpace.recurrentCell needs trainer.dataset.text"),
    ({"spec.searchSpace": {"recurrentCell": {"base": 3}}}, "must be 2, 4, 8 or 16"),
    ({"spec.searchSpace": {"recurrentCell": {"combinations": ["sub"]}}}, "spec.searchSpace.recurrentCell.combinations"),
    ({"spec.searchSpace": custom({"name": "a", "options": ["x"]})}, "searchSpace.custom needs trainer.dataset.custom"),
    ({"spec.searchSpace": custom({"name": "a"})}, "set exactly one of options, range"),
    ({"spec.searchSpace": custom({"name": "a", "options": ["x", "x"]})}, "options"),
    ({"spec.searchSpace": custom({"name": "a b", "options": ["x"]})}, "spec.searchSpace.custom.decisions[0].name"),
    ({"spec.searchSpace": custom(*[{"name": "a", "options": ["x"]}] * 2)}, "spec.searchSpace.custom.decisions"),
    ({"spec.searchSpace": custom({"name": "a", "range": {"from": 3, "to": 2}})}, "from must not exceed to"),
    ({"spec.searchSpace": custom({"name": "a", "range": {"from": 0, "to": 64}})}, "at most 64 numbers"),
    (
        {
            "spec.searchSpace": custom(
                {"name": "a", "options": ["x"], "when": {"decision": "b", "in": ["x"]}},
            )
        },
        "when.decision must name another decision",
    ),
    ({"spec.trainer.dataset": {"text": {}}}, "searchSpace.convolutional needs images"),
    ({f"{TRAINER}.pods": 2}, "pods must be 1 with a built-in dataset: finalTraining.pods"),
    ({f"{TRAINER}.pods": 65, f"{TRAINER}.dataset": {"custom": {}}}, "spec.trainer.pods"),
    ({"spec.finalTraining": {"pods": 65}}, "spec.finalTraining.pods"),
    (
        {"spec.finalTraining": {"pods": 9}, f"{TRAINER}.batchSize": 8},
        "finalTraining.pods must be at most trainer.batch",
    ),
    (
        {"spec.finalTraining": {"pods": 2}, f"{TRAINER}.gpu": {"cudaGraphs": True}},
        "finalTraining.pods must be 1 with trainer.gpu.cudaGraphs",
    ),
    ({f"{TRAINER}.childrenPerPod": 17}, "spec.trainer.childrenPerPod"),
    ({f"{TRAINER}.childrenPerPod": 4, "spec.parallelism": 3}, "parallelism must be at least trainer.childrenPerPod"),
    ({f"{TRAINER}.childrenPerPod": 2, f"{TRAINER}.dataset": {"custom": {}}}, "childrenPerPod must be 1 with dataset"),
    ({f"{TRAINER}.priorityClass": "high"}, "priorityClass needs queue"),
    ({f"{TRAINER}.queue": "Gpu"}, "trainer.queue"),
    ({f"{TRAINER}.queue": "a" * 64}, "trainer.queue"),
    (
        {f"{TRAINER}.childrenPerPod": 2, f"{TRAINER}.gpu": {"compile": True}},
        "childrenPerPod must be 1 with gpu.compile",
    ),
    ({f"{SPACE}.allSkips": True, f"{SPACE}.skipConnections": False}, "allSkips needs skipConnections"),
    ({"spec.searcher": {"ppo": {}, "guided": {}}}, "set at most one of ppo"),
    ({"spec.searcher": {"control": {"random": "1.0"}}}, "must be below 1"),
    ({"spec.searcher": {"duplicates": "Skip"}}, "spec.searcher.duplicates"),
    ({"spec.objective.penalties": [{"metric": "parameters"}]}, "spec.objective.penalties[0].target"),
    ({"spec.finalTraining": {"top": 0}}, "spec.finalTraining.top"),
    (
        {"spec.finalTraining": {"grid": {"dropout": ["0.5"]}}},
        "finalTraining.grid.dropout and initialScale are for",
    ),
    ({"spec.finalTraining": {"grid": {"dropout": ["1.5"]}}}, "must be below 1"),
    ({"spec.finalTraining": {"grid": {"initialScale": ["0"]}}}, "must be above 0"),
    (
        {
            "spec.finalTraining": {"grid": {"batchNormEpsilon": ["0.1"]}},
            f"{TRAINER}.dataset": {"text": {}},
            "spec.searchSpace": {"recurrentCell": {}},
        },
        "finalTraining.grid.batchNormEpsilon is for images",
    ),
    ({f"{SPACE}.blockOutput": "All"}, "blockOutput All needs blockLayers above 1"),
    ({"spec.searchSpace": {"fixed": {"experiment": "a", "allSkips": True, "noSkips": True}}}, "exclude each other"),
    ({"spec.finalTraining": {"grid": {"learningRate": [0.1]}}}, "spec.finalTraining.grid.learningRate[0]"),
    (
        {
            "spec.finalTraining": {
                "top": 50,
                "grid": {"learningRate": ["0.1", "0.2", "0.3"], "decayEpoch": [*range(1, 9)]},
            }
        },
        "at most 1,000 training runs: lower top or seeds, or give grid fewer values",
    ),
    ({"spec.budget": _REMOVE}, "spec.budget"),
    ({"spec.trainer": _REMOVE}, "spec.trainer"),
    ({"spec.storage": _REMOVE}, "spec.storage"),
    ({"spec.storage": {}}, "spec.storage.s3"),
    ({"spec.serchSpace": {}}, "serchSpace"),
    ({f"{SPACE}.filterHeigths": [1]}, "filterHeigths"),
    ({"spec.suspend": "yes"}, "spec.suspend"),
    ({"spec.parallelism": 0}, "spec.parallelism"),
    ({"spec.parallelism": 10_001}, "spec.parallelism"),
    ({"spec.parallelism": "two"}, "spec.parallelism"),
    ({"spec.parallelism": 2.5}, "spec.parallelism"),
    ({"spec.budget": {}}, "spec.budget.samples"),
    ({"spec.budget.samples": 0}, "spec.budget.samples"),
    ({"spec.budget.samples": 1_000_001}, "spec.budget.samples"),
    ({"spec.budget.duration": "3 days"}, "spec.budget.duration"),
    ({"spec.budget.duration": "72"}, "spec.budget.duration"),
    ({"spec.budget.consecutiveFailures": 0}, "spec.budget.consecutiveFailures"),
    ({"spec.objective.metric": "top 1"}, "spec.objective.metric"),
    ({"spec.objective.goal": "maximise"}, "spec.objective.goal"),
    ({"spec.objective.goal": "Minimize", "spec.objective.reward": {"cube": {}}}, "spec.objective"),
    ({"spec.objective.goal": "Minimize"}, "needs reward: {identity: {}} or {inverseSquare: {}}"),
    ({"spec.objective.reward": {"cube": {}, "identity": {}}}, "spec.objective.reward"),
    ({"spec.objective.reward": {"inverseSquare": {"constant": 80}}}, "spec.objective.reward.inverseSquare.constant"),
    ({"spec.objective.reward": {"inverseSquare": {"constant": "-1"}}}, "spec.objective.reward.inverseSquare.constant"),
    ({f"{SPACE}.layers.initial": 0}, f"{SPACE}.layers.initial"),
    ({f"{SPACE}.layers.initial": 41}, f"{SPACE}.layers.initial"),
    ({f"{SPACE}.layers.maximum": 3}, "initial must not exceed maximum"),
    ({f"{SPACE}.layers.everySamples": 0}, f"{SPACE}.layers.everySamples"),
    ({f"{SPACE}.filterHeights": []}, f"{SPACE}.filterHeights"),
    ({f"{SPACE}.filterHeights": [1, 33]}, f"{SPACE}.filterHeights[1]"),
    ({f"{SPACE}.filterWidths": [3, 5, 3]}, f"{SPACE}.filterWidths"),
    ({f"{SPACE}.filters": list(range(1, 18))}, f"{SPACE}.filters"),
    ({f"{SPACE}.filters": [0]}, f"{SPACE}.filters[0]"),
    ({f"{SPACE}.filters": 24}, f"{SPACE}.filters"),
    ({f"{SPACE}.strides": [1, 5]}, f"{SPACE}.strides[1]"),
    ({f"{SPACE}.strides": [2, 2]}, "options must differ"),
    ({f"{SPACE}.skipConnections": 1}, f"{SPACE}.skipConnections"),
    ({"spec.searcher": {"ppo": {}, "random": {}}}, "spec.searcher"),
    ({"spec.searcher.seed": -1}, "spec.searcher.seed"),
    ({"spec.searcher.ppo": {"learningRate": 0.001}}, "spec.searcher.ppo.learningRate"),
    ({"spec.searcher.ppo": {"clip": "much"}}, "spec.searcher.ppo.clip"),
    ({"spec.searcher.ppo": {"batch": 0}}, "spec.searcher.ppo.batch"),
    ({"spec.searcher.reinforce": {"baselineDecay": "1.0"}}, "spec.searcher.reinforce.baselineDecay"),
    ({f"{TRAINER}.dataset": {}}, "set exactly one of digits, cifar10"),
    ({f"{TRAINER}.dataset": {"digits": {}, "cifar10": {"uri": "s3://data/c"}}}, f"{TRAINER}.dataset"),
    ({f"{TRAINER}.dataset": {"cifar10": {}}}, f"{TRAINER}.dataset.cifar10.uri"),
    ({f"{TRAINER}.dataset": {"cifar10": {"uri": "http://data/c"}}}, f"{TRAINER}.dataset.cifar10.uri"),
    ({f"{TRAINER}.dataset": {"digits": {"trainingImages": 1401}}}, f"{TRAINER}.dataset.digits.trainingImages"),
    ({f"{TRAINER}.dataset": {"images": {"uri": "/x"}}}, f"{TRAINER}.dataset.images.classes"),
    ({f"{TRAINER}.dataset": {"images": {"uri": "/x", "classes": 1}}}, f"{TRAINER}.dataset.images.classes"),
    (
        {f"{TRAINER}.dataset": {"images": {"uri": "/x", "classes": 2, "size": {"height": 8}}}},
        f"{TRAINER}.dataset.images.size.width",
    ),
    (
        {f"{TRAINER}.dataset": {"images": {"uri": "/x", "classes": 2, "augmentation": ["Flip", "Flip"]}}},
        "options must differ",
    ),
    ({f"{TRAINER}.optimizer": {"name": "Adam"}}, f"{TRAINER}.optimizer.name"),
    ({f"{TRAINER}.optimizer": {"warmupEpochs": 4}}, "optimizer.warmupEpochs must be below epochs"),
    *(
        (
            {
                f"{TRAINER}.dataset": {"text": {}},
                "spec.searchSpace": {"recurrentCell": {}},
                f"{TRAINER}.optimizer": optimizer,
            },
            "labelSmoothing and ema are for images",
        )
        for optimizer in ({"schedule": "Step"}, {"warmupEpochs": 1}, {"labelSmoothing": "0.1"}, {"ema": "0.9"})
    ),
    (
        {
            f"{TRAINER}.childrenPerPod": 2,
            "spec.objective.penalties": [{"metric": "latencySeconds", "target": "1"}],
        },
        "trainer.childrenPerPod must be 1 where objective.penalties names latencySeconds",
    ),
    ({f"{TRAINER}.latency": {"runs": 0}}, f"{TRAINER}.latency.runs"),
    ({f"{TRAINER}.epochs": 0}, f"{TRAINER}.epochs"),
    ({f"{TRAINER}.earlyStopping": {}}, f"{TRAINER}.earlyStopping.epoch"),
    ({f"{TRAINER}.earlyStopping": {"epoch": 4}}, "earlyStopping.epoch must be below epochs"),
    ({f"{TRAINER}.earlyStopping": {"epoch": 1, "worst": "1.0"}}, "must be below 1"),
    ({f"{TRAINER}.earlyStopping": {"epoch": 1, "startup": 101}}, f"{TRAINER}.earlyStopping.startup"),
    (
        {f"{TRAINER}.dataset": {"custom": {}}, f"{TRAINER}.earlyStopping": {"epoch": 1}},
        "earlyStopping must not be set with dataset.custom",
    ),
    ({f"{TRAINER}.batchSize": 1}, f"{TRAINER}.batchSize"),
    ({f"{TRAINER}.optimizer": {"momentum": "1"}}, f"{TRAINER}.optimizer.momentum"),
    ({f"{TRAINER}.threads": 0}, f"{TRAINER}.threads"),
    ({f"{TRAINER}.deadline": "soon"}, f"{TRAINER}.deadline"),
    ({f"{TRAINER}.attempts": 21}, f"{TRAINER}.attempts"),
    ({f"{TRAINER}.ttlSecondsAfterFinished": -1}, f"{TRAINER}.ttlSecondsAfterFinished"),
    ({f"{TRAINER}.image": ""}, f"{TRAINER}.image"),
    ({f"{TRAINER}.serviceAccountName": "No Spaces"}, f"{TRAINER}.serviceAccountName"),
    ({f"{TRAINER}.template": "gpu"}, f"{TRAINER}.template"),
    ({"spec.controller.template": []}, "spec.controller.template"),
    ({"spec.tracking": {}}, "spec.tracking.mlflow"),
    ({"spec.tracking": {"mlflow": {}}}, "spec.tracking.mlflow.uri"),
    ({"spec.tracking": {"mlflow": {"uri": "mlflow:5000"}}}, "spec.tracking.mlflow.uri"),
    ({"spec.tracking": {"mlflow": {"uri": "ftp://mlflow"}}}, "spec.tracking.mlflow.uri"),
    ({"spec.tracking": {"mlflow": {"uri": "http://m", "experiment": "it's"}}}, "spec.tracking.mlflow.experiment"),
    ({f"{S3}.bucket": _REMOVE}, f"{S3}.bucket"),
    ({f"{S3}.bucket": "Nas"}, f"{S3}.bucket"),
    ({f"{S3}.bucket": "ab"}, f"{S3}.bucket"),
    ({f"{S3}.prefix": "a b"}, f"{S3}.prefix"),
    ({f"{S3}.endpoint": "s3:9000"}, f"{S3}.endpoint"),
    ({f"{S3}.region": "US East"}, f"{S3}.region"),
    ({f"{S3}.credentialsSecret": {}}, f"{S3}.credentialsSecret.name"),
    ({f"{S3}.caBundle": {"key": "ca.crt"}}, f"{S3}.caBundle.configMap"),
]


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize(("changes", "named"), BAD, ids=[f"{i}-{next(iter(row[0]))}" for i, row in enumerate(BAD)])
def test_a_bad_manifest_is_refused_by_name(
    control_plane: ControlPlane, shared_namespace: str, changes: dict[str, Any], named: str
) -> None:
    result = apply(control_plane, shared_namespace, changed(changes))
    assert result.returncode != 0
    assert named in result.stderr


GOOD: list[dict[str, Any]] = [
    {},
    {"spec.objective": {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {"constant": "80"}}}},
    {"spec.searcher": {"reinforce": {"learningRate": "0.0005", "batch": 1}}},
    {"spec.searcher": {"random": {}, "seed": 2_147_483_647}},
    {f"{TRAINER}.earlyStopping": {"epoch": 3, "worst": "0", "startup": 100}},
    {"spec.budget": {"samples": 12800, "duration": "72h30m", "consecutiveFailures": 7}},
    {f"{SPACE}.layers": {"initial": 6, "increment": 2, "everySamples": 1600, "maximum": 40}},
    {f"{SPACE}.skipConnections": False, f"{SPACE}.strides": [1, 2, 3, 4]},
    {f"{TRAINER}.dataset": {"cifar10": {"uri": "s3://datasets/cifar10"}}},
    {f"{TRAINER}.dataset": {"cifar10": {"uri": "/data/cifar10", "validationImages": 100}}},
    {f"{TRAINER}.template": {"spec": {"nodeSelector": {"gpu": "h100"}, "anything": ["goes", 1, {"deep": True}]}}},
    {f"{S3}.endpoint": "https://[::1]:9000/base", f"{S3}.caBundle": {"configMap": "ca"}, f"{S3}.region": "eu-west-1"},
    {"spec.tracking": {"mlflow": {"uri": "https://mlflow.example:5000/base/path", "experiment": "/Users/me@x/a b"}}},
    {"spec.tracking": {"mlflow": {"uri": "http://mlflow", "credentialsSecret": {"name": "mlflow"}}, "template": {}}},
    {"metadata.name": "a" * 40},
]


@pytest.mark.parametrize("changes", GOOD, ids=range(len(GOOD)))
def test_a_good_manifest_is_accepted_and_means_the_same_to_the_models(
    control_plane: ControlPlane, namespace: str, changes: dict[str, Any]
) -> None:
    body = changed(changes)
    result = apply(control_plane, namespace, body)
    assert result.returncode == 0, result.stderr
    stored = control_plane.client.get(EXPERIMENTS, namespace, body["metadata"]["name"])
    assert NASExperiment.model_validate(stored).spec == NASExperiment.model_validate(body).spec


IMMUTABLE: list[tuple[str, dict[str, Any]]] = [
    ("objective", {"metric": "loss"}),
    ("searchSpace", {"convolutional": {"filters": [1, 2]}}),
    ("searcher", {"seed": 1}),
    ("searcher", {"random": {}}),
]


@pytest.mark.parametrize(("field", "value"), IMMUTABLE)
def test_what_makes_the_search_cannot_be_changed(
    control_plane: ControlPlane, namespace: str, field: str, value: dict[str, Any]
) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    with pytest.raises(ApiError, match=f"spec.{field}.*{field} is immutable: create a new experiment"):
        control_plane.client.patch(EXPERIMENTS, namespace, "digits", {"spec": {field: value}})


def test_what_steers_a_run_can_be_changed(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    spec = {
        "suspend": True,
        "parallelism": 9,
        "budget": {"samples": 200},
        "trainer": {"image": "mine:2", "template": {"spec": {"priorityClassName": "low"}}},
        "controller": {"template": {"metadata": {"labels": {"team": "a"}}}},
    }
    after = control_plane.client.patch(EXPERIMENTS, namespace, "digits", {"spec": spec})
    assert after["metadata"]["generation"] == 2
    assert after["spec"]["trainer"]["image"] == "mine:2"


def write_status(control_plane: ControlPlane, namespace: str, manager: str, status: dict[str, Any]) -> dict[str, Any]:
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "digits", "namespace": namespace},
        "status": status,
    }
    return control_plane.client.apply(
        EXPERIMENTS, namespace, "digits", body, field_manager=manager, subresource="status"
    )


def test_storage_is_fixed_by_the_first_record(control_plane: ControlPlane, namespace: str) -> None:
    client = control_plane.client
    client.create(EXPERIMENTS, namespace, manifest(namespace))
    bucket = {"spec": {"storage": {"s3": {"bucket": "another"}}}}
    assert client.patch(EXPERIMENTS, namespace, "digits", bucket)["spec"]["storage"]["s3"]["bucket"] == "another"
    write_status(control_plane, namespace, names.FIELD_MANAGER_CONTROLLER, {"epoch": 1})
    with pytest.raises(ApiError, match=r"spec\.storage is immutable once the search has written its first record"):
        client.patch(EXPERIMENTS, namespace, "digits", {"spec": {"storage": {"s3": {"bucket": "third"}}}})
    client.patch(EXPERIMENTS, namespace, "digits", {"spec": {"parallelism": 7}})


def test_a_replaced_controller_may_not_write(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    me = names.FIELD_MANAGER_CONTROLLER
    write_status(control_plane, namespace, me, {"epoch": 2, "progress": "1/100"})
    with pytest.raises(ApiError, match="a controller with a lower epoch has been replaced") as refused:
        write_status(control_plane, namespace, me, {"epoch": 1, "progress": "0/100"})
    assert refused.value.status == 422
    with pytest.raises(ApiError, match="a controller with a lower epoch has been replaced"):
        write_status(control_plane, namespace, me, {"progress": "0/100"})
    assert write_status(control_plane, namespace, me, {"epoch": 2, "progress": "2/100"})["status"]["epoch"] == 2
    assert write_status(control_plane, namespace, me, {"epoch": 3})["status"]["epoch"] == 3


def condition(kind: str, status: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": "Because",
        "message": "m",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def test_two_managers_leave_each_others_fields_alone(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    both = [condition("Progressing", "True"), condition("Suspended", "False")]
    write_status(control_plane, namespace, names.FIELD_MANAGER_OPERATOR, {"conditions": both, "state": "Pending"})
    write_status(
        control_plane,
        namespace,
        names.FIELD_MANAGER_CONTROLLER,
        {"epoch": 1, "samples": {"running": 2}, "problem": {"reason": "R", "message": "m"}},
    )
    after = write_status(
        control_plane, namespace, names.FIELD_MANAGER_OPERATOR, {"conditions": both[:1], "state": "Searching"}
    )["status"]
    assert (after["state"], after["epoch"], after["samples"]) == ("Searching", 1, {"running": 2})
    assert [item["type"] for item in after["conditions"]] == ["Progressing"]
    after = write_status(
        control_plane, namespace, names.FIELD_MANAGER_CONTROLLER, {"epoch": 1, "samples": {"running": 0}}
    )["status"]
    assert (after["state"], after["samples"]) == ("Searching", {"running": 0})
    assert "problem" not in after


@pytest.mark.parametrize(
    ("status", "named"),
    [
        ({"state": "Dancing"}, "status.state"),
        ({"conditions": [{**condition("Progressing", "Maybe")}]}, "status.conditions[0].status"),
        ({"conditions": [{**condition("Progressing", "True"), "reason": "two words"}]}, "status.conditions[0].reason"),
        (
            {"best": {"sample": 1, "reward": "NaN", "metric": "0", "architecture": "", "digest": "", "uri": ""}},
            "reward",
        ),
    ],
)
def test_a_bad_status_is_refused(
    control_plane: ControlPlane, namespace: str, status: dict[str, Any], named: str
) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    with pytest.raises(ApiError) as refused:
        write_status(control_plane, namespace, "somebody", status)
    assert named in refused.value.message


def test_the_definition_is_accepted_without_a_complaint(control_plane: ControlPlane) -> None:
    """Structural, within CEL's cost budget, and nothing pruned from what we generated."""
    crd = control_plane.client.get(CUSTOM_RESOURCE_DEFINITIONS, None, f"{names.PLURAL}.{names.GROUP}")
    conditions = {item["type"]: item["status"] for item in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


def test_explain_reads_like_documentation(control_plane: ControlPlane) -> None:
    space = control_plane.kubectl("explain", "nas.spec.searchSpace").stdout
    assert "The networks that may be sampled" in space
    assert "Convolutional networks with skip connections" in space
    everything = control_plane.kubectl("explain", "nas", "--recursive").stdout
    assert "skipConnections" in everything
    field = control_plane.kubectl("explain", "nas.spec.searcher.ppo.clip").stdout
    assert "How far the probability ratio may deviate from 1." in field


def test_the_listing_tells_the_story(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    write_status(
        control_plane,
        namespace,
        names.FIELD_MANAGER_CONTROLLER,
        {
            "epoch": 1,
            "progress": "42/100",
            "samples": {"running": 2, "queued": 3, "lost": 1},
            "best": {
                "sample": 17,
                "reward": "0.9",
                "metric": "0.9654",
                "architecture": "3x3:24",
                "digest": "ab",
                "uri": "s3://nas/x",
            },
        },
    )
    write_status(
        control_plane,
        namespace,
        names.FIELD_MANAGER_OPERATOR,
        {"state": "Searching", "conditions": [{**condition("Progressing", "True"), "reason": "Searching"}]},
    )
    head, row = control_plane.kubectl("get", "nas", "-n", namespace).stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "SAMPLES", "RUNNING", "BEST", "AGE"]
    assert row.split()[:5] == ["digits", "Searching", "42/100", "2", "0.9654"]
    wide = control_plane.kubectl("get", "nas", "-n", namespace, "-o", "wide").stdout.splitlines()
    assert wide[0].split()[6:] == ["QUEUED", "LOST", "REASON", "ARCHITECTURE"]
    assert wide[1].split()[6:] == ["3", "1", "Searching", "3x3:24"]
    assert "digits" in control_plane.kubectl("get", "ml", "-n", namespace).stdout
