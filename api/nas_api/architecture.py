"""One sampled network: canonical JSON with a version, a stable hash and a short readable form."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nas_api.base import Model


class ConvolutionalLayer(Model):
    """One convolution with ReLU and batch normalisation."""

    filter_height: Annotated[int, Field(ge=1, le=31)]
    filter_width: Annotated[int, Field(ge=1, le=31)]
    filters: Annotated[int, Field(ge=1, le=4096)]
    stride_height: Annotated[int, Field(ge=1, le=8)] = 1
    stride_width: Annotated[int, Field(ge=1, le=8)] = 1
    inputs: tuple[int, ...] = ()
    """Earlier layers (from 0) whose outputs are concatenated in depth; empty: the image."""


class Architecture(Model):
    """A feed-forward convolutional network with skip connections (paper section 3.3)."""

    version: Literal[1] = 1
    space: Literal["convolutional"] = "convolutional"
    layers: Annotated[tuple[ConvolutionalLayer, ...], Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _inputs_come_earlier(self) -> "Architecture":
        for index, layer in enumerate(self.layers):
            if list(layer.inputs) != sorted(set(layer.inputs)):
                raise ValueError(f"layers[{index}].inputs must be ascending and without repeats")
            if any(not 0 <= source < index for source in layer.inputs):
                raise ValueError(f"layers[{index}].inputs may name only layers before {index}")
        return self

    def canonical(self) -> str:
        """Return the one JSON text of this architecture: sorted keys, no spaces."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the architecture as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def digest(self) -> str:
        """The SHA-256 of the canonical JSON in hex: equal networks have equal digests."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def short(self) -> str:
        """Return a line for people: ``3x5:24/1x2<0,1`` is height x width : filters / strides < inputs."""
        words = []
        for layer in self.layers:
            word = f"{layer.filter_height}x{layer.filter_width}:{layer.filters}"
            if (layer.stride_height, layer.stride_width) != (1, 1):
                word += f"/{layer.stride_height}x{layer.stride_width}"
            if layer.inputs:
                word += "<" + ",".join(map(str, layer.inputs))
            words.append(word)
        return " ".join(words)
