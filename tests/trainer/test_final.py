"""Final trainings: a decaying learning rate, the test set once at the end, weights and ONNX beside the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits

from nas_api import names
from nas_api.child import ExitCode, FinalSettings, Result, StoreLocation, TrainerInput
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.handover import Preprocessing
from nas_api.source import network_source
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_store.folder import FolderStore
from nas_trainer import export
from nas_trainer.checkpoint import decode
from nas_trainer.images.data import fixed_order, load_images
from nas_trainer.images.training import ImageTraining
from nas_trainer.main import main
from nas_trainer.task import ExportFailed

Draw = Callable[..., ConvolutionalArchitecture]
DIGITS = DatasetSpec(digits=DigitsDataset(training_images=300))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def final_job(tmp_path: Path, architecture: ConvolutionalArchitecture, **changes: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "experiment": "digits",
        "sample": 7,
        "attempt": 1,
        "seed": 1,
        "metric": "accuracy",
        "architecture": architecture,
        "dataset": DIGITS,
        "epochs": 3,
        "reward_epochs": 2,
        "batch_size": 64,
        "optimizer": OptimizerSpec(),
        "final": FinalSettings(test=True, batch_norm_epsilon="0.01"),
        "store": StoreLocation(folder=str(tmp_path / "store")),
        **changes,
    }
    text = TrainerInput.model_validate(values).model_dump_json(by_alias=True)
    return {names.ENV_TRAINER_INPUT: text, "NAS_TERMINATION_LOG": str(tmp_path / "message")}


def result(tmp_path: Path, architecture: ConvolutionalArchitecture) -> Result:
    data = FolderStore(tmp_path / "store").get(names.result_key(7))
    assert data is not None
    return Result.parse(data, sample=7, digest=architecture.digest, metric="accuracy")


@pytest.mark.slow
def test_the_last_training_is_tested_once_and_leaves_what_others_can_use(tmp_path: Path, draw: Draw) -> None:
    architecture = draw(4, layers=4, block_layers=2, pooling=0.5)
    assert main(final_job(tmp_path, architecture)) == ExitCode.OK
    store = FolderStore(tmp_path / "store")
    tested = result(tmp_path, architecture)
    assert tested.history == ()  # nothing was measured before the end
    assert tested.parameters == tested.metrics["parameters"]

    # The readable module with the weights, and the ONNX model, both give the accuracy that is in the result.
    weights, model = store.get(names.weights_key(7)), store.get(names.onnx_key(7))
    assert weights is not None and model is not None
    namespace: dict[str, Any] = {}
    exec(network_source(architecture, in_channels=1, epsilon=0.01), namespace)
    network = namespace["Network"]().eval()
    network.load_state_dict(safetensors.torch.load(weights))
    images = load_images(DIGITS, StoreLocation(folder="/"), test=True)
    assert len(images.train_labels) == 697 and len(images.held_out_labels) == 1100
    with torch.no_grad():
        logits = network(images.held_out_images)
    accuracy = (logits.argmax(1) == images.held_out_labels).float().mean().item()
    assert tested.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    # The ONNX model takes the images as scikit-learn has them; the test's are the last in the fixed order.
    pixels = load_digits().images[fixed_order(1797)[697:], None].astype(np.float32)
    (found,) = session.run(["logits"], {"pixels": pixels})
    assert abs(found - logits.numpy()).max() <= 1e-4
    before = Preprocessing.model_validate_json(store.get(names.preprocessing_key(7)) or b"")
    assert before.classes == tuple("0123456789")
    assert before.mean is not None and before.deviation is not None
    scaled = torch.from_numpy((pixels - np.float32(before.mean)) / np.float32(before.deviation))
    torch.testing.assert_close(scaled, images.held_out_images)
    training = json.loads(store.get(names.training_key(7)) or b"")
    assert (training["batchSize"], training["final"]["test"], training["software"]["torch"]) == (
        *(64, True),
        torch.__version__,
    )
    assert "store" not in training
    assert tested.metrics["onnxDifference"] <= 1e-4


@pytest.mark.slow
def test_a_network_learns_from_cifars_files_and_is_tested_on_its_own(tmp_path: Path) -> None:
    # Real images that are at hand, in CIFAR-10's binary layout: digits of 32x32 grey pixels.
    table = load_digits()
    pixels = np.repeat(np.repeat(table.images * 15.9, 4, 1), 4, 2).astype(np.uint8).reshape(1797, 1, 1024)
    records = np.concatenate([table.target[:, None].astype(np.uint8), pixels.repeat(3, 1).reshape(1797, -1)], 1)
    (tmp_path / "cifar").mkdir()
    for number, batch in enumerate(np.split(records[:1500], 5), 1):
        (tmp_path / "cifar" / f"data_batch_{number}.bin").write_bytes(batch.tobytes())
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(records[1500:].tobytes())
    architecture = ConvolutionalArchitecture.parse_short("3x3:12/2x2 3x3:16/2x2<0 3x3:24<1")
    dataset = DatasetSpec(cifar10=CifarDataset(uri=str(tmp_path / "cifar"), validation_images=300))
    assert main(final_job(tmp_path, architecture, dataset=dataset, epochs=6)) == ExitCode.OK
    tested = result(tmp_path, architecture)
    assert (
        tested.metrics["accuracy"] > 0.3
    )  # three times chance: mirrored digits are no digits, and the training is short
    assert round(tested.metrics["accuracy"] * 297, 3).is_integer()
    assert tested.metrics["onnxDifference"] <= 1e-4

    # The ONNX model takes the test file's pixels as they are.
    session = onnxruntime.InferenceSession(FolderStore(tmp_path / "store").get(names.onnx_key(7)))
    (logits,) = session.run(["logits"], {"pixels": records[1500:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)})
    assert (logits.argmax(1) == records[1500:, 0]).mean() == pytest.approx(tested.metrics["accuracy"], abs=1e-6)


def test_a_failed_export_costs_the_model_and_not_the_result(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ImageTraining) -> tuple[bytes, float]:
        raise ExportFailed("no such operator")

    monkeypatch.setattr(ImageTraining, "onnx", fail)
    assert main(final_job(tmp_path, draw(1, layers=2))) == ExitCode.OK
    tested = result(tmp_path, draw(1, layers=2))
    assert "onnxDifference" not in tested.metrics
    assert tested.metrics["accuracy"] > 0
    keys = FolderStore(tmp_path / "store").list("samples/")
    left = (names.preprocessing_key, names.training_key, names.weights_key, names.result_key)
    assert keys == sorted(key(7) for key in left)


def exported(network: torch.nn.Module) -> tuple[bytes, float]:
    examples = [(torch.rand(batch, 1, 2, 2),) for batch in export.BATCHES]
    return export.onnx_of(network, examples, {"image": 0}, ("logits",))


@pytest.mark.slow
def test_a_model_that_differs_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(4, 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear)
    assert exported(network)[1] <= 1e-6
    converted = export._converted

    def another(*arguments: Any) -> bytes:
        data = converted(*arguments)
        with torch.no_grad():
            linear.bias.add_(0.001)
        return data

    monkeypatch.setattr(export, "_converted", another)
    with pytest.raises(ExportFailed, match=r"differ from torch's by 0\.001"):
        exported(network)


def test_a_damaged_model_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_converted", lambda *_: b"nonsense")
    with pytest.raises(ExportFailed, match="onnxruntime refuses it"):
        exported(torch.nn.Flatten())


def test_a_trial_of_the_grid_is_measured_on_the_validation_set(tmp_path: Path, draw: Draw) -> None:
    environment = final_job(tmp_path, draw(1, layers=2), final=FinalSettings(batch_norm_epsilon="0.001"))
    assert main(environment) == ExitCode.OK
    tried = result(tmp_path, draw(1, layers=2))
    assert len(tried.history) == 3
    assert tried.metrics["accuracy"] == max(tried.history[-2:])
    assert FolderStore(tmp_path / "store").list("samples/") == [names.result_key(7)]


def test_a_final_test_goes_on_from_its_checkpoint(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_trainer.child._CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(ImageTraining, "onnx", lambda self: (b"a model", 0.0))
    assert main(final_job(tmp_path, draw(1, layers=2))) == ExitCode.OK
    first = result(tmp_path, draw(1, layers=2))
    (tmp_path / "store" / names.result_key(7)).unlink()
    monkeypatch.setattr(ImageTraining, "_train_epoch", None)  # all epochs are done
    assert main(final_job(tmp_path, draw(1, layers=2), attempt=2)) == ExitCode.OK
    assert result(tmp_path, draw(1, layers=2)).metrics == first.metrics


def test_the_network_that_won_is_tested_as_it_is_where_nothing_is_to_be_added(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = draw(1, layers=2)
    won = final_job(tmp_path, architecture, sample=4, final=FinalSettings(on_validation=False))
    assert main(won) == ExitCode.OK
    store = FolderStore(tmp_path / "store")
    trained = Result.model_validate_json(store.get(names.result_key(4)) or b"")
    document = TrainerInput.model_validate_json(won[names.ENV_TRAINER_INPUT])
    state, progress = decode(document, store.get(names.checkpoint_key(4)) or b"")
    assert (progress.epochs, progress.metrics) == (3, trained.history)

    monkeypatch.setattr(ImageTraining, "onnx", lambda self: (b"a model", 0.0))
    monkeypatch.setattr(ImageTraining, "_train_epoch", None)  # all epochs are done
    settings = FinalSettings(test=True, on_validation=False, repeats=4)
    assert main(final_job(tmp_path, architecture, final=settings)) == ExitCode.OK
    test = load_images(DIGITS, StoreLocation(folder="/"), test=True, on_validation=False)
    other = ImageTraining(architecture, test, OptimizerSpec(), 64, 1, torch.device("cpu"), final=settings)
    other.restore(state, progress)
    handed_over, weights = safetensors.torch.load(store.get(names.weights_key(7)) or b""), other.weights()
    assert handed_over.keys() == weights.keys()
    assert all(torch.equal(handed_over[name], tensor) for name, tensor in weights.items())
    tested = result(tmp_path, architecture)
    assert tested.metrics["accuracy"] == other.metrics(1)["accuracy"]
    assert store.get(names.checkpoint_key(7)) is None, "the test has nothing of its own to save"


def test_a_test_trains_anew_where_the_network_that_won_has_left_nothing(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageTraining, "onnx", lambda self: (b"a model", 0.0))
    settings = FinalSettings(test=True, on_validation=False, repeats=4)
    assert main(final_job(tmp_path, draw(1, layers=2), final=settings)) == ExitCode.OK
    assert result(tmp_path, draw(1, layers=2)).metrics["accuracy"] > 0.2


def test_settings_of_a_final_training_reach_the_network_and_the_optimiser(draw: Draw) -> None:
    images = load_images(DIGITS, StoreLocation(folder="/"))

    def train(epochs: int, learning_rate: str, **settings: Any) -> ImageTraining:
        each = ImageTraining(
            draw(1, layers=2),
            images,
            OptimizerSpec(learning_rate=learning_rate),
            64,
            1,
            torch.device("cpu"),
            final=FinalSettings(**settings),
        )
        each.run(epochs, lambda: None)
        return each

    decayed, plain, slow = train(3, "0.1", decay_epoch=2), train(3, "0.1"), train(2, "0.1")
    assert decayed.progress.losses[:2] == plain.progress.losses[:2]
    assert decayed.progress.losses[2] != plain.progress.losses[2]
    # The third epoch has a tenth of the learning rate, and so has one that resumes there.
    resumed = ImageTraining(draw(1, layers=2), images, OptimizerSpec(learning_rate="0.01"), 64, 1, torch.device("cpu"))
    resumed.restore(slow.state(), slow.progress)
    resumed.run(3, lambda: None)
    assert resumed.progress.losses[2] == pytest.approx(decayed.progress.losses[2], rel=1e-5)
    norms = [
        each
        for each in train(1, "0.1", batch_norm_epsilon="0.02").network.modules()
        if isinstance(each, torch.nn.BatchNorm2d)
    ]
    assert [norm.eps for norm in norms] == [0.02] * 2
