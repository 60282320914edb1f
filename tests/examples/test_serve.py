"""examples/serve as a process: a trained network's real export answers images, and says what it cannot take."""

import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from cluster_fixtures import REPOSITORY, ControlPlane
from experiments import manifest
from hack.cluster.network import choose_ports
from patience import HANG_SECONDS
from PIL import Image
from sklearn.datasets import load_digits

from nas_api import names
from nas_api.child import S3Location, StoreLocation
from nas_cli.main import main
from nas_kube.resources import NAMESPACES
from nas_store import open_store
from nas_trainer.images.data import DIGITS_VALIDATION_IMAGES, fixed_order

EXAMPLE = REPOSITORY / "examples" / "serve"
TRAINING_IMAGES = 500
RAW = "application/octet-stream"
Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small search with a final training hands over."""
    folder = tmp_path_factory.mktemp("serve")
    space = {"layers": {"initial": 2}, "filterHeights": [1, 3], "filterWidths": [1, 3], "filters": [4, 8]}
    dataset = {"digits": {"trainingImages": TRAINING_IMAGES}}
    document = manifest(
        searchSpace={"convolutional": space},
        budget={"samples": 2},
        trainer={"dataset": dataset, "epochs": 2, "rewardEpochs": 1, "batchSize": 50},
        finalTraining={"top": 1, "epochs": 10, "grid": {"learningRate": ["0.1"]}},
    )
    (folder / "digits.yaml").write_text(yaml.safe_dump(document))
    for words in (
        ["run", str(folder / "digits.yaml"), "--folder", str(folder / "run")],
        ["export", str(folder / "run"), "-o", str(folder / "out")],
    ):
        outcome = CliRunner(env={"HOME": str(folder / "home")}).invoke(main, words, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
    assert told_nobody(folder / "home")
    return folder / "out"


def told_nobody(home: Path) -> bool:
    """Return whether onnxruntime has sent nothing: what it sends goes through a file in the user's home."""
    return not list(home.rglob("*onnxruntime*"))


