"""Networks of repeated cells are NAS-Bench-201's by its figures, and the code that people get is what was trained."""

import random
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest
import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas_api import names
from nas_api.child import ExitCode, FinalSettings, Result, StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.handover import Preprocessing
from nas_api.source import architecture_source
from nas_api.spaces.convolutional_cell import (
    ConvolutionalCellArchitecture,
    ConvolutionalCellSpace,
    ConvolutionalCellSpec,
    Operation,
    Wiring,
)
from nas_store.folder import FolderStore
from nas_trainer.images.cells import CellNetwork, multiply_adds, operation
from nas_trainer.images.data import load_images
from nas_trainer.images.export import onnx_model
from nas_trainer.main import main

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
BENCH_201 = ("none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3")
# NASNet-A, after the paper's figure 4; 0 is the last cell but one, 1 the last.
NASNET_A = (
    "pairs 3x2:8 |sep_conv_5x5~1|sep_conv_3x3~0|+|sep_conv_5x5~0|sep_conv_3x3~0|+|avg_pool_3x3~1|skip~0|"
    "+|avg_pool_3x3~0|avg_pool_3x3~0|+|sep_conv_3x3~1|skip~1|"
    " reduce |sep_conv_5x5~1|sep_conv_7x7~0|+|max_pool_3x3~1|sep_conv_7x7~0|+|avg_pool_3x3~1|sep_conv_5x5~0|"
    "+|skip~3|avg_pool_3x3~2|+|sep_conv_3x3~2|max_pool_3x3~1|"
)


SMALL_DENSE = "dense 2x1:6 |conv_3x3~0|+|skip~0|conv_1x1~1|+|avg_pool_3x3~0|none~1|skip~2|"
SMALL_PAIRS = "pairs 2x1:6 |sep_conv_3x3~0|skip~1|+|conv_3x3~2|skip~2| reduce |max_pool_3x3~1|skip~1|"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def drawn(
    seed: int, wiring: Wiring, operations: tuple[Operation, ...] = OPERATIONS, **values: Any
) -> ConvolutionalCellArchitecture:
    spec = ConvolutionalCellSpec(wiring=wiring, operations=operations, **{"filters": 4, **values})
    rng = random.Random(seed)
    space = ConvolutionalCellSpace(spec)
    return space.decode(tuple(rng.randrange(len(decision.options)) for decision in space.decisions(0)))


def of_edges(*edges: str) -> ConvolutionalCellArchitecture:
    """Return NAS-Bench-201's network with these operations on its six edges, ordered by the node that they lead to."""
    one, two, three, four, five, six = edges
    return ConvolutionalCellArchitecture.parse_short(
        f"dense 3x5:16 |{one}~0|+|{two}~0|{three}~1|+|{four}~0|{five}~1|{six}~2|"
    )


def parameters(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def counted_by_hand(edges: tuple[str, ...], classes: int) -> int:
    """Return the parameters of a network of NAS-Bench-201 from what its paper says of it, and nothing of ours."""

    def conv(taken: int, given: int, size: int) -> int:
        return taken * given * size * size + 2 * given  # a scale and a shift of the normalisation

    total = conv(3, 16, 3)
    for channels in (16, 32, 64):
        if channels > 16:
            half = channels // 2
            total += conv(half, channels, 3) + conv(channels, channels, 3) + half * channels
        for edge in edges:
            total += 5 * {"conv_1x1": conv(channels, channels, 1), "conv_3x3": conv(channels, channels, 3)}.get(edge, 0)
    return total + 2 * 64 + 64 * classes + classes


# Millions of parameters and of multiplications as NAS-Bench-201's own files have them: the smallest and the largest of
# all 15,625 networks, for CIFAR-10 and CIFAR-100. They count the classifier's additions, one a class, as well.
@pytest.mark.parametrize(
    ("edge", "classes", "millions", "multiplications"),
    [
        ("none", 10, "0.073306", "7.783050"),
        ("conv_3x3", 10, "1.531546", "220.119690"),
        ("none", 100, "0.079156", "7.788900"),
        ("conv_3x3", 100, "1.537396", "220.125540"),
    ],
)
def test_the_smallest_and_the_largest_network_have_their_published_cost(
    edge: str, classes: int, millions: str, multiplications: str
) -> None:
    architecture = of_edges(*[edge] * 6)
    assert f"{parameters(CellNetwork(architecture, 3, classes)) / 1e6:.6f}" == millions
    assert f"{(multiply_adds(architecture, (3, 32, 32), classes) + classes) / 1e6:.6f}" == multiplications


@pytest.mark.parametrize("seed", range(8))
def test_parameters_are_what_the_paper_s_description_comes_to(seed: int) -> None:
    edges = tuple(random.Random(seed).choices(BENCH_201, k=6))
    assert parameters(CellNetwork(of_edges(*edges), 3, 10)) == counted_by_hand(edges, 10)


def test_nothing_set_is_nas_bench_201() -> None:
    space = ConvolutionalCellSpace(ConvolutionalCellSpec())
    assert space.size(0) == len(BENCH_201) ** 6 == 15_625
    assert space.decode((3,) * 6) == of_edges(*["conv_3x3"] * 6)


def test_a_dense_cell_adds_up_an_operation_on_each_value_before() -> None:
    network = CellNetwork(of_edges("conv_1x1", "skip", "avg_pool_3x3", "none", "conv_3x3", "skip"), 3, 10).eval()
    cell = network.cells[0]
    x = torch.randn(2, 16, 6, 5)
    operations = cell.get_submodule("operations")
    one = operations.get_submodule("1_0")(x)
    two = x + operations.get_submodule("2_1")(one)
    assert torch.equal(cell(x), operations.get_submodule("3_1")(one) + two)


def test_a_pooled_pixel_at_the_border_is_the_mean_of_what_is_there() -> None:
    pooled = operation("avg_pool_3x3", 1, 1, 1e-5)(torch.ones(1, 1, 4, 3))
    assert torch.equal(pooled, torch.ones(1, 1, 4, 3))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("stride", "pixels"), [(1, (7, 4)), (2, (4, 2))])
