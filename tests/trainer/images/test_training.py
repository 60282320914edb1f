"""Training on images: splits that never change, whole epochs that resume bit for bit, augmentation, divergence."""

import copy
import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer import checkpoint
from nas_trainer.images.data import Images, fixed_order, load_images
from nas_trainer.images.network import Network
from nas_trainer.images.preprocessing import augment, central_crops
from nas_trainer.images.training import ImageTraining, best_of_last
from nas_trainer.optimizer import NesterovSGD
from nas_trainer.task import Progress

Draw = Callable[..., ConvolutionalArchitecture]
NOWHERE = StoreLocation(folder="/nowhere")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), NOWHERE)


def training(
    architecture: ConvolutionalArchitecture, images: Images, seed: int = 1, learning_rate: str = "0.1"
) -> ImageTraining:
    return ImageTraining(
        architecture, images, OptimizerSpec(learning_rate=learning_rate), 64, seed, torch.device("cpu")
    )


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
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=1000)), NOWHERE)
    assert images.train_images.shape == (1000, 1, 8, 8)
    assert images.held_out_images.shape == (397, 1, 8, 8)
    truth = load_digits()
    order = fixed_order(1797)
    assert sorted(order) == list(range(1797))
    assert images.train_labels.tolist() == truth.target[order[:1000]].tolist()
    assert images.held_out_labels.tolist() == truth.target[order[1000:1397]].tolist()
    pixels = truth.images[order[:1397]].astype(np.float32)
    whitened = (pixels - pixels[:1000].mean()) / pixels[:1000].std(ddof=1)
    np.testing.assert_allclose(
        torch.cat([images.train_images[:], images.held_out_images[:]])[:, 0], whitened, atol=1e-5
    )
    # Every child of every version must see the same split.
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "12f2a64e0ce97372"


def test_no_child_sees_a_test_image() -> None:
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=1400)), NOWHERE)
    assert len(images.train_labels) + len(images.held_out_labels) == 1797  # a user may leave no test set
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=1000)), NOWHERE)
    assert len(images.train_labels) + len(images.held_out_labels) == 1397


# ---------------------------------------------------------------- augmentation


def test_augmentation_is_upsampling_then_a_random_crop_then_a_flip_of_half() -> None:
    images = torch.randn(300, 2, 8, 8)
    out = augment(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    upsampled = functional.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    found = []
    for image, large in zip(out, upsampled, strict=True):
        crops = large.unfold(1, 8, 1).unfold(2, 8, 1)  # (2, top, left, 8, 8)
        matches = [
            (int(top), int(left), flipped)
            for flipped, each in ((False, image), (True, image.flip(2)))
            for top, left in ((crops - each[:, None, None]).abs().amax((0, 3, 4)) < 1e-5).nonzero()
        ]
        found += matches[:1]
    assert len(found) == 300  # each is a crop, flipped or not
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert 110 < sum(flipped for _, _, flipped in found) < 190
    assert torch.equal(augment(images, torch.Generator().manual_seed(0)), out)
    torch.testing.assert_close(central_crops(images), upsampled[..., 4:12, 4:12], rtol=0, atol=1e-5)


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
            torch.nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_child_loads_nothing_that_costs_more_than_its_training() -> None:
    program = """
import sys, torch
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.child import StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining
images = load_images(DatasetSpec(digits=DigitsDataset(training_images=100)), StoreLocation(folder="/"))
network = ConvolutionalArchitecture.parse_short("3x3:4")
ImageTraining(network, images, OptimizerSpec(), 50, 0, torch.device("cpu")).run(1, lambda: None)
print([name for name in ("torch._dynamo", "sklearn", "scipy", "boto3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- training


def test_a_network_learns_the_digits(draw: Draw, digits: Images) -> None:
    each = training(draw(1, layers=3, strides=(1,)), digits)
    each.run(6, lambda: None)
    assert each.progress.epochs == 6
    assert best_of_last(each.progress.metrics, 2) > 0.8
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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
