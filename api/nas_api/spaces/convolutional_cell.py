"""Convolutional networks of cells: one small graph of operations, found by the search, and repeated in stages.

Two wirings, which most searches for images of the years after the paper have: ``Dense`` is NAS-Bench-201's (Dong and
Yang, 2020) and ``Pairs`` NASNet's (Zoph et al., 2018).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nas_api.base import Model
from nas_api.cel import UNIQUE, cel
from nas_api.decisions import Categorical, Choices
from nas_api.spaces.base import SampledArchitecture

Wiring = Literal["Dense", "Pairs"]
Operation = Literal[
    "none",
    "skip",
    "conv_1x1",
    "conv_3x3",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
    "max_pool_5x5",
    "max_pool_7x7",
]

OPERATION = "operation"
"""The kind of the decisions on operations."""

_SHORT = re.compile(
    r"(?P<wiring>dense|pairs) (?P<stages>\d+)x(?P<cells>\d+):(?P<filters>\d+) (?P<normal>\S+)"
    r"(?: reduce (?P<reduction>\S+))?"
)
_SHORT_NODE = re.compile(r"\|(?:[a-z0-9_]+~\d+\|)+")


class ConvolutionalCellSpec(Model):
    """Convolutional networks of repeated cells. With nothing set it is NAS-Bench-201: 15,625 networks."""

    wiring: Wiring = "Dense"
    """Dense: each node adds up one operation on each node before it, and the last is the cell's output; a fixed
    residual block halves the image between stages (NAS-Bench-201). Pairs: each node chooses two of the nodes before it,
    with an operation on each, and adds these; nodes that no other takes are the cell's output, concatenated; cells take
    the outputs of the last two; a second, searched cell halves the image between stages (NASNet)."""
    nodes: Annotated[int, Field(ge=1, le=8)] = 3
    """Nodes of a cell, not counting its inputs (NAS-Bench-201: 3, which it calls 4 with the input; NASNet: 5)."""
    operations: Annotated[
        tuple[Operation, ...],
        Field(min_length=1, max_length=15, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = ("none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3")
    """Operations to choose from. NASNet's are all but none and dil_conv_5x5."""
    stages: Annotated[int, Field(ge=1, le=5)] = 3
    """Stages; from one to the next the image is halved and the filters are doubled."""
    cells_per_stage: Annotated[int, Field(ge=1, le=20)] = 5
    """How often the cell is repeated in a stage."""
    filters: Annotated[int, Field(ge=1, le=256)] = 16
    """Filters of the cells of the first stage."""

    def edges(self) -> tuple[str, ...]:
        """Return names for the operations in the order in which they are decided, such as ``0→2`` or ``reduction 3b``.

        Of the two that a node of Pairs has, a is the first and b the second.
        """
        if self.wiring == "Dense":
            return tuple(f"{source}→{place}" for place in range(1, self.nodes + 1) for source in range(place))
        own = [f"{place}{which}" for place in range(2, self.nodes + 2) for which in "ab"]
        return (*own, *(f"reduction {name}" for name in own)) if self.stages > 1 else tuple(own)


class ConvolutionalCellNode(Model):
    """A node of a cell: the sum of operations on values before it."""

    inputs: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)]
    """Which values: the cell's inputs come first, then its nodes, from 0."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1, max_length=8)]
    """What is done to each of them."""

    @model_validator(mode="after")
    def _are_pairs(self) -> "ConvolutionalCellNode":
        if len(self.inputs) != len(self.operations):
            raise ValueError("inputs and operations must be as many")
        return self

    def short(self) -> str:
        """Return ``|conv_3x3~0|skip~1|``, as NAS-Bench-201 writes it."""
        edges = (f"{operation}~{source}|" for source, operation in zip(self.inputs, self.operations, strict=True))
        return "|" + "".join(edges)


Nodes = Annotated[tuple[ConvolutionalCellNode, ...], Field(max_length=8)]


@dataclass(frozen=True)
class Place:
    """A cell where it stands in the network, or Dense's residual block between two stages."""

    nodes: tuple[ConvolutionalCellNode, ...]
    """The cell's; none in a residual block."""
    filters: int
    """Of all that is in the cell."""
    before: int
    """Channels of the output before the last one."""
    last: int
    """Channels of the last output; the first convolution's counts as both."""
    reduces: bool = False
    """Whether it halves the image."""
    after_reduction: bool = False
    """Whether the last one halved it, so that the output before that is twice as high and wide."""


