"""An architecture as a readable Python module that needs only torch.

The network is the trainer's, with the same names of parameters, so that its weights load with
``load_state_dict``. What the paper leaves open is decided here and in ``nas_trainer.network`` alike:

- a convolution keeps ``ceil(size / stride)`` pixels, and is followed by batch normalisation and ReLU;
- inputs of differing sizes are zero-padded below and on the right, so that their first pixels lie on
  one another;
- the classifier is the mean over all pixels and one linear layer.
"""

import keyword

from nas_api.architecture import Architecture
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer

_EVEN_NOTE = (
    "        # A filter of even size has no middle: one more zero below or right keeps ceil(size / stride) pixels."
)

_TEMPLATE = '''\
"""{short}"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def concatenate(*maps: Tensor) -> Tensor:
    """Stack maps in depth; smaller ones are zero-padded below and on the right."""
    height = max(each.shape[2] for each in maps)
    width = max(each.shape[3] for each in maps)
    return torch.cat([functional.pad(each, (0, width - each.shape[3], 0, height - each.shape[2])) for each in maps], 1)


class Layer(nn.Module):
    """A convolution, batch normalisation and ReLU; sizes and strides are (height, width)."""

    def __init__(self, channels: int, filters: int, size: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        height, width = size
        padding = ((height - 1) // 2, (width - 1) // 2)
        self.conv = nn.Conv2d(channels, filters, size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(filters)
{init_even}
    def forward(self, x: Tensor) -> Tensor:
{forward_even}        return functional.relu(self.norm(self.conv(x)))


class {name}(nn.Module):
    """Takes images (batch, {in_channels}, height, width) and returns logits (batch, {classes})."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
{layers}
            ]
        )
        self.classifier = nn.Linear({features}, {classes})

    def forward(self, image: Tensor) -> Tensor:
{calls}
        return self.classifier({features_call}.mean((2, 3)))
'''


def _concatenated(sources: tuple[int, ...]) -> str:
    names = [f"y{source}" for source in sources]
    return names[0] if len(names) == 1 else f"concatenate({', '.join(names)})"


def _layer(layer: ConvolutionalLayer, channels: int) -> str:
    arguments = f"{channels}, {layer.filters}, size=({layer.filter_height}, {layer.filter_width})"
    if (layer.stride_height, layer.stride_width) != (1, 1):
        arguments += f", stride=({layer.stride_height}, {layer.stride_width})"
    return f"                Layer({arguments}),"


def network_source(
    architecture: ConvolutionalArchitecture, *, in_channels: int = 3, classes: int = 10, name: str = "Network"
) -> str:
    """Return Python code of one module whose class ``name`` is the architecture's network.

    Args:
        architecture: what to build.
        in_channels: channels of the image: 3 for CIFAR-10, 1 for digits.
        classes: classes to tell apart.
        name: name of the class.

    Raises:
        ValueError: the name is no Python identifier, or a number is not positive.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot be the name of a class")
    if in_channels < 1 or classes < 1:
        raise ValueError(f"in_channels and classes must be positive, not {in_channels} and {classes}")
    layers = architecture.layers
    even = any(layer.filter_height % 2 == 0 or layer.filter_width % 2 == 0 for layer in layers)
    leaves = architecture.leaves()
    return _TEMPLATE.format(
        short=architecture.short(),
        name=name,
        in_channels=in_channels,
        classes=classes,
        init_even="        self.extra = (0, 1 - width % 2, 0, 1 - height % 2)\n" if even else "",
        forward_even=f"{_EVEN_NOTE}\n        x = functional.pad(x, self.extra)\n" if even else "",
        layers="\n".join(
            _layer(layer, architecture.channels(index, in_channels)) for index, layer in enumerate(layers)
        ),
        features=sum(layers[leaf].filters for leaf in leaves),
        calls="\n".join(
            f"        y{index} = self.layers[{index}]({_concatenated(layer.inputs) if layer.inputs else 'image'})"
            for index, layer in enumerate(layers)
        ),
        features_call=_concatenated(leaves),
    )


def architecture_source(architecture: Architecture, *, in_channels: int = 3, classes: int = 10) -> str | None:
    """Return Python code that builds an architecture, or None where only its own trainer knows how.

    Args:
        architecture: of any space.
        in_channels: channels of the image, where it is one.
        classes: classes to tell apart, where there are any.
    """
    if isinstance(architecture, ConvolutionalArchitecture):
        return network_source(architecture, in_channels=in_channels, classes=classes)
    return None
