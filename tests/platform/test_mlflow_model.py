"""``nas export --format mlflow|kserve`` in the hands of who reads it, with nothing of ours beside it.

No cluster: MLflow, with onnxruntime, and Triton's schema of a model's configuration are in environments of their own.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import yaml
from cli.test_export import FINAL, TEXT, write_text
from click.testing import CliRunner
from experiments import manifest
from hack.cluster.paths import REPOSITORY
from venvs import python_with

from nas_cli.main import main

pytestmark = [pytest.mark.platform, pytest.mark.slow]

IMAGES: dict[str, Any] = {
    "searchSpace": {
        "convolutional": {
            "layers": {"initial": 2},
            "filterHeights": [1, 3],
            "filterWidths": [1, 3],
            "filters": [4, 8],
        }
    },
    "trainer": {"dataset": {"digits": {"trainingImages": 100}}, "epochs": 2, "rewardEpochs": 1, "batchSize": 50},
}


@pytest.fixture(scope="module")
def triton() -> Path:
    """Python with Triton's client, which carries the server's schemas."""
    return python_with("triton", (REPOSITORY / "requirements" / "triton.txt").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of two searches, in both layouts: ``images`` and ``text``."""
    folder = tmp_path_factory.mktemp("models")
    text = {"vocabulary": 50, "level": "word", "uri": str(write_text(folder / "data"))}
    specs = {"images": IMAGES, "text": {**TEXT, "trainer": {**TEXT["trainer"], "dataset": {"text": text}}}}
    for name, spec in specs.items():
        document = manifest(name=name, budget={"samples": 2}, finalTraining=FINAL, **spec)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
        run = str(folder / f"{name}-run")
        for words in (
            ["run", str(folder / f"{name}.yaml"), "--folder", run],
            ["export", run, "-o", str(folder / f"{name}-mlflow"), "--format", "mlflow"],
            ["export", run, "-o", str(folder / "repository"), "--format", "kserve"],
        ):
            outcome = CliRunner().invoke(main, words, catch_exceptions=False)
            # Shown where one of them fails: what a search has come to tells why there is nothing to export.
            print(outcome.output)
            assert outcome.exit_code == 0, outcome.output
    return folder


def ask(python: Path, code: str, folder: Path) -> tuple[Any, str]:
    """Run code on a folder; return the document that it prints, and what it says besides."""
    command = [str(python), "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


LOAD = """
import json, sys
import mlflow.pyfunc
from mlflow.models import Model
folder = sys.argv[1]
model = mlflow.pyfunc.load_model(folder)
known = Model.load(folder)
example = known.load_input_example(folder)
given = model.predict(example)
native = mlflow.onnx.load_model(folder)
print(json.dumps({
    "example": {name: value.tolist() for name, value in example.items()},
    "given": {name: value.tolist() for name, value in given.items()},
    "signature": model.metadata.signature.to_dict(),
    "sample": known.metadata["sample"],
    "onnx": [each.name for each in native.graph.input],
}))
try:
    model.predict({"pixels": example["pixels"][:, :, 1:]})
except mlflow.exceptions.MlflowException as error:
    print(error, file=sys.stderr)
"""


def test_mlflow_loads_a_network_for_images_and_predicts(mlflow_python: Path, exported: Path) -> None:
    folder = exported / "images-mlflow"
    said, refused = ask(mlflow_python, LOAD, folder)
    pixels = numpy.array(said["example"]["pixels"], numpy.float32)
    assert pixels.shape == (1, 1, 8, 8) and (pixels == 8).all()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    expected = session.run(None, {"pixels": pixels})[0]
    numpy.testing.assert_allclose(said["given"]["logits"], expected, rtol=1e-4, atol=1e-5)
    (item,) = json.loads(said["signature"]["inputs"])
    assert item["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert said["onnx"] == ["pixels"]
    assert said["sample"] == json.loads((folder / "provenance.json").read_text())["sample"]
    # The signature is enforced.
    assert "(1, 1, 7, 8)" in refused


STEP = """
import json, sys
import mlflow.pyfunc
import numpy
from mlflow.models import Model
folder = sys.argv[1]
model = mlflow.pyfunc.load_model(folder)
example = Model.load(folder).load_input_example(folder)
# The example is one text of one step; here are three, of two steps.
state = {name: numpy.repeat(example[name], 3, axis=1) for name in ("states", "memories")}
for words in ([3, 1, 4], [1, 5, 9]):
    given = model.predict({"words": numpy.array(words), **state})
    state = {"states": given["newStates"], "memories": given["newMemories"]}
alone = model.predict(example)
print(json.dumps([
    {name: [value.dtype.name, list(value.shape)] for name, value in example.items()},
    {name: value.tolist() for name, value in given.items()},
    {name: list(value.shape) for name, value in alone.items()},
]))
"""


def test_mlflow_loads_a_language_model_and_steps(mlflow_python: Path, exported: Path) -> None:
    folder = exported / "text-mlflow"
    (example, given, alone), _ = ask(mlflow_python, STEP, folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    layers, _, width = session.get_inputs()[1].shape
    tokens = len(json.loads((folder / "vocabulary.json").read_text())["tokens"])
    state = ["float32", [layers, 1, width]]
    assert example == {"words": ["int64", [1]], "states": state, "memories": state}
    assert alone == {"logits": [1, tokens], "newStates": [layers, 1, width], "newMemories": [layers, 1, width]}
    states = memories = numpy.zeros((layers, 3, width), numpy.float32)
    for words in ([3, 1, 4], [1, 5, 9]):
        feed = {"words": numpy.array(words), "states": states, "memories": memories}
        logits, states, memories = session.run(None, feed)
    for name, expected in (("logits", logits), ("newStates", states), ("newMemories", memories)):
        numpy.testing.assert_allclose(given[name], expected, rtol=1e-4, atol=1e-5)


PARSE = """
import importlib.util, json, pathlib, sys
from google.protobuf import json_format, text_format
# Alone: what lies beside it wants grpc.
place = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("model_config_pb2", f"{place}/grpc/model_config_pb2.py")
schema = importlib.util.module_from_spec(spec)
spec.loader.exec_module(schema)
read = {}
for file in pathlib.Path(sys.argv[1]).glob("*/config.pbtxt"):
    config = text_format.Parse(file.read_text(), schema.ModelConfig())
    read[file.parent.name] = json_format.MessageToDict(config, preserving_proto_field_name=True)
print(json.dumps(read))
"""


def test_triton_s_own_schema_reads_the_configuration_as_the_model_is(triton: Path, exported: Path) -> None:
    repository = exported / "repository"
    read, _ = ask(triton, PARSE, repository)
    assert set(read) == {"images", "text"}
    types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    for name, config in read.items():
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        assert (config["name"], config["backend"]) == (name, "onnxruntime")
        # Then the server takes all dimensions as they are, the batch among them.
        assert config.get("max_batch_size", 0) == 0
        for side, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
            told = [(each["name"], each["data_type"], [int(size) for size in each["dims"]]) for each in config[side]]
            assert told == [
                (each.name, types[each.type], [size if isinstance(size, int) else -1 for size in each.shape])
                for each in tensors
            ]