class ConvolutionalCellArchitecture(SampledArchitecture):
    """A convolutional network of repeated cells.

    After a first convolution come ``stages`` of ``cells_per_stage`` cells of the nodes ``normal``, with ``filters``
    filters in the first stage and twice as many in each later one. In between stands a residual block (Dense), or a
    cell of the nodes ``reduction`` (Pairs), of the later stage's filters, which halves the image: in it, operations on
    the cell's inputs have stride 2.
    """

    space: Literal["convolutionalCell"] = "convolutionalCell"
    wiring: Wiring
    stages: Annotated[int, Field(ge=1, le=5)]
    cells_per_stage: Annotated[int, Field(ge=1, le=20)]
    filters: Annotated[int, Field(ge=1, le=256)]
    normal: Annotated[Nodes, Field(min_length=1)]
    reduction: Nodes = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "ConvolutionalCellArchitecture":
        if bool(self.reduction) != (self.wiring == "Pairs" and self.stages > 1):
            raise ValueError("a reduction cell is what Pairs of several stages have, and nothing else has")
        for name, nodes in (("normal", self.normal), ("reduction", self.reduction)):
            for place, node in enumerate(nodes, self.cell_inputs):
                if self.wiring == "Dense" and node.inputs != tuple(range(place)):
                    raise ValueError(f"{name}: node {place} must take all before it")
                if self.wiring == "Pairs" and len(node.inputs) != 2:
                    raise ValueError(f"{name}: node {place} must take two")
                if any(not 0 <= source < place for source in node.inputs):
                    raise ValueError(f"{name}: node {place} may take only what comes before it")
        return self

    @property
    def cell_inputs(self) -> int:
        """How many inputs a cell has: the outputs of so many cells before it."""
        return 1 if self.wiring == "Dense" else 2

    def outputs(self, nodes: tuple[ConvolutionalCellNode, ...]) -> tuple[int, ...]:
        """Return which values of a cell are its output: the last node's, or all that no node takes."""
        count = self.cell_inputs + len(nodes)
        if self.wiring == "Dense":
            return (count - 1,)
        taken = {source for node in nodes for source in node.inputs}
        return tuple(place for place in range(count) if place not in taken)

    def places(self) -> Iterator[Place]:
        """Yield what the network consists of, from the first convolution to the classifier."""
        before = last = self.filters
        for stage in range(self.stages):
            filters = self.filters * 2**stage
            kinds = [self.normal] * self.cells_per_stage
            for number, nodes in enumerate([self.reduction, *kinds] if stage else kinds):
                reduces = stage > 0 and number == 0
                yield Place(nodes, filters, before, last, reduces, after_reduction=stage > 0 and number == 1)
                before, last = last, filters * (len(self.outputs(nodes)) if nodes else 1)

    def features(self) -> int:
        """Return how many channels the classifier takes."""
        return int(self.filters * 2 ** (self.stages - 1) * len(self.outputs(self.normal)))

    def short(self) -> str:
        """Return ``dense 3x5:16 |conv_3x3~0|+|skip~0|none~1|``: stages x cells : filters, then a cell's nodes.

        Pairs have ``reduce`` and the nodes of the reduction cell after it.
        """
        words = [self.wiring.lower(), f"{self.stages}x{self.cells_per_stage}:{self.filters}"]
        words.append("+".join(node.short() for node in self.normal))
        if self.reduction:
            words += ["reduce", "+".join(node.short() for node in self.reduction)]
        return " ".join(words)

    @classmethod
    def parse_short(cls, text: str) -> "ConvolutionalCellArchitecture":
        """Return the architecture of a line from ``short``.

        Raises:
            ValueError: the text is no such line, or was cut.
        """
        match = _SHORT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text[:80]!r} is not a network of cells in short form")
        return cls.model_validate(
            {
                "wiring": match["wiring"].capitalize(),
                "stages": int(match["stages"]),
                "cells_per_stage": int(match["cells"]),
                "filters": int(match["filters"]),
                "normal": _nodes(match["normal"]),
                "reduction": _nodes(match["reduction"]) if match["reduction"] else (),
            }
        )


