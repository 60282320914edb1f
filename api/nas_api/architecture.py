"""One sampled network: canonical JSON with a version, a stable hash and a short readable form."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nas_api.base import Model

_SHORT_LAYER = re.compile(
    r"(?P<filter_height>\d+)x(?P<filter_width>\d+):(?P<filters>\d+)"
    r"(?:/(?P<stride_height>\d+)x(?P<stride_width>\d+))?(?:<(?P<inputs>\d+(?:,\d+)*))?"
)


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

    def channels(self, index: int, in_channels: int) -> int:
        """Return how many channels layer ``index`` takes, for an image of ``in_channels``."""
        inputs = self.layers[index].inputs
        return sum(self.layers[source].filters for source in inputs) if inputs else in_channels

    def leaves(self) -> tuple[int, ...]:
        """Return the layers whose outputs feed no other layer: what the classifier takes."""
        consumed = {source for layer in self.layers for source in layer.inputs}
        return tuple(index for index in range(len(self.layers)) if index not in consumed)

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

    @classmethod
    def parse_short(cls, text: str) -> "Architecture":
        """Return the architecture of a line from ``short``.

        Raises:
            ValueError: the text is no such line, or was cut.
        """
        layers = []
        for word in text.split():
            match = _SHORT_LAYER.fullmatch(word)
            if match is None:
                raise ValueError(f"{word!r} is no layer in short form, such as 3x5:24/1x2<0,1")
            values: dict[str, Any] = {key: int(value) for key, value in match.groupdict("1").items() if key != "inputs"}
            inputs = match["inputs"]
            values["inputs"] = tuple(int(source) for source in inputs.split(",")) if inputs else ()
            layers.append(ConvolutionalLayer.model_validate(values))
        return cls(layers=tuple(layers))
