"""Which decisions a search space asks for, and how choices become an architecture and back.

A policy knows nothing of networks: it sees a tuple of decisions and answers with one integer each.
Everything here is pure.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

from nas_api.architecture import Architecture, ConvolutionalLayer
from nas_api.experiment import ConvolutionalSpec, SearchSpaceSpec


@dataclass(frozen=True)
class Categorical:
    """One softmax over ``len(options)`` choices; decisions of one kind share an embedding and a softmax."""

    kind: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Anchor:
    """Skip connections into layer ``index`` (paper section 3.3): one yes/no for each earlier anchor.

    Anchors of a sample are numbered from 0 in order; the choice at anchor ``index`` is a bit mask in
    [0, 2**index) whose bit j says that layer j is an input of layer ``index``.
    """

    index: int


Decision = Categorical | Anchor
Choices = tuple[int, ...]


class SearchSpace(Protocol):
    """What the controller needs of a space."""

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """Return the decisions of the sample-th architecture (from 0), in the order they are taken."""

    def decode(self, choices: Choices) -> Architecture:
        """Return the architecture of these choices.

        Raises:
            ValueError: the choices do not fit the space.
        """

    def encode(self, architecture: Architecture) -> Choices:
        """Return the choices of an architecture: the inverse of ``decode``.

        Raises:
            ValueError: the architecture is not in the space.
        """


class ConvolutionalSpace:
    """The paper's section 3.3: per layer filter sizes, count, strides, and anchor-point skips."""

    def __init__(self, spec: ConvolutionalSpec) -> None:
        self._spec = spec
        columns: list[tuple[str, tuple[int, ...]]] = [
            ("filterHeight", spec.filter_heights),
            ("filterWidth", spec.filter_widths),
            ("filters", spec.filters),
        ]
        if len(spec.strides) > 1:
            columns += [("strideHeight", spec.strides), ("strideWidth", spec.strides)]
        self._columns = tuple(columns)

    def depth(self, sample: int) -> int:
        """Return the number of layers of the sample-th architecture: the paper's depth schedule."""
        layers = self._spec.layers
        grown = layers.initial + layers.increment * (sample // layers.every_samples)
        return min(grown, layers.maximum)

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """See :class:`SearchSpace`."""
        out: list[Decision] = []
        for layer in range(self.depth(sample)):
            out += [Categorical(kind, tuple(map(str, options))) for kind, options in self._columns]
            if self._spec.skip_connections:
                out.append(Anchor(layer))
        return tuple(out)

    def size(self, sample: int) -> int:
        """Return how many different choices the sample-th architecture has."""
        depth = self.depth(sample)
        skips = 2 ** (depth * (depth - 1) // 2) if self._spec.skip_connections else 1
        return int(prod(len(options) for _, options in self._columns) ** depth * skips)

    def decode(self, choices: Choices) -> Architecture:
        """See :class:`SearchSpace`."""
        width = len(self._columns) + self._spec.skip_connections
        if not choices or len(choices) % width:
            raise ValueError(f"{len(choices)} choices are no whole number of layers of {width} decisions")
        layers = []
        fixed = self._spec.strides[0]
        for index in range(len(choices) // width):
            row = choices[index * width : (index + 1) * width]
            values = {"strideHeight": fixed, "strideWidth": fixed}
            for (kind, options), choice in zip(self._columns, row, strict=False):
                if not 0 <= choice < len(options):
                    raise ValueError(f"layer {index}: {kind} has {len(options)} options, not option {choice}")
                values[kind] = options[choice]
            inputs: tuple[int, ...] = (index - 1,) if index else ()
            if self._spec.skip_connections:
                mask = row[-1]
                if not 0 <= mask < 2**index:
                    raise ValueError(f"layer {index}: mask {mask} names layers that are not earlier")
                inputs = tuple(source for source in range(index) if mask >> source & 1)
            layers.append(ConvolutionalLayer.model_validate({**values, "inputs": inputs}))
        return Architecture(layers=tuple(layers))

    def encode(self, architecture: Architecture) -> Choices:
        """See :class:`SearchSpace`."""
        choices: list[int] = []
        for index, layer in enumerate(architecture.layers):
            values = layer.model_dump(by_alias=True)
            for kind, options in self._columns:
                choices.append(options.index(values[kind]))
            if self._spec.skip_connections:
                choices.append(sum(1 << source for source in layer.inputs))
            elif layer.inputs != ((index - 1,) if index else ()):
                raise ValueError(f"layer {index}: this space has no skip connections")
        if self.decode(tuple(choices)) != architecture:
            raise ValueError("the architecture is not in this space")
        return tuple(choices)


def search_space(spec: SearchSpaceSpec) -> SearchSpace:
    """Return the space that a manifest describes."""
    return ConvolutionalSpace(spec.convolutional)