def command(place: str | Path | None, **environment: str) -> dict[str, Any]:
    """Return how the server is started: it finds nothing of ours."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    told = {**clean, **environment, **({} if place is None else {"MODEL": str(place)})}
    return {"args": [sys.executable, "-P", str(EXAMPLE / "serve.py")], "env": told}


@contextmanager
def serving(place: str | Path, **environment: str) -> Iterator[Ask]:
    """Serve a model; give a function that sends something and returns status and document."""
    port = choose_ports(["serve"], ())["serve"]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(**command(place, PORT=str(port), **environment), **streams)
    assert process.stdout is not None and process.stderr is not None

    def ask(body: bytes | None = None, kind: str = RAW, path: str = "/predict", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, {"content-type": kind, **headers})
            answer = connection.getresponse()
            return answer.status, json.load(answer)
        finally:
            connection.close()

    try:
        # It says so when it listens.
        assert f"on port {port}" in process.stdout.readline(), process.stderr.read()
        yield ask
        process.terminate()
        _, said = process.communicate(timeout=HANG_SECONDS)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()


def png(levels: Any, mode: str = "L") -> bytes:
    data = io.BytesIO()
    Image.fromarray(numpy.asarray(levels, numpy.uint8)).convert(mode).save(data, "PNG")
    return data.getvalue()


@pytest.mark.slow
def test_raw_images_get_the_figure_of_the_status(model: Path, tmp_path: Path) -> None:
    digits = load_digits()
    test = fixed_order(len(digits.target))[TRAINING_IMAGES + DIGITS_VALIDATION_IMAGES :]
    provenance = json.loads((model / "provenance.json").read_text())
    session = onnxruntime.InferenceSession(model / "network.onnx")
    (logits,) = session.run(["logits"], {"pixels": digits.images[test[:1]][None].astype(numpy.float32)})
    expected = numpy.exp(logits[0].astype(float)) / numpy.exp(logits[0].astype(float)).sum()
    with serving(model, HOME=str(tmp_path)) as ask:
        status, about = ask(path="/healthz")
        assert status == 200 and about["digest"] == provenance["digest"]
        answers = [ask(digits.images[each].astype(numpy.uint8).tobytes()) for each in test]
        # Sixteenths of white; the brightest of 255 is the brightest of 16.
        by_png = ask(png(digits.images[test[0]] * 255 / 16), "image/png")
    assert told_nobody(tmp_path)
    assert {status for status, _ in answers} == {200}
    assert provenance["testMetric"] > 0.3, "more than always the same answer gets"
    right = [answer["class"] == str(label) for (_, answer), label in zip(answers, digits.target[test], strict=True)]
    assert numpy.mean(right) == pytest.approx(provenance["testMetric"], abs=1e-6)
    _, first = answers[0]
    assert list(first["probabilities"]) == list("0123456789")
    numpy.testing.assert_allclose(list(first["probabilities"].values()), expected, rtol=1e-4, atol=1e-6)
    assert by_png[1]["class"] == first["class"]
    numpy.testing.assert_allclose(list(by_png[1]["probabilities"].values()), expected, atol=0.05)


@pytest.mark.slow
def test_what_is_no_such_image_is_refused_and_the_server_goes_on(model: Path) -> None:
    gray, good = numpy.arange(64).reshape(8, 8), bytes(64)
    wrong: dict[str, tuple[bytes, str]] = {
        "63 bytes: raw pixels are 1 x 8 x 8, a byte each": (good[1:], RAW),
        "a pixel of 17: raw pixels are at most 16": (bytes([17]) * 64, RAW),
        "content type text/plain: send image/png": (good, "text/plain"),
        "no PNG that can be read": (good, "image/png"),
        "no PNG that can be read: ": (png(gray)[:-30], "image/png"),
        "a PNG of RGB (8, 8): L (8, 8) is taken": (png(gray, "RGB"), "image/png"),
        "a PNG of L (9, 8): L (8, 8) is taken": (png(numpy.zeros((8, 9))), "image/png"),
    }
    with serving(model) as ask:
        for words, (body, kind) in wrong.items():
            status, answer = ask(body, kind)
            assert status == 400 and words in answer["error"], answer
        for length in ("-1", str(2 << 20)):
            status, answer = ask(b"", **{"content-length": length})
            assert status == 400 and "content-length must be a number of bytes up to 1048576" in answer["error"]
        assert [ask(path="/")[0], ask(good, path="/")[0], ask(good)[0]] == [404, 404, 200]


@pytest.mark.slow
@pytest.mark.s3
def test_a_model_is_read_from_its_bucket(model: Path, s3_location: S3Location) -> None:
    location = s3_location.model_copy(update={"prefix": "nas/digits/uid/"})
    store = open_store(StoreLocation(s3=location))
    for key in (names.BEST_ONNX, names.BEST_PREPROCESSING, names.BEST_PROVENANCE):
        store.put(key, (model / Path(key).name).read_bytes())
    uri = f"s3://{location.bucket}/{location.prefix}best/"
    keys = {key: os.environ[key] for key in names.CREDENTIAL_KEYS}
    with serving(uri, AWS_ENDPOINT_URL_S3=str(location.endpoint), **keys) as ask:
        assert ask(bytes(64))[0] == 200

    def said(place: str, **environment: str) -> str:
        done = subprocess.run(**command(place, **environment), capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return str(done.stderr)

    there = {"AWS_ENDPOINT_URL_S3": str(location.endpoint), "AWS_MAX_ATTEMPTS": "1"}
    assert "no trained network in s3://" in said(uri.replace("uid", "other"), **there, **keys)
    assert "NoSuchBucket" in said("s3://missing/best/", **there, **keys)
    assert "credentials" in said(uri, **there, AWS_EC2_METADATA_DISABLED="true")


@pytest.mark.slow
def test_where_there_is_no_network_for_images_it_ends_and_says_so(model: Path, tmp_path: Path) -> None:
    def said(place: Path | None) -> str:
        done = subprocess.run(**command(place, MODEL=""), capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return str(done.stderr)

    assert "MODEL must name a folder" in said(None)
    provenance = json.loads((model / "provenance.json").read_text())
    # While the search goes on: nothing, then an architecture without weights; at last, here, a language model.
    assert "no trained network" in said(tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps({**provenance, "testMetric": None}))
    assert "no trained network" in said(tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    assert "none for images" in said(tmp_path)


@pytest.mark.parametrize("changed", ["network.onnx", "preprocessing.json"])
def test_another_file_than_the_one_that_was_tested_is_refused(tmp_path: Path, changed: str) -> None:
    files = {"network.onnx": b"a network", "preprocessing.json": b"{}"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (tmp_path / "provenance.json").write_text(json.dumps({"testMetric": 0.5, "files": digests}))
    for name, data in files.items():
        (tmp_path / name).write_bytes(b"[]" if name == changed else data)
    done = subprocess.run(**command(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"{changed} in {tmp_path} is not the file that was tested" in done.stderr


@pytest.mark.cluster
def test_its_manifests_are_taken_where_the_restricted_standard_holds(
    control_plane: ControlPlane, namespace: str
) -> None:
    warn = {"metadata": {"labels": {"pod-security.kubernetes.io/warn": "restricted"}}}
    control_plane.client.patch(NAMESPACES, None, namespace, warn)
    done = control_plane.kubectl("apply", "-n", namespace, "-k", str(EXAMPLE))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (name,) = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("configmap/model-")]
    deployment = json.loads(control_plane.kubectl("get", "-n", namespace, "deployment", "serve", "-o", "json").stdout)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] == name.removeprefix("configmap/")
