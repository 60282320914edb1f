"""A network of repeated cells as a readable Python module that needs only torch.

The cell is written out, one line for each node. The network is the trainer's (``nas_trainer.images.cells``), with the
same names of parameters, so that its weights load with ``load_state_dict``. What NAS-Bench-201 and NASNet leave to
their programs is decided in both alike:

- an operation of stride 2 keeps ``ceil(size / 2)`` pixels;
- ``skip`` of stride 2, and what makes the inputs of a cell in Pairs, are ReLU, a convolution of single pixels (of the
  mean of 2x2 pixels each, where the image is halved) and batch normalisation;
- a dilated convolution is a separable one;
- in Pairs a cell's inputs that no node takes are output, too, so that no cell is without use.
"""

import re

from nas_api.spaces.convolutional_cell import (
    ConvolutionalCellArchitecture,
    ConvolutionalCellNode,
    Operation,
    Place,
)

# torch's own, which the code need not name.
_EPSILON = 1e-5
# Of a line in a method.
_WIDEST = 112

_TEMPLATE = '''\
"""{short}"""

{imports}from torch import Tensor, nn
from torch.nn import functional


{helpers}{cells}class Network(nn.Module):
    """Takes images (batch, {in_channels}, height, width), prepared as preprocessing.json beside the weights says.

    Returns logits (batch, {classes}).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d({in_channels}, {filters}, 3, padding=1, bias=False),
            nn.BatchNorm2d({filters}{epsilon}),
        )
        self.cells = nn.ModuleList(
            [
{places}
            ]
        )
        self.norm = nn.BatchNorm2d({features}{epsilon})
        self.classifier = nn.Linear({features}, {classes})

    def forward(self, image: Tensor) -> Tensor:
{forward}
        return self.classifier(functional.relu(self.norm(x)).mean((2, 3)))
'''

_FORWARD = {
    "Dense": """\
        x = self.stem(image)
        for cell in self.cells:
            x = cell(x)""",
    "Pairs": """\
        before = x = self.stem(image)
        for cell in self.cells:
            before, x = x, cell(before, x)""",
}

_HELPERS = {
    "conv": '''\
def conv(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return ReLU, a convolution and batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, filters, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(filters{epsilon}),
    )


''',
    "flat_conv": '''\
def flat_conv(filters: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution of height 1, then one of width 1, each after ReLU and before batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, (1, size), (1, stride), (0, size // 2), bias=False),
        nn.BatchNorm2d(filters{epsilon}),
        nn.ReLU(),
        nn.Conv2d(filters, filters, (size, 1), (stride, 1), (size // 2, 0), bias=False),
        nn.BatchNorm2d(filters{epsilon}),
    )


''',
    "separable_conv": '''\
def separable_conv(filters: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return ReLU, a convolution of each channel by itself, one of single pixels, and batch normalisation."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, size, stride, padding, dilation, groups=filters, bias=False),
        nn.Conv2d(filters, filters, 1, bias=False),
        nn.BatchNorm2d(filters{epsilon}),
    )


''',
    "projection": '''\
def projection(channels: int, filters: int, stride: int = 1) -> nn.Sequential:
    """Return ReLU, a convolution of single pixels (with stride 2, of the mean of 2x2 each) and batch normalisation."""
    halved = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
    return nn.Sequential(
        nn.ReLU(),
        *halved,
        nn.Conv2d(channels, filters, 1, bias=False),
        nn.BatchNorm2d(filters{epsilon}),
    )


''',
}

_BLOCK = '''\
class Reduction(nn.Module):
    """A residual block: twice the channels, half the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(conv(channels, 2 * channels, 3, 2), conv(2 * channels, 2 * channels, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


'''

_CELL = '''\
class {name}(nn.Module):
    """{about}"""

    def __init__(self, {parameters}) -> None:
        super().__init__()
{inputs}        self.operations = nn.ModuleDict({operations})

    def forward(self, {arguments}) -> Tensor:
{lines}


'''

_INPUTS = """\
        self.inputs = nn.ModuleList([projection(before, filters{stride}), projection(last, filters)])
"""


_OPERATIONS = """
            {{{modules}
            }}
        """


def _module(name: Operation, stride: int) -> str | None:
    """Return the expression that makes an operation's module; None for what needs none."""
    size, step = name[-1], "" if stride == 1 else f", {stride}"
    match name.rpartition("_")[0] or name:
        case "none":
            return None
        case "skip":
            return None if stride == 1 else f"projection(filters, filters{step})"
        case "conv":
            return f"conv(filters, filters, {size}{step})"
        case "sep_conv":
            return f"nn.Sequential(separable_conv(filters, {size}{step}), separable_conv(filters, {size}))"
        case "dil_conv":
            return f"separable_conv(filters, {size}{step}, dilation=2)"
        case "avg_pool":
            return f"nn.AvgPool2d({size}, {stride}, {int(size) // 2}, count_include_pad=False)"
        case "max_pool":
            return f"nn.MaxPool2d({size}, {stride}, {int(size) // 2})"
        case _:
            return f"flat_conv(filters, {name[-3]}{step})"