def test_an_operation_keeps_the_ceiling_of_size_over_stride(
    name: Operation, stride: int, pixels: tuple[int, int]
) -> None:
    x = torch.randn(2, 4, 7, 4)
    out = operation(name, 4, stride, 1e-5)(x)
    assert out.shape == (2, 4, *pixels)
    assert (out == 0).all() == (name == "none")


def test_a_cell_of_pairs_hands_on_what_no_node_takes() -> None:
    text = "pairs 2x2:8 |skip~1|skip~1|+|skip~1|none~1| reduce |skip~1|skip~1|+|max_pool_3x3~2|skip~2|"
    architecture = ConvolutionalCellArchitecture.parse_short(text)
    assert architecture.outputs(architecture.normal) == (0, 2, 3)
    assert architecture.outputs(architecture.reduction) == (0, 3)
    network = CellNetwork(architecture, 3, 10).eval()
    places = [*architecture.places()]
    assert [(place.before, place.last, place.filters) for place in places] == [
        (8, 8, 8),
        (8, 24, 8),
        (24, 24, 16),
        (24, 32, 16),
        (32, 48, 16),
    ]
    assert [place.after_reduction for place in places] == [False, False, False, True, False]
    before, last = torch.randn(2, 24, 6, 6), torch.randn(2, 24, 6, 6)
    reduction = network.cells[2]
    older, newer = (
        make(each) for make, each in zip(reduction.get_submodule("inputs").children(), (before, last), strict=True)
    )
    halved = torch.nn.functional.avg_pool2d(older, 2)
    operations = reduction.get_submodule("operations")
    node = operations.get_submodule("2_0")(newer) + operations.get_submodule("2_1")(newer)
    after = operations.get_submodule("3_0")(node) + node
    assert torch.equal(reduction(before, last), torch.cat([halved, after], 1))


