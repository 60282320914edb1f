"""What the architectures of all spaces have in common, and what a space must be able to do."""

import hashlib
import json
from abc import abstractmethod
from typing import Any, Literal, Protocol, TypeVar

from nas_api.base import Model
from nas_api.decisions import Choices, Decision


class SampledArchitecture(Model):
    """One sampled network: canonical JSON with a version, a stable hash and a short readable form."""

    version: Literal[1] = 1

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

    @abstractmethod
    def short(self) -> str:
        """Return a line for people, which the space's ``parse_short`` reads."""


A = TypeVar("A", bound=SampledArchitecture)


class Space(Protocol[A]):
    """What the search needs of a space whose architectures are of type ``A``."""

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """Return the decisions of the sample-th architecture (from 0), in the order they are taken."""

    def size(self, sample: int) -> int:
        """Return how many different architectures the sample-th may be."""

    def decode(self, choices: Choices) -> A:
        """Return the architecture of these choices.

        Raises:
            ValueError: the choices do not fit the space.
        """

    def encode(self, architecture: A) -> Choices:
        """Return the choices of an architecture: the inverse of ``decode``.

        Raises:
            ValueError: the architecture is not in the space.
        """

    def parse_short(self, text: str) -> A:
        """Return the architecture of a line from its ``short``.

        Raises:
            ValueError: the text is no such line, or was cut.
        """
