"""Convolutional networks with skip connections: the paper's section 3.3."""

import operator
import re
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nas_api.base import Model
from nas_api.cel import UNIQUE, cel
from nas_api.decisions import Anchor, Categorical, Choices, Decision
from nas_api.spaces.base import SampledArchitecture

_SHORT_LAYER = re.compile(
    r"(?P<filter_height>\d+)x(?P<filter_width>\d+):(?P<filters>\d+)"
    r"(?:/(?P<stride_height>\d+)x(?P<stride_width>\d+))?(?P<pool>p)?(?:<(?P<inputs>\d+(?:,\d+)*))?"
)
_SHORT_BLOCK = re.compile(r"\*(\d+)(all)?")

_FIELDS = {
    "filterHeight": "filter_height",
    "filterWidth": "filter_width",
    "filters": "filters",
    "strideHeight": "stride_height",
    "strideWidth": "stride_width",
}

FilterSize = Annotated[int, Field(ge=1, le=31)]
FilterCount = Annotated[int, Field(ge=1, le=1024)]
Stride = Annotated[int, Field(ge=1, le=4)]
BlockOutput = Literal["Last", "All"]
"""What a block of layers hands on: the output of its last one, or those of all, concatenated in depth."""


def _is_last(output: BlockOutput) -> bool:
    return output == "Last"


class LayersSpec(Model):
    """How many layers a sampled network has (paper section 4.1: 6, then 2 more every 1,600 samples)."""

    model_config = {"json_schema_extra": cel(("self.initial <= self.maximum", "initial must not exceed maximum"))}

    initial: Annotated[int, Field(ge=1, le=40)] = 6
    """Number of layers of the first samples."""
    increment: Annotated[int, Field(ge=0, le=10)] = 0
    """Layers added at each step of the schedule; 0 keeps the depth."""
    every_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1600
    """Samples between two steps of the schedule."""
    maximum: Annotated[int, Field(ge=1, le=40)] = 40
    """The depth at which the schedule stops."""


