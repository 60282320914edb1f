"""Training: splits that never change, whole epochs that resume bit for bit, augmentation, divergence."""

import copy
import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer import checkpoint
from nas_trainer.data import CIFAR10_FILE_BYTES, CIFAR10_FILES, DatasetUnavailable, Images, fixed_order, load
from nas_trainer.network import Network
from nas_trainer.optimizer import NesterovSGD
from nas_trainer.training import Progress, Training, augment, best_of_last

Draw = Callable[..., ConvolutionalArchitecture]
NOWHERE = StoreLocation(folder="/nowhere")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load(DatasetSpec(digits=DigitsDataset(training_images=300)), NOWHERE)


def training(
    architecture: ConvolutionalArchitecture, images: Images, seed: int = 1, learning_rate: str = "0.1"
) -> Training:
    return Training(architecture, images, OptimizerSpec(learning_rate=learning_rate), 64, seed, torch.device("cpu"))


def document(architecture: ConvolutionalArchitecture, **changes: object) -> TrainerInput:
    values: dict[str, object] = {
        "experiment": "digits",
        "sample": 3,
        "attempt": 1,
        "seed": 1,
        "metric": "accuracy",
        "architecture": architecture,
        "dataset": DatasetSpec(digits=DigitsDataset(training_images=300)),
        "epochs": 4,
        "reward_epochs": 2,
        "batch_size": 64,
        "optimizer": OptimizerSpec(),
        "store": NOWHERE,
        **changes,
    }
    return TrainerInput.model_validate(values)


# ---------------------------------------------------------------- data


def test_digits_are_scikit_learns_and_splits_never_change() -> None:
    images = load(DatasetSpec(digits=DigitsDataset(training_images=1000)), NOWHERE)
    assert images.train_images.shape == (1000, 1, 8, 8)
    assert images.validation_images.shape == (397, 1, 8, 8)
    truth = load_digits()
    order = fixed_order(1797)
    assert sorted(order) == list(range(1797))
    assert images.train_labels.tolist() == truth.target[order[:1000]].tolist()
    assert images.validation_labels.tolist() == truth.target[order[1000:1397]].tolist()
    pixels = truth.images[order[:1397]].astype(np.float32)
    whitened = (pixels - pixels[:1000].mean()) / pixels[:1000].std(ddof=1)
    np.testing.assert_allclose(torch.cat([images.train_images, images.validation_images])[:, 0], whitened, atol=1e-5)
    # Every child of every version must see the same split.
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "12f2a64e0ce97372"


def test_no_child_sees_a_test_image() -> None:
    images = load(DatasetSpec(digits=DigitsDataset(training_images=1400)), NOWHERE)
    assert len(images.train_labels) + len(images.validation_labels) == 1797  # a user may leave no test set
    images = load(DatasetSpec(digits=DigitsDataset(training_images=1000)), NOWHERE)
    assert len(images.train_labels) + len(images.validation_labels) == 1397


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in CIFAR10_FILES:
        records = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        # Red is bright, blue is dark: a mixed-up layout would show.
        records[:, 1:1025] |= 128
        records[:, 2049:] &= 63
        (tmp_path / name).write_bytes(records.tobytes())
    return tmp_path


