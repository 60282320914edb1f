"""examples/photos: real images that a user cuts, searches on and hands over, with the commands of its manifest."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from nas_api import names
from nas_api.handover import Preprocessing

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NAS = [sys.executable, "-c", "from nas_cli.main import main; main()"]
ENDS = {"train": 0.6, "validation": 0.8, "test": 1.0}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs in patches."""
    folder = tmp_path_factory.mktemp("photos")
    subprocess.run([sys.executable, str(PHOTOS / "cut.py"), str(folder)], check=True)
    return folder


def test_patches_come_from_disjoint_regions(photos: Path) -> None:
    (pixels, _) = load_sample_images().images
    begin = 0
    for part, share in ENDS.items():
        end = int(share * pixels.shape[1])
        for path in (photos / part / "china").iterdir():
            top, left = map(int, path.stem.split("-"))
            assert begin <= left and left + 24 <= end
            assert np.array_equal(np.asarray(Image.open(path)), pixels[top : top + 24, left : left + 24])
        begin = end


def test_the_search_runs_and_hands_over_a_network_for_these_images(photos: Path, tmp_path: Path) -> None:
    body = yaml.safe_load((PHOTOS / "experiment.yaml").read_text())
    body["spec"]["trainer"]["dataset"]["images"]["uri"] = str(photos)
    body["spec"]["budget"]["samples"] = 2
    body["spec"]["finalTraining"] = {"top": 1, "epochs": 3}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(body))
    done = subprocess.run([*NAS, "run", "experiment.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "nas-runs" / "photos"

    # The code that the controller has written, which never saw the data, fits it.
    network = runpy.run_path(str(run / names.BEST_MODULE))["Network"]()
    assert network(torch.zeros(2, 3, 24, 24)).shape == (2, 2)
    before = Preprocessing.model_validate_json((run / names.BEST_PREPROCESSING).read_bytes())
    assert (before.channels, before.height, before.width, before.classes) == (3, 24, 24, ("china", "flower"))

    # The ONNX model takes the files' pixels as they are, and has the accuracy that the provenance says.
    session = onnxruntime.InferenceSession((run / names.BEST_ONNX).read_bytes())
    paths = sorted((photos / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2).astype(np.float32)
    (logits,) = session.run(["logits"], {"pixels": pixels})
    right = [before.classes[each] == path.parent.name for each, path in zip(logits.argmax(1), paths, strict=True)]
    found = json.loads((run / names.BEST_PROVENANCE).read_text())["testMetric"]
    assert found > 0.6
    # The two round differently: a patch may lie on the edge.
    assert sum(right) / len(right) == pytest.approx(found, abs=2 / len(right))

    page = subprocess.run([*NAS, "export", str(run), "-o", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert page.returncode == 0, page.stdout + page.stderr
    code = (tmp_path / "out" / "README.md").read_text().split("```python")[1].split("```")[0]
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert said.stdout.strip() in before.classes, said.stderr
