"""Recurrent cells as trees over the input and the previous state: the paper's section 3.4."""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from nas_api.base import Model
from nas_api.cel import UNIQUE, cel
from nas_api.decisions import Categorical, Choices
from nas_api.spaces.base import SampledArchitecture

Combination = Literal["add", "elem_mult", "max"]
Activation = Literal["identity", "tanh", "sigmoid", "relu", "sin"]

_SHORT = re.compile(r"(?P<nodes>[a-z_/ ]+); inject (?P<inject>[a-z_/]+) at (?P<injected>\d+); c=(?P<cell_output>\d+)")


class RecurrentCellSpec(Model):
    """Recurrent cells: a full binary tree over the input and the previous state (paper section 3.4)."""

    base: Annotated[
        int, Field(ge=2, le=16, json_schema_extra=cel(("self in [2, 4, 8, 16]", "must be 2, 4, 8 or 16")))
    ] = 8
    """Leaves of the tree (the paper's base number); the whole tree has 2 * base - 1 nodes."""
    combinations: Annotated[
        tuple[Combination, ...],
        Field(min_length=1, max_length=3, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = ("add", "elem_mult")
    """How a node combines its two inputs; `max` is the paper's control experiment."""
    activations: Annotated[
        tuple[Activation, ...],
        Field(min_length=1, max_length=5, json_schema_extra=cel((UNIQUE, "options must differ"))),
    ] = ("identity", "tanh", "sigmoid", "relu")
    """What follows the combination; `sin` is the paper's control experiment."""


class CellNode(Model):
    """One node of the tree: the activation of the combination of its two inputs."""

    combination: Combination
    activation: Activation

    def short(self) -> str:
        """Return ``add/tanh``."""
        return f"{self.combination}/{self.activation}"


class RecurrentCellArchitecture(SampledArchitecture):
    """A recurrent cell (paper section 3.4).

    Nodes are numbered from the leaves up. Leaf i < base combines W_i x_t and U_i h_(t-1); node i >= base combines
    the values of nodes 2(i - base) and 2(i - base) + 1; the last one's value is h_t. The value a of the node
    ``injected`` is replaced by inject(a, c_(t-1)); c_t is the value of the node ``cell_output`` before its activation.
    """

    space: Literal["recurrentCell"] = "recurrentCell"
    nodes: Annotated[tuple[CellNode, ...], Field(min_length=3, max_length=31)]
    inject: CellNode
    injected: Annotated[int, Field(ge=0, le=30)]
    cell_output: Annotated[int, Field(ge=0, le=30)]

    @model_validator(mode="after")
    def _is_a_tree(self) -> "RecurrentCellArchitecture":
        count = len(self.nodes)
        if (count + 1) & count:
            raise ValueError(f"{count} nodes do not make a full binary tree")
        if max(self.injected, self.cell_output) >= count:
            raise ValueError(f"injected and cellOutput must name one of {count} nodes")
        return self

    @property
    def base(self) -> int:
        """The number of leaves."""
        return (len(self.nodes) + 1) // 2

    def children(self, index: int) -> tuple[int, int]:
        """Return the two nodes whose values the inner node ``index`` combines."""
        left = 2 * (index - self.base)
        return left, left + 1

    def columns(self) -> tuple[int, ...]:
        """Return the leaves in the order in which a network keeps their weights' columns.

        Leaves of one combination lie side by side (added ones first), and among them those of one activation, so
        that each group is one operation; then those from which the cell's state is made.
        """
        below = {self.cell_output}
        for index in reversed(range(self.base, len(self.nodes))):
            if index in below:
                below.update(self.children(index))
        combinations = get_args(Combination)
        return tuple(
            sorted(
                range(self.base),
                key=lambda leaf: (
                    combinations.index(self.nodes[leaf].combination),
                    self.nodes[leaf].activation,
                    leaf in below,
                    leaf,
                ),
            )
        )

    def short(self) -> str:
        """Return the nodes from the leaves up, then the injection and the node that gives the cell's state."""
        nodes = " ".join(node.short() for node in self.nodes)
        return f"{nodes}; inject {self.inject.short()} at {self.injected}; c={self.cell_output}"

    @classmethod
    def parse_short(cls, text: str) -> "RecurrentCellArchitecture":
        """Return the architecture of a line from ``short``.

        Raises:
            ValueError: the text is no such line, or was cut.
        """
        match = _SHORT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text[:80]!r} is not a cell in short form")
        return cls(
            nodes=tuple(_node(word) for word in match["nodes"].split()),
            inject=_node(match["inject"]),
            injected=int(match["injected"]),
            cell_output=int(match["cell_output"]),
        )


def _node(word: str) -> CellNode:
    combination, _, activation = word.partition("/")
    return CellNode.model_validate({"combination": combination, "activation": activation})


class RecurrentCellSpace:
    """A combination and an activation for each node and for the injection, then two nodes for the cell's state."""

    def __init__(self, spec: RecurrentCellSpec) -> None:
        self._spec = spec
        self._nodes = 2 * spec.base - 1
        node = (Categorical("combination", spec.combinations), Categorical("activation", spec.activations))
        indices = tuple(map(str, range(self._nodes)))
        # The paper's order: the tree, the injection's node, then the index that selects c_t, then what is injected.
        self._decisions: tuple[Categorical, ...] = (
            *node * (self._nodes + 1),
            Categorical("cellOutput", indices),
            Categorical("injected", indices),
        )

    def decisions(self, sample: int) -> tuple[Categorical, ...]:
        """See :class:`~nas_api.spaces.base.Space`."""
        return self._decisions

    def size(self, sample: int) -> int:
        """See :class:`~nas_api.spaces.base.Space`; 6.33e16 in the paper's space of base 8."""
        node = len(self._spec.combinations) * len(self._spec.activations)
        return int(node ** (self._nodes + 1) * self._nodes**2)

    def decode(self, choices: Choices) -> RecurrentCellArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        if len(choices) != len(self._decisions):
            raise ValueError(f"a cell of base {self._spec.base} has {len(self._decisions)} choices, not {len(choices)}")
        for step, (decision, choice) in enumerate(zip(self._decisions, choices, strict=True)):
            assert isinstance(decision, Categorical)
            if not 0 <= choice < len(decision.options):
                raise ValueError(f"decision {step}: {decision.kind} has no option {choice}")
        nodes = [
            CellNode(combination=self._spec.combinations[one], activation=self._spec.activations[other])
            for one, other in zip(choices[:-2:2], choices[1:-2:2], strict=True)
        ]
        return RecurrentCellArchitecture(
            nodes=tuple(nodes[:-1]), inject=nodes[-1], cell_output=choices[-2], injected=choices[-1]
        )

    def encode(self, architecture: RecurrentCellArchitecture) -> Choices:
        """See :class:`~nas_api.spaces.base.Space`."""
        if architecture.base != self._spec.base:
            raise ValueError(f"the cell has base {architecture.base}, not {self._spec.base}")
        choices: list[int] = []
        for node in (*architecture.nodes, architecture.inject):
            choices.append(self._spec.combinations.index(node.combination))
            choices.append(self._spec.activations.index(node.activation))
        return (*choices, architecture.cell_output, architecture.injected)

    def parse_short(self, text: str) -> RecurrentCellArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        return RecurrentCellArchitecture.parse_short(text)
