"""The network is the paper's, and the code that people get is the network that was trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas_api.source import network_source
from nas_api.spaces.convolutional import BlockOutput, ConvolutionalArchitecture, ConvolutionalLayer
from nas_trainer.images.network import Block, Layer, Network, concatenate, multiply_adds

Draw = Callable[..., ConvolutionalArchitecture]


def build(source: str, name: str = "Network") -> torch.nn.Module:
    namespace: dict[str, Any] = {}
    exec(compile(source, "network.py", "exec"), namespace)
    module = namespace[name]()
    assert isinstance(module, torch.nn.Module)
    return module


@pytest.mark.parametrize("pooling", [0.0, 0.4])
@pytest.mark.parametrize(("block_layers", "block_output"), [(1, "Last"), (2, "Last"), (3, "Last"), (3, "All")])
@pytest.mark.parametrize("seed", range(6))
def test_the_source_is_the_trained_network(
    draw: Draw, seed: int, block_layers: int, block_output: BlockOutput, pooling: float
) -> None:
    architecture = draw(
        seed,
        1 + 2 * seed,
        sizes=(1, 2, 3, 4, 5),
        strides=(1, 2, 3),
        block_layers=block_layers,
        block_output=block_output,
        pooling=pooling,
    )
    epsilon = 1e-5 if seed % 2 else 0.01
    trained = Network(architecture, in_channels=2, classes=7, epsilon=epsilon)
    source = network_source(architecture, in_channels=2, classes=7, name="Found", epsilon=epsilon)
    assert ("max_pool2d" in source) == any(layer.pool for layer in architecture.layers)
    assert ("class Block" in source) == (block_layers > 1)
    written = build(source, "Found")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_(-0.5, 0.5)
    written.load_state_dict(trained.state_dict())
    images = torch.randn(5, 2, 11, 9)
    for mode in (True, False):  # training first: it moves the running statistics of both alike
        trained.train(mode)
        written.train(mode)
        assert torch.equal(trained(images), written(images))
    expected, found = trained.state_dict(), written.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_source_needs_only_torch_and_has_defaults(draw: Draw) -> None:
    source = network_source(draw(3, block_layers=2, pooling=0.5))
    assert {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))} == {
        "torch"
    }
    assert build(source)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert max(map(len, source.splitlines()[1:])) <= 120


@pytest.mark.parametrize("name", ["class", "a b", "", "1x", "x;import os"])
def test_source_refuses_a_name_that_is_none(draw: Draw, name: str) -> None:
    with pytest.raises(ValueError, match="name of a class"):
        network_source(draw(3), name=name)


def test_smaller_inputs_are_padded_below_and_right() -> None:
    large, small = torch.ones(1, 1, 3, 4), torch.full((1, 2, 2, 2), 2.0)
    out = concatenate([large, small])
    assert out.shape == (1, 3, 3, 4)
    assert torch.equal(out[:, :1], large)
    assert torch.equal(out[:, 1:, :2, :2], small)
    assert out[:, 1:].sum() == small.sum()


def test_unconsumed_outputs_feed_the_classifier_and_orphans_take_the_image() -> None:
    def layer(filters: int, *inputs: int) -> ConvolutionalLayer:
        return ConvolutionalLayer(filter_height=3, filter_width=3, filters=filters, inputs=inputs)

    network = Network(
        ConvolutionalArchitecture(layers=(layer(4), layer(5), layer(6, 0), layer(7, 0, 2))), in_channels=3, classes=10
    )
    channels = [each.conv.in_channels for each in network.layers if isinstance(each, Layer)]
    assert channels == [3, 3, 4, 10]
    assert network.classifier.in_features == 5 + 7


@pytest.mark.parametrize(
    ("size", "stride", "pixels"), [(1, 1, 8), (3, 2, 4), (4, 1, 8), (4, 3, 3), (7, 3, 3), (2, 2, 4)]
)
def test_a_convolution_keeps_the_ceiling_of_size_over_stride(size: int, stride: int, pixels: int) -> None:
    layer = ConvolutionalLayer(filter_height=size, filter_width=1, filters=4, stride_height=stride)
    network = Network(ConvolutionalArchitecture(layers=(layer,)), in_channels=1, classes=2)
    assert network.layers[0](torch.zeros(1, 1, 8, 8)).shape == (1, 4, pixels, 8)


def test_a_block_is_densely_connected_and_its_last_layer_is_its_output() -> None:
    layer = ConvolutionalLayer(filter_height=3, filter_width=3, filters=4, stride_width=2)
    block = Network(ConvolutionalArchitecture(block_layers=3, layers=(layer,)), in_channels=2, classes=2).layers[0]
    assert isinstance(block, Block)
    block.eval()
    first, second, third = block.layers
    x = torch.randn(3, 2, 5, 7)
    thin, one = x[..., ::2], first(x)
    two = second(torch.cat([thin, one], 1))
    assert torch.equal(block(x), third(torch.cat([thin, one, two], 1)))
    assert block(x).shape == (3, 4, 5, 4)


def test_a_block_may_hand_on_all_its_layers() -> None:
    """The paper's variant 3: what feeds the next layers and the classifier is wider by as much as a block is deep."""
    layers = (
        ConvolutionalLayer(filter_height=3, filter_width=3, filters=4, stride_width=2),
        ConvolutionalLayer(filter_height=1, filter_width=1, filters=5, inputs=(0,)),
    )
    network = Network(
        ConvolutionalArchitecture(block_layers=3, block_output="All", layers=layers), in_channels=2, classes=2
    ).eval()
    block, after = network.layers
    assert isinstance(block, Block) and isinstance(after, Block)
    first, second, third = block.layers
    x = torch.randn(3, 2, 5, 7)
    thin, one = x[..., ::2], first(x)
    two = second(torch.cat([thin, one], 1))
    three = third(torch.cat([thin, one, two], 1))
    assert torch.equal(block(x), torch.cat([one, two, three], 1))
    taken = [each.conv.in_channels for each in after.layers if isinstance(each, Layer)]
    assert taken == [12, 12 + 5, 12 + 10]
    assert network.classifier.in_features == 15


