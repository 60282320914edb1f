"""The rest of the method on a real cluster: twins of the paper's rows, with final training, and a transfer."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.places import NAMESPACE
from e2e.conftest import Document, World, small

from nas_api import names

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
TWINS = Path(__file__).resolve().parents[2] / "examples" / "paper"


def twin(file: str, name: str, samples: int, **spec: Any) -> Document:
    """Return a small twin of a row with fewer samples, on the embedded S3, with fields of its spec replaced."""
    document: Document = yaml.safe_load((TWINS / file).read_text(encoding="utf-8"))
    document["metadata"] = {"name": name, "namespace": NAMESPACE}
    document["spec"]["budget"] = {"samples": samples}
    document["spec"]["parallelism"] = 2
    document["spec"]["storage"] = small(name, samples)["spec"]["storage"]
    document["spec"] |= spec
    return document


def test_a_row_of_the_paper_with_final_training(world: World) -> None:
    """Blocks, pooling, replicas, a random arm and a penalty; then the best again, one test, and all that is left."""
    row = twin("cifar-v3-small.yaml", "row", 8)
    row["spec"]["searcher"] = {"reinforce": {"replicas": 2, "batch": 2}, "control": {"random": "0.4"}}
    row["spec"]["objective"]["penalties"] = [{"metric": "parameters", "target": "20000"}]
    row["spec"]["trainer"] |= {"epochs": 1, "rewardEpochs": 1}
    row["spec"]["finalTraining"] = {"top": 2, "epochs": 2, "grid": {"learningRate": ["0.1", "0.05"]}}
    world.apply(row)
    status = world.wait_complete("row")
    document = world.experiment("row")
    final = status["final"]
    assert (final["trained"], final["lost"], final["total"]) == (4, 0, 4)
    assert 0 < float(final["testMetric"]) <= 1
    assert status["control"]["random"]["observed"] + status["control"]["policy"]["observed"] == 8
    assert status["samples"]["observed"] == 8
    objects = world.objects(document)
    for key in (
        names.BEST_ARCHITECTURE,
        names.BEST_MODULE,
        names.BEST_PREPROCESSING,
        names.BEST_WEIGHTS,
        names.BEST_ONNX,
        names.BEST_PROVENANCE,
        names.REPORT,
    ):
        assert key in objects
    location = world.location(document)
    best = world.s3().get_object(Bucket=location.bucket, Key=location.prefix + names.BEST_ARCHITECTURE)["Body"].read()
    space = row["spec"]["searchSpace"]["convolutional"]
    for field in ("blockLayers", "blockOutput"):
        assert json.loads(best)[field] == space[field]
    world.kubectl("delete", "nas", "row")


def test_a_cell_is_found_and_trained_on_characters(world: World) -> None:
    """Words of the embedded text choose a cell; an experiment that names the first trains that cell on characters."""
    language = {"parameters": 60_000, "steps": 20, "layers": 1, "dropout": "0.0"}
    words = twin("ptb-small.yaml", "words", 3)
    words["spec"]["trainer"] |= {"epochs": 1, "rewardEpochs": 1, "language": language}
    words["spec"].pop("finalTraining", None)
    world.apply(words)
    found = world.wait_complete("words")
    assert float(found["best"]["metric"]) > 1

    characters = twin("ptb-small.yaml", "characters", 1)
    characters["spec"]["searchSpace"] = {"fixed": {"experiment": "words"}}
    characters["spec"]["searcher"] = {"random": {}}
    characters["spec"]["objective"] = {"metric": "bitsPerCharacter", "goal": "Minimize", "reward": {"identity": {}}}
    characters["spec"]["trainer"] |= {"dataset": {"text": {"level": "character"}}, "epochs": 1, "rewardEpochs": 1}
    characters["spec"]["trainer"]["language"] = language
    characters["spec"].pop("finalTraining", None)
    world.apply(characters)
    transferred = world.wait_complete("characters")
    assert transferred["best"]["digest"] == found["best"]["digest"]
    assert 0 < float(transferred["best"]["metric"]) < 8
    world.kubectl("delete", "nas", "words", "characters")


def test_children_share_pods_and_the_hopeless_end_early(world: World) -> None:
    """Two children a pod, the last one alone; one look at the learning curves after the first of three epochs."""
    pairs = small("pairs", 7, parallelism=2)
    pairs["spec"]["searcher"] = {"random": {}, "duplicates": "Train"}
    pairs["spec"]["trainer"] |= {
        "childrenPerPod": 2,
        "epochs": 3,
        "earlyStopping": {"epoch": 1, "worst": "0.9", "startup": 2},
    }
    world.apply(pairs)
    status = world.wait_complete("pairs")
    assert status["samples"]["observed"] == 7 and status["samples"].get("retried", 0) == 0
    jobs = world.items("jobs", f"{names.LABEL_EXPERIMENT}=pairs")
    samples = sorted(job["metadata"]["annotations"][names.ANNOTATION_SAMPLES] for job in jobs)
    assert samples == ["0,1", "2,3", "4,5", "6"]
    # Of the newest the worst nine in ten are ended: hardly one of five comes to its end.
    assert status["samples"]["stopped"] > 0
    world.kubectl("delete", "nas", "pairs")
