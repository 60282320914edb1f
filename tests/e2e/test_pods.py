"""Children of two pods on a real cluster: torchrun's ranks find each other by name, and one that is lost ends both."""

import json
from collections.abc import Iterator

import pytest
from e2e.conftest import Document, World, distributed, small

from nas_api import names
from nas_log.records import Launched, Observed

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
# The example, which the first attempt does not get through: it waits before the sixth epoch, until it is ended.
OBSTACLE = """
from pathlib import Path
code, line = Path("/scripts/train.py").read_text(), "        order = "
assert line in code
wait = "        while epoch == 5 and not state: __import__('time').sleep(0.2)\\n"
exec(compile(code.replace(line, wait + line), "train.py", "exec"))
"""


@pytest.fixture
def document(world: World) -> Iterator[Document]:
    """The example's manifest, with the obstacle beside its program."""
    name = "spirals"
    yield distributed(world, name, obstacle=OBSTACLE)
    world.try_kubectl("delete", "nas", name, "--ignore-not-found")
    world.try_kubectl("delete", "configmap", name, "--ignore-not-found")


def pods(world: World, experiment: str) -> list[Document]:
    """Return the pods of an experiment's children."""
    return world.items("pods", f"{names.LABEL_EXPERIMENT}={experiment},{names.LABEL_ROLE}={names.ROLE_TRAINER}")


def test_a_rank_whose_pod_is_deleted_ends_the_child_which_goes_on_from_its_checkpoint(
    world: World, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    document["spec"]["budget"] = {"samples": 1}
    document["spec"]["trainer"] |= {"command": ["torchrun", "/scripts/obstacle.py"], "epochs": 8}
    world.apply(document)
    name = document["metadata"]["name"]
    found = world.experiment(name)
    store = world.store(found, monkeypatch)
    show = lambda: pods(world, name)  # noqa: E731
    world.eventually(lambda: store.get(names.checkpoint_key(0)), show)
    (second,) = [pod for pod in pods(world, name) if pod["metadata"]["labels"][names.COMPLETION_INDEX] == "1"]
    world.kubectl("delete", "pod", second["metadata"]["name"], "--wait=false")

    status = world.wait_complete(name)
    assert (status["samples"]["observed"], status["samples"]["retried"]) == (1, 1)
    records = world.log(found, monkeypatch)
    assert [record.attempt for record in records if isinstance(record, Launched)] == [1, 2]
    (observed,) = [record for record in records if isinstance(record, Observed)]
    result = json.loads(store.get(names.result_key(0)) or b"")
    assert (result["attempt"], len(result["history"])) == (2, 8)
    assert observed.metrics["accuracy"] == result["history"][-1] > 0.5
    assert not store.get(names.checkpoint_key(0)), "it is the second attempt's now"
    assert store.get(names.checkpoint_key(0, 2))
    again = [pod for pod in pods(world, name) if pod["metadata"]["labels"][names.LABEL_ATTEMPT] == "2"]
    assert sorted(pod["metadata"]["labels"][names.COMPLETION_INDEX] for pod in again) == ["0", "1"]
    for pod in again:
        said = world.kubectl("logs", pod["metadata"]["name"], "-c", names.TRAINER_CONTAINER)
        assert "goes on after epoch" in said, "every rank has it from the first one"
    world.kubectl("delete", "nas", name)
    world.eventually(lambda: not world.items("services", f"{names.LABEL_EXPERIMENT}={name}"), lambda: "its Service")


def test_a_final_training_in_two_pods_hands_its_network_over(world: World) -> None:
    document = small("pair", 2, parallelism=2)
    document["spec"]["trainer"] |= {"epochs": 1, "rewardEpochs": 1, "ttlSecondsAfterFinished": 7200}
    document["spec"]["finalTraining"] = {"top": 1, "epochs": 3, "pods": 2}
    world.apply(document)
    status = world.wait_complete("pair")
    assert (status["final"]["trained"], status["final"]["lost"]) == (1, 0)
    assert 0 < float(status["final"]["testMetric"]) <= 1
    objects = world.objects(world.experiment("pair"))
    assert {names.BEST_WEIGHTS, names.BEST_ONNX, names.BEST_PREPROCESSING} <= set(objects)
    selector = f"{names.LABEL_EXPERIMENT}=pair,{names.LABEL_ROLE}={names.ROLE_TRAINER}"
    completions = sorted(job["spec"]["completions"] for job in world.items("jobs", selector))
    assert completions == [1, 1, 2, 2], "two of the search, one of the grid, one test"
    world.kubectl("delete", "nas", "pair")