class ConvolutionalSpec(Model):
    """Convolutional networks with skip connections (paper section 3.3)."""

    model_config = {
        "json_schema_extra": cel(
            ("!self.allSkips || self.skipConnections", "allSkips needs skipConnections"),
            (
                "!has(self.blockOutput) || self.blockOutput == 'Last' || self.blockLayers > 1",
                "blockOutput All needs blockLayers above 1",
            ),
        )
    }

    layers: LayersSpec = LayersSpec()
    """How many layers a network has."""
    filter_heights: Annotated[
        tuple[FilterSize, ...],
        Field(min_length=1, max_length=16, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = (1, 3, 5, 7)
    """Filter heights to choose from, in pixels."""
    filter_widths: Annotated[
        tuple[FilterSize, ...],
        Field(min_length=1, max_length=16, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = (1, 3, 5, 7)
    """Filter widths to choose from, in pixels."""
    filters: Annotated[
        tuple[FilterCount, ...],
        Field(min_length=1, max_length=16, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = (24, 36, 48, 64)
    """Numbers of filters to choose from."""
    strides: Annotated[
        tuple[Stride, ...],
        Field(min_length=1, max_length=4, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = (1,)
    """Strides to choose from, for height and width separately; a single one is the stride of all layers."""
    skip_connections: bool = True
    """Whether each layer chooses its inputs among all earlier ones; otherwise layers form a chain ("no skips")."""
    all_skips: bool = False
    """Whether every layer takes all earlier ones as inputs instead of choosing (the paper's ablation "all skips")."""
    block_layers: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of layers of the densely connected block that each predicted layer becomes (the paper's variant 3: 3)."""
    block_output: Annotated[BlockOutput, Field(exclude_if=_is_last)] = "Last"
    """What a block hands on: the output of its last layer, or of all of them, concatenated in depth. All is the paper's
    variant 3: only so are networks of its sizes in the space."""
    extra_filters: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of filters added to the chosen number in every layer (the paper's largest network: 40)."""
    pooling_after: Annotated[
        tuple[Annotated[int, Field(ge=1, le=320)], ...],
        Field(max_length=8, json_schema_extra=cel((UNIQUE, "positions must differ"))),
    ] = ()
    """Layers, counted from 1 after unrolling, whose block is followed by max pooling, which halves the image (paper:
    13, 24)."""


MOST_FILTERS = 4096
"""Of one layer, whatever was added to those that were chosen."""


class ConvolutionalLayer(Model):
    """One convolution with ReLU and batch normalisation, or a densely connected block of them."""

    filter_height: Annotated[int, Field(ge=1, le=31)]
    filter_width: Annotated[int, Field(ge=1, le=31)]
    filters: Annotated[int, Field(ge=1, le=MOST_FILTERS)]
    stride_height: Annotated[int, Field(ge=1, le=8)] = 1
    stride_width: Annotated[int, Field(ge=1, le=8)] = 1
    pool: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether its output is halved by 2x2 max pooling."""
    inputs: tuple[int, ...] = ()
    """Earlier layers (from 0) whose outputs are concatenated in depth; empty: the image."""


class ConvolutionalArchitecture(SampledArchitecture):
    """A feed-forward convolutional network with skip connections (paper section 3.3).

    With ``block_layers`` above 1 a layer stands for a block of so many convolutions of its size and filters: each
    takes the block's input and the outputs of those before it in the block, concatenated in depth; the first has the
    strides; the block's output is that of its last convolution or, where ``block_output`` is All, of all of them,
    concatenated in depth.
    """

    space: Literal["convolutional"] = "convolutional"
    block_layers: Annotated[int, Field(ge=1, le=8, exclude_if=lambda layers: layers == 1)] = 1
    block_output: Annotated[BlockOutput, Field(exclude_if=_is_last)] = "Last"
    layers: Annotated[tuple[ConvolutionalLayer, ...], Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _fits_together(self) -> "ConvolutionalArchitecture":
        if self.block_output == "All" and self.block_layers == 1:
            raise ValueError("blockOutput All needs blockLayers above 1")
        for index, layer in enumerate(self.layers):
            if any(one >= other for one, other in pairwise(layer.inputs)):
                raise ValueError(f"layers[{index}].inputs must be ascending and without repeats")
            if any(not 0 <= source < index for source in layer.inputs):
                raise ValueError(f"layers[{index}].inputs may name only layers before {index}")
        return self

    def channels(self, index: int, in_channels: int) -> int:
        """Return how many channels layer ``index`` takes, for an image of ``in_channels``."""
        inputs = self.layers[index].inputs
        return sum(self.handed_on(source) for source in inputs) if inputs else in_channels

    def handed_on(self, index: int) -> int:
        """Return how many channels layer ``index`` hands on."""
        return self.layers[index].filters * (self.block_layers if self.block_output == "All" else 1)

    def weights(self, index: int, in_channels: int) -> int:
        """Return how many weights the convolutions of layer ``index`` have, for an image of ``in_channels``."""
        layer = self.layers[index]
        taken = self.block_layers * self.channels(index, in_channels)
        taken += layer.filters * (self.block_layers * (self.block_layers - 1) // 2)
        return layer.filter_height * layer.filter_width * layer.filters * taken

    def leaves(self) -> tuple[int, ...]:
        """Return the layers whose outputs feed no other layer: what the classifier takes."""
        consumed = {source for layer in self.layers for source in layer.inputs}
        return tuple(index for index in range(len(self.layers)) if index not in consumed)

    def short(self) -> str:
        """Return ``3x5:24/1x2p<0,1`` a layer: height x width : filters / strides, p with pooling, < inputs.

        A first word ``*3`` says that each layer is a block of 3, ``*3all`` that all their outputs are handed on.
        """
        words = []
        if self.block_layers > 1:
            words.append(f"*{self.block_layers}{'all' if self.block_output == 'All' else ''}")
        for layer in self.layers:
            word = f"{layer.filter_height}x{layer.filter_width}:{layer.filters}"
            if (layer.stride_height, layer.stride_width) != (1, 1):
                word += f"/{layer.stride_height}x{layer.stride_width}"
            if layer.pool:
                word += "p"
            if layer.inputs:
                word += "<" + ",".join(map(str, layer.inputs))
            words.append(word)
        return " ".join(words)

    @classmethod
    def parse_short(cls, text: str) -> "ConvolutionalArchitecture":
        """Return the architecture of a line from ``short``.

        Raises:
            ValueError: the text is no such line, or was cut.
        """
        words = text.split()
        block = _SHORT_BLOCK.fullmatch(words[0]) if words else None
        layers = []
        for word in words[1:] if block else words:
            match = _SHORT_LAYER.fullmatch(word)
            if match is None:
                raise ValueError(f"{word!r} is not a layer in short form, such as 3x5:24/1x2p<0,1")
            values: dict[str, Any] = {
                key: int(value) for key, value in match.groupdict("1").items() if key not in ("inputs", "pool")
            }
            inputs = match["inputs"]
            values["inputs"] = tuple(int(source) for source in inputs.split(",")) if inputs else ()
            layers.append(ConvolutionalLayer.model_validate({**values, "pool": match["pool"] is not None}))
        if block is None:
            return cls(layers=tuple(layers))
        return cls(block_layers=int(block[1]), block_output="All" if block[2] else "Last", layers=tuple(layers))


class ConvolutionalSpace:
    """Per layer filter sizes, count, strides, and anchor-point skips (paper section 3.3)."""

    def __init__(self, spec: ConvolutionalSpec) -> None:
        self._spec = spec
        columns: list[tuple[str, tuple[int, ...]]] = [
            ("filterHeight", spec.filter_heights),
            ("filterWidth", spec.filter_widths),
            ("filters", tuple(filters + spec.extra_filters for filters in spec.filters)),
        ]
        if len(spec.strides) > 1:
            columns += [("strideHeight", spec.strides), ("strideWidth", spec.strides)]
        self._columns = tuple(columns)
        self._predicted_skips = spec.skip_connections and not spec.all_skips
        # Pooling comes after the block that holds the layer of that number.
        self._pooled = frozenset((after - 1) // spec.block_layers for after in spec.pooling_after)

    def depth(self, sample: int) -> int:
        """Return the number of predicted layers of the sample-th architecture: the paper's depth schedule."""
        layers = self._spec.layers
        grown = layers.initial + layers.increment * (sample // layers.every_samples)
        return min(grown, layers.maximum)

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """See :class:`~nas_api.spaces.base.Space`."""
        out: list[Decision] = []
        for layer in range(self.depth(sample)):
            out += [Categorical(kind, tuple(map(str, options))) for kind, options in self._columns]
            if self._predicted_skips:
                out.append(Anchor(layer))
        return tuple(out)

    def size(self, sample: int) -> int:
        """See :class:`~nas_api.spaces.base.Space`."""
        depth = self.depth(sample)
        skips = 2 ** (depth * (depth - 1) // 2) if self._predicted_skips else 1
        return int(prod(len(options) for _, options in self._columns) ** depth * skips)

    def decode(self, choices: Choices) -> ConvolutionalArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        width = len(self._columns) + self._predicted_skips
        if not choices or len(choices) % width:
            raise ValueError(f"{len(choices)} choices are not a whole number of layers of {width} decisions")
        layers = []
        fixed = self._spec.strides[0]
        for index in range(len(choices) // width):
            row = choices[index * width : (index + 1) * width]
            values: dict[str, Any] = {"strideHeight": fixed, "strideWidth": fixed, "pool": index in self._pooled}
            for (kind, options), choice in zip(self._columns, row, strict=False):
                if not 0 <= choice < len(options):
                    raise ValueError(f"layer {index}: {kind} has {len(options)} options, not option {choice}")
                values[kind] = options[choice]
            inputs = self._fixed_inputs(index)
            if self._predicted_skips:
                mask = row[-1]
                if not 0 <= mask < 2**index:
                    raise ValueError(f"layer {index}: mask {mask} names layers that are not earlier")
                inputs = tuple(source for source in range(index) if mask >> source & 1)
            layers.append(ConvolutionalLayer.model_validate({**values, "inputs": inputs}))
        return ConvolutionalArchitecture(
            block_layers=self._spec.block_layers, block_output=self._spec.block_output, layers=tuple(layers)
        )

    def encode(self, architecture: ConvolutionalArchitecture) -> Choices:
        """See :class:`~nas_api.spaces.base.Space`."""
        # Checked field by field: decoding again to compare takes three times as long, in a log of thousands.
        choices: list[int] = []
        strides = self._spec.strides
        if architecture.block_layers != self._spec.block_layers:
            raise ValueError(f"a layer is a block of {self._spec.block_layers} in this space")
        if architecture.block_output != self._spec.block_output:
            raise ValueError(f"what a block hands on is {self._spec.block_output} in this space")
        for index, layer in enumerate(architecture.layers):
            for kind, options in self._columns:
                choices.append(options.index(getattr(layer, _FIELDS[kind])))
            if len(strides) == 1 and (layer.stride_height, layer.stride_width) != 2 * strides:
                raise ValueError(f"layer {index}: the stride is {strides[0]} in this space")
            if layer.pool != (index in self._pooled):
                raise ValueError(f"layer {index}: where pooling is, is fixed in this space")
            if self._predicted_skips:
                choices.append(sum(1 << source for source in layer.inputs))
            elif layer.inputs != self._fixed_inputs(index):
                raise ValueError(f"layer {index}: the inputs are fixed in this space")
        return tuple(choices)

    def parse_short(self, text: str) -> ConvolutionalArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        return ConvolutionalArchitecture.parse_short(text)

    def _fixed_inputs(self, index: int) -> tuple[int, ...]:
        if self._spec.all_skips:
            return tuple(range(index))
        return (index - 1,) if index else ()
