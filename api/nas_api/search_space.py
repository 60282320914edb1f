"""What a manifest says of its search space, and the space that it describes."""

from typing import Any

from pydantic import model_validator

from nas_api.architecture import Architecture
from nas_api.base import Model
from nas_api.cel import cel, exactly_one
from nas_api.spaces.base import Space
from nas_api.spaces.convolutional import ConvolutionalSpace, ConvolutionalSpec
from nas_api.spaces.convolutional_cell import ConvolutionalCellSpace, ConvolutionalCellSpec
from nas_api.spaces.custom import CustomArchitecture, CustomSpace, CustomSpec
from nas_api.spaces.fixed import FixedSpace, FixedSpec
from nas_api.spaces.recurrent_cell import RecurrentCellSpace, RecurrentCellSpec

SearchSpace = Space[Any]
"""A space of any kind: what it decodes, it encodes."""


class SearchSpaceSpec(Model):
    """The networks that may be sampled; exactly one space."""

    model_config = {
        "json_schema_extra": cel(exactly_one("convolutional", "convolutionalCell", "recurrentCell", "custom", "fixed"))
    }

    convolutional: ConvolutionalSpec | None = None
    """Convolutional networks with skip connections."""
    convolutional_cell: ConvolutionalCellSpec | None = None
    """Convolutional networks of one repeated cell, as in NAS-Bench-201 and NASNet."""
    recurrent_cell: RecurrentCellSpec | None = None
    """Recurrent cells, for language models."""
    custom: CustomSpec | None = None
    """Your own decisions, for your own trainer."""
    fixed: FixedSpec | None = None
    """The architecture that another experiment has found, to be trained on this experiment's dataset."""

    @model_validator(mode="after")
    def _one(self) -> "SearchSpaceSpec":
        spaces = (self.convolutional, self.convolutional_cell, self.recurrent_cell, self.custom, self.fixed)
        if sum(space is not None for space in spaces) != 1:
            raise ValueError("set exactly one of convolutional, convolutionalCell, recurrentCell, custom, fixed")
        return self


def search_space(spec: SearchSpaceSpec, architecture: Architecture | None = None) -> SearchSpace:
    """Return the space that a manifest describes.

    Args:
        spec: the manifest's.
        architecture: what ``fixed`` stands for, as the log says; without it such a space can only be looked at.
    """
    if spec.fixed is not None:
        return FixedSpace(spec.fixed, architecture)
    if spec.convolutional_cell is not None:
        return ConvolutionalCellSpace(spec.convolutional_cell)
    if spec.recurrent_cell is not None:
        return RecurrentCellSpace(spec.recurrent_cell)
    if spec.custom is not None:
        return CustomSpace(spec.custom)
    assert spec.convolutional is not None
    return ConvolutionalSpace(spec.convolutional)


def arranged(space: SearchSpace, architecture: Architecture) -> Architecture:
    """Return an architecture of a space with a user's own decisions in the manifest's order, for people.

    JSON with sorted keys, as the log and ``best/`` have it, has lost that order.
    """
    if not isinstance(architecture, CustomArchitecture):
        return architecture
    out: Architecture = space.decode(space.encode(architecture))
    return out