def _node(index: int, node: ConvolutionalCellNode, strided: int) -> tuple[list[str], str]:
    """Return the lines that make a node's modules, and the one that adds it up.

    Args:
        index: the node's, after the cell's inputs.
        node: what it takes.
        strided: operations on values before this one have stride 2.
    """
    modules, terms = [], []
    for number, (source, name) in enumerate(zip(node.inputs, node.operations, strict=True)):
        stride = 2 if source < strided else 1
        module, key = _module(name, stride), f'"{index}_{number}"'
        if module is not None:
            modules.append(f"{key}: {module},")
            terms.append(f"self.operations[{key}](x{source})")
        elif name == "skip":
            terms.append(f"x{source}")
        else:
            terms.append(f"x{source}{'[:, :, ::2, ::2]' if stride == 2 else ''} * 0")
    line = f"x{index} = {' + '.join(terms)}"
    if len(line) > _WIDEST:
        line = f"x{index} = (\n            " + "\n            + ".join(terms) + "\n        )"
    return modules, line


def _cell(architecture: ConvolutionalCellArchitecture, nodes: tuple[ConvolutionalCellNode, ...], reduces: bool) -> str:
    inputs, dense = architecture.cell_inputs, architecture.wiring == "Dense"
    modules: list[str] = []
    lines = [] if dense else ["x0, x1 = self.inputs[0](before), self.inputs[1](last)"]
    for index, node in enumerate(nodes, inputs):
        made, line = _node(index, node, inputs if reduces else 0)
        modules += made
        lines.append(line)
    outputs = [
        f"functional.avg_pool2d(x{index}, 2, ceil_mode=True)" if reduces and index < inputs else f"x{index}"
        for index in architecture.outputs(nodes)
    ]
    lines.append(f"return {outputs[0]}" if len(outputs) == 1 else f"return torch.cat([{', '.join(outputs)}], 1)")
    text = {
        "operations": _OPERATIONS.format(modules="".join(f"\n                {each}" for each in modules))
        if modules
        else "",
        "lines": "\n".join(f"        {line}" for line in lines),
    }
    if dense:
        about = "The cell: takes and returns maps (batch, filters, height, width)."
        return _CELL.format(
            name="Cell", about=about, parameters="filters: int", inputs="", arguments="x0: Tensor", **text
        )
    about = f"Takes the outputs of the last two cells{', and halves the image' if reduces else ''}."
    return _CELL.format(
        name="ReductionCell" if reduces else "NormalCell",
        about=about,
        parameters=f"before: int, last: int, filters: int{'' if reduces else ', halved: bool = False'}",
        inputs=_INPUTS.format(stride="" if reduces else ", 2 if halved else 1"),
        arguments="before: Tensor, last: Tensor",
        **text,
    )


def _place(architecture: ConvolutionalCellArchitecture, place: Place) -> str:
    if not place.nodes:
        return f"Reduction({place.last})"
    if architecture.wiring == "Dense":
        return f"Cell({place.filters})"
    name, halved = "ReductionCell" if place.reduces else "NormalCell", ", halved=True" if place.after_reduction else ""
    return f"{name}({place.before}, {place.last}, {place.filters}{halved})"


def convolutional_cell_source(
    architecture: ConvolutionalCellArchitecture, *, in_channels: int = 3, classes: int = 10, epsilon: float = _EPSILON
) -> str:
    """Return Python code of one module whose class ``Network`` is the architecture's network.

    Args:
        architecture: what to build.
        in_channels: channels of the image: 3 for CIFAR-10, 1 for digits.
        classes: classes to tell apart.
        epsilon: what batch normalisation adds to a variance.
    """
    cells = _cell(architecture, architecture.normal, reduces=False)
    if architecture.reduction:
        cells += _cell(architecture, architecture.reduction, reduces=True)
    if architecture.wiring == "Dense" and architecture.stages > 1:
        cells += _BLOCK
    own_epsilon = "" if epsilon == _EPSILON else f", eps={epsilon}"
    helpers = (text for name, text in _HELPERS.items() if re.search(rf"\b{name}\(", cells))
    return _TEMPLATE.format(
        short=architecture.short(),
        imports="import torch\n" if "torch.cat" in cells else "",
        helpers="".join(helpers).replace("{epsilon}", own_epsilon),
        cells=cells,
        in_channels=in_channels,
        classes=classes,
        filters=architecture.filters,
        features=architecture.features(),
        epsilon=own_epsilon,
        places="\n".join(f"                {_place(architecture, place)}," for place in architecture.places()),
        forward=_FORWARD[architecture.wiring],
    )
