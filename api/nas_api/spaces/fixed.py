"""A space of one architecture, found by another experiment: for transfer to another dataset.

The paper's word-level cell is trained on characters this way (section 4.2). Which architecture it is, is read once from
what the other experiment has left, and recorded in this one's log.
"""

from typing import Annotated

from pydantic import StringConstraints

from nas_api.architecture import Architecture
from nas_api.base import Model
from nas_api.decisions import Categorical, Choices, Decision
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture


class FixedSpec(Model):
    """The architecture that another experiment in the same namespace and store has found.

    It is trained budget.samples times, whatever searcher.duplicates says. The search begins once the other one has
    ended.
    """

    experiment: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    """Name of that experiment; with `nas run`, the name of its folder, next to this run's."""
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Its uid; needed if several experiments of that name have left logs."""


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
        try:
            return RecurrentCellArchitecture.parse_short(text)
        except ValueError:
            # It is no cell, so it is a network or nothing that can be read.
            return ConvolutionalArchitecture.parse_short(text)
