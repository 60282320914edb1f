"""AdamW, schedules, label smoothing and averages: each against another's arithmetic, and resumed bit for bit."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer import checkpoint
from nas_trainer.average import Average
from nas_trainer.images.data import Images, load_images
from nas_trainer.images.network import Network
from nas_trainer.images.training import ImageTraining
from nas_trainer.optimizer import AdamW, make_optimizer
from nas_trainer.schedule import learning_rate

Draw = Callable[..., ConvolutionalArchitecture]
DIGITS = DatasetSpec(digits=DigitsDataset(training_images=300))
EVERYTHING = OptimizerSpec(
    name="AdamW",
    learning_rate="0.01",
    weight_decay="0.05",
    schedule="Cosine",
    warmup_epochs=1,
    label_smoothing="0.1",
    ema="0.9",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images(DIGITS, StoreLocation(folder="/nowhere"))


def training(
    architecture: ConvolutionalArchitecture, images: Images, optimizer: OptimizerSpec, epochs: int = 4
) -> ImageTraining:
    return ImageTraining(architecture, images, optimizer, 64, 1, torch.device("cpu"), epochs=epochs)


def document(architecture: ConvolutionalArchitecture, optimizer: OptimizerSpec, **changes: Any) -> TrainerInput:
    values: dict[str, Any] = {
        "experiment": "digits",
        "sample": 3,
        "attempt": 1,
        "seed": 1,
        "metric": "accuracy",
        "architecture": architecture,
        "dataset": DIGITS,
        "epochs": 4,
        "batch_size": 64,
        "optimizer": optimizer,
        "store": StoreLocation(folder="/nowhere"),
        **changes,
    }
    return TrainerInput.model_validate(values)


# ---------------------------------------------------------------- AdamW


@pytest.mark.parametrize(("beta1", "decay"), [(0.9, 0.05), (0.0, 0.0)])
def test_adamw_computes_what_torchs_does(draw: Draw, beta1: float, decay: float) -> None:
    torch.manual_seed(0)
    ours = Network(draw(3), 1, 10).double()
    theirs = copy.deepcopy(ours)
    optimizer = AdamW(ours.parameters(), 0.01, beta1, decay)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(beta1, 0.999), weight_decay=decay)
    for step in range(12):
        if step == 6:
            optimizer.learning_rate = reference.param_groups[0]["lr"] = 0.002
        images, labels = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.randint(10, (8,))
        for network in (ours, theirs):
            functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_the_manifest_says_which_optimiser_it_is() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    assert list(make_optimizer(parameters, OptimizerSpec()).state(["w"])) == ["momentum.w"]
    assert list(make_optimizer(parameters, OptimizerSpec(name="AdamW")).state(["w"])) == ["mean.w", "square.w", "steps"]


# ---------------------------------------------------------------- schedules


def rates(epochs: int, **changes: Any) -> list[float]:
    spec = OptimizerSpec(learning_rate="0.4", **changes)
    return [learning_rate(spec, epoch, epochs) for epoch in range(epochs)]


def test_schedules_of_the_learning_rate() -> None:
    assert rates(4) == [0.4] * 4
    assert rates(8, schedule="Step") == pytest.approx([0.4] * 4 + [0.04] * 2 + [0.004] * 2)
    cosine: list[float] = [0.2 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)]
    assert rates(5, schedule="Cosine") == pytest.approx(cosine)
    assert rates(8, schedule="Cosine", warmup_epochs=3) == pytest.approx([0.1, 0.2, 0.3, *cosine])
    assert rates(3, warmup_epochs=1) == [0.2, 0.4, 0.4]
    # A training that is nothing but warm-up, as a short final one may be.
    assert rates(2, schedule="Cosine", warmup_epochs=3) == [0.1, 0.2]


def test_a_schedule_is_followed_by_the_training(draw: Draw, digits: Images) -> None:
    seen = []
    each = training(draw(1, layers=1), digits, OptimizerSpec(schedule="Step", warmup_epochs=1), epochs=5)
    each.run(5, lambda: seen.append(each._optimizer.learning_rate))
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.01, 0.001])


# ---------------------------------------------------------------- averages and labels


def test_an_average_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(network, 0.8)
    wanted = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(1, 60):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(4, 3))
        average.update()
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            counts = not tensor.is_floating_point()
            wanted[name] = tensor.clone() if counts else decay * wanted[name] + (1 - decay) * tensor
    found = average.network.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_the_average_is_what_is_measured_and_handed_over(draw: Draw, digits: Images) -> None:
    each = training(draw(1, layers=2), digits, OptimizerSpec(ema="0.999"))
    each.run(1, lambda: None)
    average = each.learned
    assert average is not each.network
    with torch.no_grad():
        right = average(digits.held_out_images).argmax(1) == digits.held_out_labels
    assert each.progress.metrics[0] == pytest.approx(right.float().mean().item())
    weights = each.weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in average.state_dict().items())
    plain = training(draw(1, layers=2), digits, OptimizerSpec())
    plain.run(1, lambda: None)
    # What is learnt does not depend on who watches.
    assert plain.progress.losses == each.progress.losses
    assert plain.progress.metrics != each.progress.metrics


def test_smoothed_labels_are_torchs(draw: Draw, digits: Images) -> None:
    torch.manual_seed(0)
    each = training(draw(1, layers=1), digits, OptimizerSpec(learning_rate="0", label_smoothing="0.3"))
    images, labels = digits.train_images[:64], digits.train_labels[:64]
    with torch.no_grad():
        logits = each.network.train()(images).log_softmax(1)
    own, all_alike = logits[torch.arange(64), labels].mean(), logits.mean()
    assert each._step(images, labels).item() == pytest.approx(-(0.7 * own + 0.3 * all_alike).item(), rel=1e-5)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "optimizer",
    [EVERYTHING, OptimizerSpec(ema="0.95"), OptimizerSpec(name="AdamW", learning_rate="0.01"), OptimizerSpec()],
    ids=["everything", "ema", "AdamW", "nothing"],
)
def test_a_resumed_training_ends_with_the_same_bits(draw: Draw, digits: Images, optimizer: OptimizerSpec) -> None:
    architecture = draw(2)
    whole = training(architecture, digits, optimizer)
    whole.run(4, lambda: None)

    first = training(architecture, digits, optimizer)
    first.run(2, lambda: None)
    data = checkpoint.encode(document(architecture, optimizer), first.state(), first.progress)
    second = training(architecture, digits, optimizer)
    torch.manual_seed(99)  # whatever else draws numbers must not matter
    second.restore(*checkpoint.decode(document(architecture, optimizer), data))
    second.run(4, lambda: None)

    assert second.progress == whole.progress
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in whole.weights().items())


def test_a_state_that_lacks_something_changes_nothing(draw: Draw, digits: Images) -> None:
    each = training(draw(1, layers=1), digits, EVERYTHING)
    each.run(1, lambda: None)
    state, fresh = each.state(), training(draw(1, layers=1), digits, EVERYTHING)
    before = fresh.state()
    name = next(name for name in state if name.startswith("average."))
    with pytest.raises(KeyError):
        fresh.restore({key: tensor for key, tensor in state.items() if key != name}, each.progress)
    with pytest.raises(RuntimeError):
        fresh.restore({**state, name: state[name][:1]}, each.progress)
    assert all(torch.equal(tensor, before[key]) for key, tensor in fresh.state().items())


def test_a_checkpoint_of_another_length_is_refused_where_the_schedule_depends_on_it(draw: Draw) -> None:
    def same(optimizer: OptimizerSpec) -> bool:
        one, other = (document(draw(1, layers=1), optimizer, epochs=epochs) for epochs in (4, 8))
        return checkpoint.fingerprint(one) == checkpoint.fingerprint(other)

    assert same(OptimizerSpec()) and same(OptimizerSpec(warmup_epochs=2))
    assert not same(OptimizerSpec(schedule="Step")) and not same(OptimizerSpec(schedule="Cosine"))


def test_what_is_off_leaves_no_trace(draw: Draw) -> None:
    told = document(draw(1, layers=1), OptimizerSpec()).model_dump(mode="json", by_alias=True)
    assert told["optimizer"] == {"learningRate": "0.1", "momentum": "0.9", "weightDecay": "0.0001"}
    assert "images" not in told["dataset"] and "latency" not in told
