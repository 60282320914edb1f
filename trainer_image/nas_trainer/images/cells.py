"""The torch network of an architecture of repeated cells, as NAS-Bench-201 and NASNet build theirs.

A first convolution, the cells, then batch normalisation, ReLU, the mean over all pixels and one linear layer. All
operations of a cell keep its number of filters; those with weights are ReLU, convolution and batch normalisation, in
this order. ``nas_api.source_convolutional_cell`` writes the same network as code.
"""

from functools import reduce
from math import prod
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture, Operation, Place


class Zero(nn.Module):
    """The operation ``none``: zeros.

    They are computed from the input, so that all weights before them have a gradient, as optimisers and several ranks
    expect of each; it is zero.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the size that the stride leaves."""
        return x[:, :, :: self._stride, :: self._stride] * 0


def conv(channels: int, filters: int, size: int, stride: int, epsilon: float) -> nn.Sequential:
    """Return ReLU, a convolution and batch normalisation; ceil(size / stride) pixels remain."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, filters, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(filters, eps=epsilon),
    )


def flat_conv(filters: int, size: int, stride: int, epsilon: float) -> nn.Sequential:
    """Return a convolution of height 1, then one of width 1, each as in ``conv``."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, (1, size), (1, stride), (0, size // 2), bias=False),
        nn.BatchNorm2d(filters, eps=epsilon),
        nn.ReLU(),
        nn.Conv2d(filters, filters, (size, 1), (stride, 1), (size // 2, 0), bias=False),
        nn.BatchNorm2d(filters, eps=epsilon),
    )


def separable_conv(filters: int, size: int, stride: int, epsilon: float, dilation: int = 1) -> nn.Sequential:
    """Return ReLU, a convolution of each channel by itself, one of single pixels, and batch normalisation."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, size, stride, padding, dilation, groups=filters, bias=False),
        nn.Conv2d(filters, filters, 1, bias=False),
        nn.BatchNorm2d(filters, eps=epsilon),
    )


def projection(channels: int, filters: int, stride: int, epsilon: float) -> nn.Sequential:
    """Return a convolution of single pixels as in ``conv``; with stride 2, of the mean of 2x2 pixels each.

    At the lower and right border that is the mean of what is left of them.
    """
    halved = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
    return nn.Sequential(
        nn.ReLU(), *halved, nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters, eps=epsilon)
    )


def _parts(name: Operation) -> tuple[str, int]:
    """Return an operation's kind and the larger side of its kernel; 0 where it has none."""
    kind, _, shape = name.rpartition("_")
    if kind in ("conv_1x3", "conv_1x7"):
        return "flat_conv", int(shape[0])
    return kind or name, int(shape[0]) if kind else 0


def operation(name: Operation, filters: int, stride: int, epsilon: float) -> nn.Module:
    """Return an operation on maps (batch, filters, h, w) that leaves ceil(h / stride) by ceil(w / stride) pixels."""
    kind, size = _parts(name)
    match kind:
        case "none":
            return Zero(stride)
        case "skip":
            return nn.Identity() if stride == 1 else projection(filters, filters, stride, epsilon)
        case "conv":
            return conv(filters, filters, size, stride, epsilon)
        case "flat_conv":
            return flat_conv(filters, size, stride, epsilon)
        case "sep_conv":
            return nn.Sequential(
                separable_conv(filters, size, stride, epsilon), separable_conv(filters, size, 1, epsilon)
            )
        case "dil_conv":
            return separable_conv(filters, size, stride, epsilon, dilation=2)
        case "avg_pool":
            return nn.AvgPool2d(size, stride, size // 2, count_include_pad=False)
        case _:
            return nn.MaxPool2d(size, stride, size // 2)


class Cell(nn.Module):
    """The outputs of the last one or two cells to a cell's own, of ``filters`` channels for each value that is output.

    Args:
        architecture: says how cells are wired.
        place: of the cell.
        inputs: what makes the cell's inputs, each of the place's filters, from the outputs of the last cells.
        epsilon: what batch normalisation adds to a variance.
    """

    def __init__(
        self, architecture: ConvolutionalCellArchitecture, place: Place, inputs: list[nn.Module], epsilon: float
    ) -> None:
        super().__init__()
        self._nodes = place.nodes
        self._outputs = architecture.outputs(place.nodes)
        self._stride = 2 if place.reduces else 1
        self.inputs = nn.ModuleList(inputs)
        self.operations = nn.ModuleDict()
        """By node, counted after the inputs, and number of its operation."""
        for index, node in enumerate(place.nodes, len(inputs)):
            for number, (source, name) in enumerate(zip(node.inputs, node.operations, strict=True)):
                stride = self._stride if source < len(inputs) else 1
                self.operations[f"{index}_{number}"] = operation(name, place.filters, stride, epsilon)

    def forward(self, *last: Tensor) -> Tensor:
        """Return the cell's output, from those of as many cells before it as it has inputs."""
        values: list[Tensor] = [make(output) for make, output in zip(self.inputs, last, strict=True)]
        inputs = len(values)
        for index, node in enumerate(self._nodes, inputs):
            terms = (self.operations[f"{index}_{number}"](values[source]) for number, source in enumerate(node.inputs))
            values.append(reduce(add, terms))
        outputs = [
            functional.avg_pool2d(values[index], 2, ceil_mode=True)
            if self._stride == 2 and index < inputs
            else values[index]
            for index in self._outputs
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class Reduction(nn.Module):
    """NAS-Bench-201's residual block between stages: twice the channels, half the height and width (rounded up)."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv(channels, 2 * channels, 3, 2, epsilon), conv(2 * channels, 2 * channels, 3, 1, epsilon)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.shortcut(x) + self.residual(x)
        return out


class CellNetwork(nn.Module):
    """Images (batch, in_channels, height, width) to logits (batch, classes).

    Args:
        architecture: what to build.
        in_channels: channels of an image.
        classes: classes to tell apart.
        epsilon: what batch normalisation adds to a variance.
    """

    def __init__(
        self, architecture: ConvolutionalCellArchitecture, in_channels: int, classes: int, epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        filters = architecture.filters
        self._inputs = architecture.cell_inputs
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters, eps=epsilon)
        )
        self.cells = nn.ModuleList([_cell(architecture, place, epsilon) for place in architecture.places()])
        self.norm = nn.BatchNorm2d(architecture.features(), eps=epsilon)
        self.classifier = nn.Linear(architecture.features(), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        last = (self.stem(image),) * self._inputs
        for cell in self.cells:
            last = (*last[1:], cell(*last))
        logits: Tensor = self.classifier(functional.relu(self.norm(last[-1])).mean((2, 3)))
        return logits


def _cell(architecture: ConvolutionalCellArchitecture, place: Place, epsilon: float) -> nn.Module:
    if not place.nodes:
        return Reduction(place.last, epsilon)
    inputs: list[nn.Module] = [nn.Identity()]
    if architecture.wiring == "Pairs":
        inputs = [
            projection(place.before, place.filters, 2 if place.after_reduction else 1, epsilon),
            projection(place.last, place.filters, 1, epsilon),
        ]
    return Cell(architecture, place, inputs, epsilon)


def multiply_adds(architecture: ConvolutionalCellArchitecture, image: tuple[int, int, int], classes: int) -> int:
    """Return the multiplications, each with its addition, of convolutions and classifier for one image.

    As :func:`nas_trainer.images.network.multiply_adds`.

    Args:
        architecture: of the network.
        image: its channels, height and width.
        classes: classes to tell apart.
    """
    in_channels, *size = image
    inputs = architecture.cell_inputs
    total = prod(size) * 9 * in_channels * architecture.filters + architecture.features() * classes
    for place in architecture.places():
        filters, halved = place.filters, [_divided(side, 2 if place.reduces else 1) for side in size]
        if not place.nodes:
            total += prod(halved) * (9 * place.last + 9 * filters + place.last) * filters
        elif architecture.wiring == "Pairs":
            total += prod(size) * (place.before + place.last) * filters
        for node in place.nodes:
            for source, name in zip(node.inputs, node.operations, strict=True):
                taken, stride = (size, 2 if place.reduces else 1) if source < inputs else (halved, 1)
                total += _operation_cost(name, filters, taken, stride)
        size = halved
    return total


def _operation_cost(name: Operation, filters: int, size: list[int], stride: int) -> int:
    """Return what ``operation`` multiplies for maps of a height and width."""
    kind, kernel = _parts(name)
    height, width = (_divided(side, stride) for side in size)
    weights = {
        "skip": filters if stride == 2 else 0,
        "conv": kernel**2 * filters,
        "sep_conv": 2 * (kernel**2 + filters),
        "dil_conv": kernel**2 + filters,
    }
    if kind == "flat_conv":
        return (size[0] + height) * width * kernel * filters**2
    return height * width * filters * weights.get(kind, 0)


def _divided(size: int, by: int) -> int:
    """Return ``size / by`` pixels, rounded up."""
    return -(-size // by)
