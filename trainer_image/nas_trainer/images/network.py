"""The torch network of an architecture, as the paper builds it (section 3.3), and what it costs.

Several inputs are concatenated in depth; a layer without inputs takes the image; outputs that feed
nothing are concatenated before the classifier; of differing sizes the smaller ones are zero-padded. What
the paper leaves open is decided as ``nas_api.source`` says, which writes the same network as code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.spaces.convolutional import BlockOutput, ConvolutionalArchitecture, ConvolutionalLayer


def concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Return maps (batch, c_i, h_i, w_i) as one (batch, sum c_i, max h_i, max w_i).

    Zeros come below and on the right, so that the first pixels of all maps lie on one another.
    """
    if len(maps) == 1:
        return maps[0]
    height = max(each.shape[2] for each in maps)
    width = max(each.shape[3] for each in maps)
    return torch.cat(
        [
            each
            if each.shape[2:] == (height, width)
            else functional.pad(each, (0, width - each.shape[3], 0, height - each.shape[2]))
            for each in maps
        ],
        1,
    )


class Layer(nn.Module):
    """A convolution, batch normalisation and ReLU: (batch, channels, h, w) to (batch, filters, h/stride, w/stride).

    Sizes are rounded up. The convolution has no bias, since the normalisation has one.
    """

    def __init__(self, channels: int, layer: ConvolutionalLayer, strides: tuple[int, int], epsilon: float) -> None:
        super().__init__()
        height, width = layer.filter_height, layer.filter_width
        self.conv = nn.Conv2d(
            channels, layer.filters, (height, width), strides, ((height - 1) // 2, (width - 1) // 2), bias=False
        )
        self.norm = nn.BatchNorm2d(layer.filters, eps=epsilon)
        # A filter of even size has no middle: it needs one more zero below or on the right.
        self.extra = (0, 1 - width % 2, 0, 1 - height % 2) if height % 2 == 0 or width % 2 == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.extra is not None:
            x = functional.pad(x, self.extra)
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Densely connected layers: each takes the block's input and all outputs before it; the last or all are returned.

    The first layer has the strides; to the others the input is thinned out by them, so that all maps have one size.
    """

    def __init__(
        self,
        channels: int,
        layer: ConvolutionalLayer,
        strides: tuple[int, int],
        epsilon: float,
        count: int,
        output: BlockOutput,
    ) -> None:
        super().__init__()
        self._all = output == "All"
        self._strides = strides
        self.layers = nn.ModuleList(
            [
                Layer(channels + index * layer.filters, layer, strides if index == 0 else (1, 1), epsilon)
                for index in range(count)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the height and width that a single layer's has."""
        first, *others = self.layers
        maps: list[Tensor] = [x[:, :, :: self._strides[0], :: self._strides[1]], first(x)]
        for layer in others:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps[1:], 1) if self._all else maps[-1]


class Network(nn.Module):
    """Images (batch, in_channels, height, width) to logits (batch, classes).

    Args:
        architecture: what to build.
        in_channels: channels of an image.
        classes: classes to tell apart.
        epsilon: what batch normalisation adds to a variance.
    """

    def __init__(
        self, architecture: ConvolutionalArchitecture, in_channels: int, classes: int, epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self._inputs = tuple(layer.inputs for layer in architecture.layers)
        self._pools = tuple(layer.pool for layer in architecture.layers)
        self._leaves = architecture.leaves()
        self.layers = nn.ModuleList()
        for index, layer in enumerate(architecture.layers):
            channels = architecture.channels(index, in_channels)
            strides = (layer.stride_height, layer.stride_width)
            self.layers.append(
                Layer(channels, layer, strides, epsilon)
                if architecture.block_layers == 1
                else Block(channels, layer, strides, epsilon, architecture.block_layers, architecture.block_output)
            )
        self.classifier = nn.Linear(sum(map(architecture.handed_on, self._leaves)), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        outputs: list[Tensor] = []
        for layer, inputs, pool in zip(self.layers, self._inputs, self._pools, strict=True):
            output = layer(concatenate([outputs[source] for source in inputs]) if inputs else image)
            outputs.append(functional.max_pool2d(output, 2, ceil_mode=True) if pool else output)
        features = concatenate([outputs[leaf] for leaf in self._leaves]).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return logits


def multiply_adds(architecture: ConvolutionalArchitecture, image: tuple[int, int, int], classes: int) -> int:
    """Return the multiplications, each with its addition, of convolutions and classifier for one image.

    Padding counts as pixels do. Others count multiplication and addition apart: twice as many.

    Args:
        architecture: of the network.
        image: its channels, height and width.
        classes: classes to tell apart.
    """
    in_channels, image_height, image_width = image
    sizes: list[tuple[int, int]] = []
    total = sum(map(architecture.handed_on, architecture.leaves())) * classes
    for index, layer in enumerate(architecture.layers):
        taken = [sizes[source] for source in layer.inputs] or [(image_height, image_width)]
        height = _divided(max(size[0] for size in taken), layer.stride_height)
        width = _divided(max(size[1] for size in taken), layer.stride_width)
        total += height * width * architecture.weights(index, in_channels)
        sizes.append((_divided(height, 2), _divided(width, 2)) if layer.pool else (height, width))
    return total


def _divided(size: int, by: int) -> int:
    """Return ``size / by`` pixels, rounded up."""
    return -(-size // by)