def _nodes(text: str) -> tuple[ConvolutionalCellNode, ...]:
    nodes = []
    for word in text.split("+"):
        if not _SHORT_NODE.fullmatch(word):
            raise ValueError(f"{word!r} is not a node in short form, such as |conv_3x3~0|skip~1|")
        edges = [edge.partition("~") for edge in word.strip("|").split("|")]
        nodes.append(
            ConvolutionalCellNode.model_validate(
                {
                    "inputs": tuple(int(source) for _, _, source in edges),
                    "operations": tuple(operation for operation, _, _ in edges),
                }
            )
        )
    return tuple(nodes)


class ConvolutionalCellSpace:
    """Dense: an operation an edge. Pairs: for each node of the cells two inputs, then the operations on them.

    Networks that are alike but for the order of a pair, or for nodes that nothing hangs on, count as different ones, as
    they do in the literature.
    """

    def __init__(self, spec: ConvolutionalCellSpec) -> None:
        self._spec = spec
        operation = Categorical(OPERATION, spec.operations)
        if spec.wiring == "Dense":
            self._decisions: tuple[Categorical, ...] = (operation,) * sum(range(1, spec.nodes + 1))
        else:
            cell: list[Categorical] = []
            for place in range(2, spec.nodes + 2):
                source = Categorical(f"input of node {place}", tuple(map(str, range(place))))
                cell += [source, source, operation, operation]
            self._decisions = tuple(cell) * (2 if spec.stages > 1 else 1)

    def decisions(self, sample: int) -> tuple[Categorical, ...]:
        """See :class:`~nas_api.spaces.base.Space`."""
        return self._decisions

    def size(self, sample: int) -> int:
        """See :class:`~nas_api.spaces.base.Space`."""
        return prod(len(decision.options) for decision in self._decisions)

    def decode(self, choices: Choices) -> ConvolutionalCellArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        spec = self._spec
        if len(choices) != len(self._decisions):
            raise ValueError(f"{len(self._decisions)} choices are needed, not {len(choices)}")
        for step, (decision, choice) in enumerate(zip(self._decisions, choices, strict=True)):
            if not 0 <= choice < len(decision.options):
                raise ValueError(f"decision {step}: {decision.kind} has no option {choice}")
        reduction: tuple[ConvolutionalCellNode, ...] = ()
        if spec.wiring == "Dense":
            ends = [sum(range(1, place)) for place in range(1, spec.nodes + 2)]
            normal = tuple(self._node(tuple(range(end - begin)), choices[begin:end]) for begin, end in pairwise(ends))
        else:
            nodes = tuple(
                self._node(choices[begin : begin + 2], choices[begin + 2 : begin + 4])
                for begin in range(0, len(choices), 4)
            )
            normal, reduction = nodes[: spec.nodes], nodes[spec.nodes :]
        return ConvolutionalCellArchitecture(
            wiring=spec.wiring,
            stages=spec.stages,
            cells_per_stage=spec.cells_per_stage,
            filters=spec.filters,
            normal=normal,
            reduction=reduction,
        )

    def _node(self, inputs: tuple[int, ...], operations: Choices) -> ConvolutionalCellNode:
        names = tuple(self._spec.operations[choice] for choice in operations)
        return ConvolutionalCellNode(inputs=inputs, operations=names)

    def encode(self, architecture: ConvolutionalCellArchitecture) -> Choices:
        """See :class:`~nas_api.spaces.base.Space`."""
        spec = self._spec
        for name in ("wiring", "stages", "cells_per_stage", "filters"):
            if getattr(architecture, name) != getattr(spec, name):
                raise ValueError(f"{name} is {getattr(spec, name)} in this space, not {getattr(architecture, name)}")
        # Where there is a reduction cell follows from the wiring and the stages.
        if {len(architecture.normal), len(architecture.reduction) or spec.nodes} != {spec.nodes}:
            raise ValueError(f"a cell has {spec.nodes} nodes in this space")
        choices: list[int] = []
        for node in (*architecture.normal, *architecture.reduction):
            choices += node.inputs if spec.wiring == "Pairs" else ()
            choices += map(spec.operations.index, node.operations)
        return tuple(choices)

    def parse_short(self, text: str) -> ConvolutionalCellArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        return ConvolutionalCellArchitecture.parse_short(text)
