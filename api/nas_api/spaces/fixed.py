"""A space of one architecture, found by another experiment: for transfer to another dataset, as it is or modified.

The paper's word-level cell is trained on characters this way (section 4.2), and its network for images with all
connections, with none, and with 40 filters more in each layer (section 4.1); a cell is found in a small network and
then repeated in a large one. Which architecture it is, is read once
from what the other experiment has left, and recorded in this one's log.
"""

import operator
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from nas_api.architecture import Architecture
from nas_api.base import Model
from nas_api.cel import cel
from nas_api.decisions import Categorical, Choices, Decision
from nas_api.spaces.convolutional import MOST_FILTERS, ConvolutionalArchitecture
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture


class FixedSpec(Model):
    """The architecture that another experiment in the same namespace and store has found.

    It is trained budget.samples times, whatever searcher.duplicates says. The search begins once the other one has
    ended.
    """

    model_config = {
        "json_schema_extra": cel(
            (
                "!(has(self.allSkips) && self.allSkips && has(self.noSkips) && self.noSkips)",
                "allSkips and noSkips exclude each other",
            )
        )
    }

    experiment: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    """Name of that experiment; with `nas run`, the name of its folder, next to this run's."""
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Its uid; needed if several experiments of that name have left logs."""
    extra_filters: Annotated[int, Field(ge=0, le=1024, exclude_if=operator.not_)] = 0
    """Number of filters added to each layer of the network that was found (the paper's largest: 40)."""
    all_skips: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether every layer of the network that was found takes all earlier ones instead of its own inputs."""
    no_skips: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether every layer of the network that was found takes only the one before it."""
    cells_per_stage: Annotated[int | None, Field(ge=1, le=20, exclude_if=operator.not_)] = None
    """How often the cell that was found is repeated in a stage, instead of as often as there."""
    filters: Annotated[int | None, Field(ge=1, le=256, exclude_if=operator.not_)] = None
    """Filters of the first stage of cells, instead of as many as there."""

    @model_validator(mode="after")
    def _skips_are_all_or_none(self) -> "FixedSpec":
        if self.all_skips and self.no_skips:
            raise ValueError("allSkips and noSkips exclude each other")
        return self

    @property
    def changes(self) -> tuple[str, ...]:
        """What is different from what was found, in words; empty: nothing."""
        return self.changes_of_layers + self.changes_of_cells

    @property
    def changes_of_layers(self) -> tuple[str, ...]:
        """Those that only a network of the space ``convolutional`` can have."""
        words = (
            (self.extra_filters, f"{self.extra_filters} filters more in each layer"),
            (self.all_skips, "all connections"),
            (self.no_skips, "no connections"),
        )
        return tuple(text for wanted, text in words if wanted)

    @property
    def changes_of_cells(self) -> tuple[str, ...]:
        """Those that only a network of the space ``convolutionalCell`` can have."""
        words = ((self.cells_per_stage, "cells in each stage"), (self.filters, "filters in the first stage"))
        return tuple(f"{number} {text}" for number, text in words if number is not None)


def modified(architecture: Architecture, spec: FixedSpec) -> Architecture:
    """Return an architecture with what is to be different from the one that was found.

    Raises:
        ValueError: it is of a space that has no such thing, or one layer would have too many filters; the message
            names the field.
    """
    for changes, form, have in (
        (spec.changes_of_layers, ConvolutionalArchitecture, "convolutional networks have"),
        (spec.changes_of_cells, ConvolutionalCellArchitecture, "networks of the space convolutionalCell have"),
    ):
        if changes and not isinstance(architecture, form):
            raise ValueError(
                f"searchSpace.fixed wants what {spec.experiment} has found with {' and '.join(changes)}, which only"
                f" {have}: it is of the space {architecture.space}"
            )
    if isinstance(architecture, ConvolutionalCellArchitecture):
        numbers = {"cells_per_stage": spec.cells_per_stage, "filters": spec.filters}
        return architecture.model_copy(update={name: each for name, each in numbers.items() if each is not None})
    if not isinstance(architecture, ConvolutionalArchitecture):
        return architecture
    layers = []
    for index, layer in enumerate(architecture.layers):
        if layer.filters + spec.extra_filters > MOST_FILTERS:
            raise ValueError(
                f"searchSpace.fixed.extraFilters: layer {index} has {layer.filters} filters already, and may have at"
                f" most {MOST_FILTERS}"
            )
        inputs = layer.inputs
        if spec.all_skips:
            inputs = tuple(range(index))
        elif spec.no_skips:
            inputs = (index - 1,) if index else ()
        layers.append(layer.model_copy(update={"filters": layer.filters + spec.extra_filters, "inputs": inputs}))
    return architecture.model_copy(update={"layers": tuple(layers)})


class FixedSpace:
    """One decision with one option. Before the architecture is known it can be looked at, but not sampled from."""

    def __init__(self, spec: FixedSpec, architecture: Architecture | None) -> None:
        """Make a space.

        Args:
            spec: whose architecture.
            architecture: the architecture; None where it is not known (outside the controller).
        """
        self._architecture = architecture
        self._decisions = (Categorical("architecture", (spec.experiment,)),)

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """See :class:`~nas_api.spaces.base.Space`."""
        return self._decisions

    def size(self, sample: int) -> int:
        """See :class:`~nas_api.spaces.base.Space`."""
        return 1

    def decode(self, choices: Choices) -> Architecture:
        """See :class:`~nas_api.spaces.base.Space`; an empty stand-in as long as the architecture is not known."""
        if choices != (0,):
            raise ValueError(f"one choice of one option is needed, not {choices}")
        return self._architecture or CustomArchitecture(choices={})

    def encode(self, architecture: Architecture) -> Choices:
        """See :class:`~nas_api.spaces.base.Space`."""
        if architecture != self._architecture:
            raise ValueError("the architecture is not the one of this space")
        return (0,)

    def parse_short(self, text: str) -> Architecture:
        """See :class:`~nas_api.spaces.base.Space`; an architecture of custom decisions is read only if it is known."""
        if self._architecture is not None and text.strip() == self._architecture.short():
            return self._architecture
        for form in (RecurrentCellArchitecture, ConvolutionalCellArchitecture):
            try:
                return form.parse_short(text)
            except ValueError:
                # It is of another form, the last of which says what is wrong with it.
                continue
        return ConvolutionalArchitecture.parse_short(text)