def networks() -> list[ConvolutionalCellArchitecture]:
    """Return networks of both wirings with everything that can be in them."""
    out = [of_edges(*["none"] * 6), ConvolutionalCellArchitecture.parse_short(NASNET_A)]
    for seed in range(6):
        shape: dict[str, Any] = {"stages": 1 + seed % 3, "cells_per_stage": 1 + seed // 2, "nodes": 1 + seed}
        out += [drawn(seed, "Dense", **shape), drawn(seed, "Pairs", **shape)]
    out.append(drawn(0, "Pairs", ("none",), nodes=2, cells_per_stage=2))
    return out


@pytest.mark.parametrize("architecture", networks(), ids=lambda each: each.short()[:60])
@pytest.mark.parametrize("epsilon", [1e-5, 0.01])
def test_the_source_is_the_trained_network(architecture: ConvolutionalCellArchitecture, epsilon: float) -> None:
    trained = CellNetwork(architecture, in_channels=2, classes=7, epsilon=epsilon)
    source = architecture_source(architecture, in_channels=2, classes=7, epsilon=epsilon)
    assert source is not None
    assert max(map(len, source.splitlines()[1:])) <= 120
    namespace: dict[str, Any] = {}
    exec(compile(source, "network.py", "exec"), namespace)
    written = namespace["Network"]()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_(-0.5, 0.5)
    written.load_state_dict(trained.state_dict())
    images = torch.randn(4, 2, 11, 9)
    for mode in (True, False):  # training first: it moves the running statistics of both alike
        trained.train(mode)
        written.train(mode)
        assert torch.equal(trained(images), written(images))
    expected, found = trained.state_dict(), written.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("architecture", networks(), ids=lambda each: each.short()[:60])
def test_every_weight_has_a_gradient_and_the_arithmetic_is_what_torch_counts(
    architecture: ConvolutionalCellArchitecture,
) -> None:
    network = CellNetwork(architecture, in_channels=3, classes=7)
    network(torch.randn(2, 3, 13, 10)).square().sum().backward()
    assert [
        name for name, each in network.named_parameters() if each.grad is None or not each.grad.isfinite().all()
    ] == []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 13, 10))
    # That counter has multiplications and additions apart.
    assert 2 * multiply_adds(architecture, (3, 13, 10), 7) == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        drawn(0, "Dense", ("none",), stages=2, cells_per_stage=1),
        drawn(3, "Dense", nodes=5, stages=2, cells_per_stage=1),
        drawn(2, "Pairs", nodes=5, cells_per_stage=1),
    ],
    ids=lambda each: each.short()[:60],
)
def test_the_onnx_model_agrees(architecture: ConvolutionalCellArchitecture) -> None:
    torch.manual_seed(0)
    size = (11, 9)
    network = CellNetwork(architecture, in_channels=3, classes=7)
    network(torch.randn(64, 3, *size))  # gives the statistics something to say
    before = Preprocessing(
        channels=3,
        height=size[0],
        width=size[1],
        brightest=255,
        mean=127.0,
        deviation=60.0,
        resized=0,
        classes=tuple("abcdefg"),
    )
    _, difference = onnx_model(network, before)
    assert difference <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("text", [SMALL_DENSE, SMALL_PAIRS], ids=["dense", "pairs"])
def test_a_final_training_leaves_what_others_can_use(tmp_path: Path, text: str) -> None:
    """The readable module with the weights and the ONNX model both have the accuracy of the result."""
    architecture = ConvolutionalCellArchitecture.parse_short(text)
    document = TrainerInput(
        experiment="digits",
        sample=7,
        attempt=1,
        seed=1,
        metric="accuracy",
        architecture=architecture,
        dataset=DatasetSpec(digits=DigitsDataset(training_images=300)),
        epochs=2,
        reward_epochs=1,
        batch_size=64,
        optimizer=OptimizerSpec(),
        final=FinalSettings(test=True, batch_norm_epsilon="0.01"),
        store=StoreLocation(folder=str(tmp_path)),
    )
    environment = {
        names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True),
        "NAS_TERMINATION_LOG": str(tmp_path / "message"),
    }
    assert main(environment) == ExitCode.OK
    store = FolderStore(tmp_path)
    weights, model = store.get(names.weights_key(7)), store.get(names.onnx_key(7))
    result = Result.parse(
        store.get(names.result_key(7)) or b"", sample=7, digest=architecture.digest, metric="accuracy"
    )
    assert weights is not None and model is not None
    namespace: dict[str, Any] = {}
    exec(architecture_source(architecture, in_channels=1, epsilon=0.01) or "", namespace)
    network = namespace["Network"]().eval()
    network.load_state_dict(safetensors.torch.load(weights))
    assert parameters(network) == result.parameters
    final = FinalSettings(test=True)
    held_out = load_images(
        document.dataset, document.store, cache=None, test=final.test, on_validation=final.on_validation
    )
    with torch.no_grad():
        found = network(held_out.held_out_images[:]).argmax(1) == held_out.held_out_labels
    assert found.double().mean().item() == pytest.approx(result.metrics["accuracy"], abs=1e-6)
    mean, deviation = held_out.scale or (0.0, 1.0)
    pixels = (held_out.held_out_images[:] * deviation + mean).numpy()
    (logits,) = onnxruntime.InferenceSession(model).run(["logits"], {"pixels": pixels})
    right = logits.argmax(1) == held_out.held_out_labels.numpy()
    assert right.mean() == pytest.approx(result.metrics["accuracy"], abs=0.003)
    assert result.metrics["onnxDifference"] <= 1e-4
