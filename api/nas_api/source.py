"""An architecture as a readable Python module that needs only torch.

The network is the trainer's, with the same names of parameters, so that its weights load with
``load_state_dict``. What the paper leaves open is decided here and in ``nas_trainer.images.network`` alike:

- a convolution keeps ``ceil(size / stride)`` pixels, and is followed by batch normalisation and ReLU;
- inputs of differing sizes are zero-padded below and on the right, so that their first pixels lie on
  one another;
- pooling takes 2x2 pixels each, and at the lower and right border what is left of them;
- in a densely connected block the first convolution has the strides, and to the others the block's input is
  thinned out by them;
- the classifier is the mean over all pixels and one linear layer.
"""

import keyword

from nas_api.architecture import Architecture
from nas_api.source_cell import cell_source
from nas_api.source_convolutional_cell import convolutional_cell_source
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture

# torch's own, which the code need not name.
_EPSILON = 1e-5
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
        self.norm = nn.BatchNorm2d(filters{epsilon})
{init_even}
    def forward(self, x: Tensor) -> Tensor:
{forward_even}        return functional.relu(self.norm(self.conv(x)))


{block}class {name}(nn.Module):
    """Takes images (batch, {in_channels}, height, width), prepared as preprocessing.json beside the weights says.

    Returns logits (batch, {classes}).
    """

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


_BLOCK = '''\
class Block(nn.Module):
    """Densely connected layers: each takes the block's input and all outputs before it; {returned} returned."""

    def __init__(self, channels: int, filters: int, size: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.stride = stride
        self.layers = nn.ModuleList(
            [
                Layer(channels + index * filters, filters, size, stride if index == 0 else (1, 1))
                for index in range({count})
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        # Thinned out by the strides, the input has the size of the layers' outputs.
        maps = [x[:, :, :: self.stride[0], :: self.stride[1]], first(x)]
        for layer in others:
            maps.append(layer(torch.cat(maps, 1)))
        return {output}


'''


def _block(architecture: ConvolutionalArchitecture) -> str:
    if architecture.block_layers == 1:
        return ""
    everything = architecture.block_output == "All"
    return _BLOCK.format(
        count=architecture.block_layers,
        returned="all are" if everything else "the last one is",
        output="torch.cat(maps[1:], 1)" if everything else "maps[-1]",
    )


def _concatenated(sources: tuple[int, ...]) -> str:
    names = [f"y{source}" for source in sources]
    return names[0] if len(names) == 1 else f"concatenate({', '.join(names)})"


def _layer(layer: ConvolutionalLayer, channels: int, block_layers: int) -> str:
    arguments = f"{channels}, {layer.filters}, size=({layer.filter_height}, {layer.filter_width})"
    if (layer.stride_height, layer.stride_width) != (1, 1):
        arguments += f", stride=({layer.stride_height}, {layer.stride_width})"
    return f"                {'Layer' if block_layers == 1 else 'Block'}({arguments}),"


def _call(layer: ConvolutionalLayer, index: int) -> str:
    call = f"self.layers[{index}]({_concatenated(layer.inputs) if layer.inputs else 'image'})"
    if layer.pool:
        call = f"functional.max_pool2d({call}, 2, ceil_mode=True)"
    return f"        y{index} = {call}"


def network_source(
    architecture: ConvolutionalArchitecture,
    *,
    in_channels: int = 3,
    classes: int = 10,
    name: str = "Network",
    epsilon: float = _EPSILON,
) -> str:
    """Return Python code of one module whose class ``name`` is the architecture's network.

    Args:
        architecture: what to build.
        in_channels: channels of the image: 3 for CIFAR-10, 1 for digits.
        classes: classes to tell apart.
        name: name of the class.
        epsilon: what batch normalisation adds to a variance.

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
        block=_block(architecture),
        epsilon="" if epsilon == _EPSILON else f", eps={epsilon}",
        in_channels=in_channels,
        classes=classes,
        init_even="        self.extra = (0, 1 - width % 2, 0, 1 - height % 2)\n" if even else "",
        forward_even=f"{_EVEN_NOTE}\n        x = functional.pad(x, self.extra)\n" if even else "",
        layers="\n".join(
            _layer(layer, architecture.channels(index, in_channels), architecture.block_layers)
            for index, layer in enumerate(layers)
        ),
        features=sum(map(architecture.handed_on, leaves)),
        calls="\n".join(_call(layer, index) for index, layer in enumerate(layers)),
        features_call=_concatenated(leaves),
    )


def architecture_source(
    architecture: Architecture, *, in_channels: int = 3, classes: int = 10, epsilon: float = _EPSILON
) -> str | None:
    """Return Python code that builds an architecture, or None where only its own trainer knows how.

    Args:
        architecture: of any space.
        in_channels: channels of the image, where it is one.
        classes: classes to tell apart, where there are any.
        epsilon: what batch normalisation adds to a variance, where there is one.
    """
    if isinstance(architecture, ConvolutionalArchitecture):
        return network_source(architecture, in_channels=in_channels, classes=classes, epsilon=epsilon)
    if isinstance(architecture, ConvolutionalCellArchitecture):
        return convolutional_cell_source(architecture, in_channels=in_channels, classes=classes, epsilon=epsilon)
    if isinstance(architecture, RecurrentCellArchitecture):
        return cell_source(architecture)
    return None