@pytest.mark.slow
def test_cifar10_is_split_and_whitened_and_the_test_file_is_not_even_there(cifar: Path) -> None:
    images = load(DatasetSpec(cifar10=CifarDataset(uri=str(cifar), validation_images=5000)), NOWHERE)
    assert images.train_images.shape == (45_000, 3, 32, 32)
    assert images.validation_images.shape == (5_000, 3, 32, 32)
    assert images.augmented
    assert images.train_images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.train_images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    first = np.frombuffer((cifar / CIFAR10_FILES[fixed_order(50_000)[0] // 10_000]).read_bytes(), np.uint8)
    record = first.reshape(-1, 3073)[fixed_order(50_000)[0] % 10_000]
    assert images.train_labels[0] == record[0]
    pixels = torch.from_numpy(record[1:].reshape(3, 32, 32).astype(np.float32))
    for channel in range(3):
        assert torch.corrcoef(torch.stack([images.train_images[0, channel].flatten(), pixels[channel].flatten()]))[
            0, 1
        ] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("damage", ["missing", "short", "folder"])
def test_a_broken_cifar10_says_what_is_wrong_and_what_to_do(tmp_path: Path, damage: str) -> None:
    if damage == "short":
        (tmp_path / CIFAR10_FILES[0]).write_bytes(b"\0" * 100)
    if damage == "folder":
        (tmp_path / CIFAR10_FILES[0]).mkdir()
    with pytest.raises(DatasetUnavailable) as caught:
        load(DatasetSpec(cifar10=CifarDataset(uri=str(tmp_path))), NOWHERE)
    text = str(caught.value)
    assert str(tmp_path / CIFAR10_FILES[0]) in text
    assert "trainer.dataset.cifar10.uri" in text
    assert "\n" not in text
    expected = {"missing": "is missing", "short": f"100 bytes, not {CIFAR10_FILE_BYTES:,}", "folder": "cannot be read"}
    assert expected[damage] in text


# ---------------------------------------------------------------- augmentation


def test_augmentation_shifts_by_at_most_the_padding_and_flips_half() -> None:
    images = torch.zeros(400, 1, 16, 16)
    images[:, 0, 8, 4] = 1  # left of the middle: a flip is seen
    out = augment(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    where = out[:, 0].flatten(1).argmax(1)
    rows, columns = where // 16, where % 16
    assert set((rows - 8).tolist()) == set(range(-4, 5))
    flipped = columns > 8
    assert 140 < int(flipped.sum()) < 260
    assert set(columns[~flipped].tolist()) <= set(range(0, 9))
    assert set(columns[flipped].tolist()) <= set(range(7, 16))
    assert torch.equal(augment(images, torch.Generator().manual_seed(0)), out)


# ---------------------------------------------------------------- optimiser


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_optimiser_computes_what_torchs_does(draw: Draw, momentum: float) -> None:
    torch.manual_seed(0)
    ours = Network(draw(3), 1, 10)
    theirs = copy.deepcopy(ours)
    optimizer = NesterovSGD(ours.parameters(), 0.1, momentum, 0.01)
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01, nesterov=momentum > 0
    )
    for _ in range(5):
        images, labels = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
        for network in (ours, theirs):
            torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_child_loads_nothing_that_costs_more_than_its_training() -> None:
    program = """
import sys, torch
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.child import StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_trainer.data import load
from nas_trainer.training import Training
images = load(DatasetSpec(digits=DigitsDataset(training_images=100)), StoreLocation(folder="/"))
network = ConvolutionalArchitecture.parse_short("3x3:4")
Training(network, images, OptimizerSpec(), 50, 0, torch.device("cpu")).run(1, lambda: None)
print([name for name in ("torch._dynamo", "sklearn", "scipy", "boto3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- training


def test_a_network_learns_the_digits(draw: Draw, digits: Images) -> None:
    each = training(draw(1, layers=3, strides=(1,)), digits)
    each.run(6, lambda: None)
    assert each.progress.epochs == 6
    assert best_of_last(each.progress.accuracies, 2) > 0.8
    assert each.progress.losses[-1] < each.progress.losses[0] / 3


def test_the_seed_decides_everything(draw: Draw, digits: Images) -> None:
    runs = [training(draw(2), digits, seed) for seed in (1, 1, 2)]
    for each in runs:
        each.run(2, lambda: None)
    assert runs[0].progress == runs[1].progress != runs[2].progress


@pytest.mark.parametrize("seed", [1, 2])
def test_a_resumed_training_ends_with_the_same_bits(draw: Draw, digits: Images, seed: int) -> None:
    architecture = draw(seed)
    whole = training(architecture, digits)
    whole.run(4, lambda: None)

    first = training(architecture, digits)
    first.run(2, lambda: None)
    data = checkpoint.encode(document(architecture), first.state(), first.progress)
    second = training(architecture, digits)
    torch.manual_seed(99)  # whatever else draws numbers must not matter
    second.restore(*checkpoint.decode(document(architecture), data))
    second.run(4, lambda: None)

    assert second.progress == whole.progress
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"batch_size": 32}, {"epochs": 1}, {"optimizer": OptimizerSpec(learning_rate="0.2")}],
    ids=["seed", "batch", "epochs", "optimizer"],
)
def test_a_checkpoint_of_another_training_is_refused(draw: Draw, digits: Images, change: dict[str, object]) -> None:
    each = training(draw(1, layers=1), digits)
    each.run(2, lambda: None)
    data = checkpoint.encode(document(draw(1, layers=1)), each.state(), each.progress)
    assert checkpoint.decode(document(draw(1, layers=1), epochs=9), data)[1] == each.progress
    with pytest.raises(ValueError):
        checkpoint.decode(document(draw(1, layers=1), **change), data)
    with pytest.raises(ValueError):
        checkpoint.decode(document(draw(2, layers=1)), data)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_checkpoint_is_refused(draw: Draw, digits: Images, cut: int) -> None:
    each = training(draw(1, layers=1), digits)
    each.run(1, lambda: None)
    data = checkpoint.encode(document(draw(1, layers=1)), each.state(), each.progress)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.decode(document(draw(1, layers=1)), data[:cut])


def test_divergence_ends_the_training_after_its_epoch(draw: Draw, digits: Images) -> None:
    each = training(draw(1), digits, learning_rate="999999999999")
    each.run(50, lambda: None)
    assert each.progress.diverged
    assert each.progress.epochs < 50


class Recorder(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_an_epoch_never_waits_for_the_device(draw: Draw, digits: Images) -> None:
    each = training(draw(2), dataclasses.replace(digits, augmented=True))
    with Recorder() as recorder:
        each.run(2, lambda: None)
        torch.ones(1).item()  # the recorder would see one that waits
    waits = [name for name in recorder.names if name in ("aten::_local_scalar_dense", "aten::nonzero")]
    assert "aten::convolution_backward" in recorder.names
    assert waits == ["aten::_local_scalar_dense"]


def test_the_metric_is_the_best_of_the_last_epochs() -> None:
    assert best_of_last((0.9, 0.2, 0.4, 0.3), 3) == 0.4
    assert best_of_last((0.9, 0.2), 5) == 0.9
    assert Progress().epochs == 0
