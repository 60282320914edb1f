"""The torch network of an architecture, as the paper builds it (section 3.3).

Several inputs are concatenated in depth; a layer without inputs takes the image; outputs that feed
nothing are concatenated before the classifier; of differing sizes the smaller ones are zero-padded. What
the paper leaves open is decided as ``nas_api.source`` says, which writes the same network as code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer


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

    def __init__(self, channels: int, layer: ConvolutionalLayer) -> None:
        super().__init__()
        height, width = layer.filter_height, layer.filter_width
        self.conv = nn.Conv2d(
            channels,
            layer.filters,
            (height, width),
            (layer.stride_height, layer.stride_width),
            ((height - 1) // 2, (width - 1) // 2),
            bias=False,
        )
        self.norm = nn.BatchNorm2d(layer.filters)
        # A filter of even size has no middle: it needs one more zero below or on the right.
        self.extra = (0, 1 - width % 2, 0, 1 - height % 2) if height % 2 == 0 or width % 2 == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.extra is not None:
            x = functional.pad(x, self.extra)
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class Network(nn.Module):
    """Images (batch, in_channels, height, width) to logits (batch, classes)."""

    def __init__(self, architecture: ConvolutionalArchitecture, in_channels: int, classes: int) -> None:
        super().__init__()
        self._inputs = tuple(layer.inputs for layer in architecture.layers)
        self._leaves = architecture.leaves()
        self.layers = nn.ModuleList(
            [Layer(architecture.channels(index, in_channels), layer) for index, layer in enumerate(architecture.layers)]
        )
        self.classifier = nn.Linear(sum(architecture.layers[leaf].filters for leaf in self._leaves), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        outputs: list[Tensor] = []
        for layer, inputs in zip(self.layers, self._inputs, strict=True):
            outputs.append(layer(concatenate([outputs[source] for source in inputs]) if inputs else image))
        features = concatenate([outputs[leaf] for leaf in self._leaves]).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return logits
