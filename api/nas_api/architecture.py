"""One sampled network of any space."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture

Architecture = Annotated[
    ConvolutionalArchitecture | ConvolutionalCellArchitecture | RecurrentCellArchitecture | CustomArchitecture,
    Field(discriminator="space"),
]

ARCHITECTURE: TypeAdapter[Architecture] = TypeAdapter(Architecture)
"""Reads an architecture's JSON document, whichever space it is of."""