@pytest.mark.parametrize(("size", "pixels"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_pooling_halves_and_loses_no_pixel(size: int, pixels: int) -> None:
    layer = ConvolutionalLayer(filter_height=1, filter_width=1, filters=1, pool=True)
    after = ConvolutionalLayer(filter_height=1, filter_width=1, filters=1, inputs=(0,))
    network = Network(ConvolutionalArchitecture(layers=(layer, after)), in_channels=1, classes=2).eval()
    seen: list[torch.Tensor] = []
    before = network.layers[0]
    assert isinstance(before, Layer)
    network.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.zeros(1, 1, size, size)
    image[..., -1, -1] = 1
    with torch.no_grad():
        before.conv.weight.fill_(1)
        network(image)
    assert seen[0].shape == (1, 1, pixels, pixels)
    assert seen[0].argmax() == pixels * pixels - 1


@pytest.mark.parametrize(("block_layers", "block_output"), [(1, "Last"), (3, "Last"), (3, "All")])
@pytest.mark.parametrize("seed", range(5))
def test_the_arithmetic_is_what_torch_counts(
    draw: Draw, seed: int, block_layers: int, block_output: BlockOutput
) -> None:
    architecture = draw(
        seed,
        layers=7,
        sizes=(1, 2, 3),
        strides=(1, 2),
        block_layers=block_layers,
        block_output=block_output,
        pooling=0.3,
    )
    network = Network(architecture, in_channels=3, classes=7).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 9, 12))
    for index, layer in enumerate(network.layers):
        kernels = [each.weight.numel() for each in layer.modules() if isinstance(each, torch.nn.Conv2d)]
        assert architecture.weights(index, 3) == sum(kernels)
    # That counter has multiplications and additions apart.
    assert 2 * multiply_adds(architecture, (3, 9, 12), 7) == counter.get_total_flops()


@pytest.mark.parametrize(("block_layers", "block_output"), [(1, "Last"), (2, "Last"), (3, "All")])
@pytest.mark.parametrize("seed", range(20))
def test_the_short_form_reads_back(draw: Draw, seed: int, block_layers: int, block_output: BlockOutput) -> None:
    architecture = draw(seed, 1 + seed, strides=(1, 2, 3), block_layers=block_layers, block_output=block_output)
    assert ConvolutionalArchitecture.parse_short(architecture.short()) == architecture


@pytest.mark.parametrize("text", ["", "3x3", "3x3:24<0", "3x3:24 1x1:6<", "3x3:24/1 1x1:6"])
def test_a_damaged_short_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ConvolutionalArchitecture.parse_short(text)
