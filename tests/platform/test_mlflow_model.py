"""The folder of ``nas export --format mlflow`` in the hands of the real MLflow, which has nothing of ours beside it.

No cluster: MLflow, with onnxruntime, is in an environment of its own, made once in the cache for its requirements.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from experiments import manifest

from nas_cli.main import main

pytestmark = [pytest.mark.platform, pytest.mark.slow]

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


def test_mlflow_loads_what_is_exported_and_predicts(mlflow_python: Path, tmp_path: Path) -> None:
    space = {"layers": {"initial": 2}, "filterHeights": [1, 3], "filterWidths": [1, 3], "filters": [4, 8]}
    trainer: dict[str, Any] = {"dataset": {"digits": {"trainingImages": 100}}, "epochs": 2, "rewardEpochs": 1}
    document = manifest(
        searchSpace={"convolutional": space},
        budget={"samples": 2},
        trainer={**trainer, "batchSize": 50},
        finalTraining={"top": 1, "epochs": 1, "grid": {"learningRate": ["0.1"]}},
    )
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(document))
    for words in (
        ["run", str(tmp_path / "digits.yaml"), "--folder", str(tmp_path / "run")],
        ["export", str(tmp_path / "run"), "-o", str(tmp_path / "model"), "--format", "mlflow"],
    ):
        outcome = CliRunner().invoke(main, words, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
    command = [str(mlflow_python), "-c", LOAD, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    pixels = numpy.array(said["example"]["pixels"], numpy.float32)
    assert pixels.shape == (1, 1, 8, 8) and (pixels == 8).all()
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    numpy.testing.assert_allclose(
        said["given"]["logits"], session.run(None, {"pixels": pixels})[0], rtol=1e-4, atol=1e-5
    )
    (item,) = json.loads(said["signature"]["inputs"])
    assert item["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert said["onnx"] == ["pixels"]
    assert said["sample"] == json.loads((tmp_path / "model" / "provenance.json").read_text())["sample"]
    # The signature is enforced.
    assert "(1, 1, 7, 8)" in done.stderr
