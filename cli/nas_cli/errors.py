"""What the command line says when it cannot do what it was asked."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    # Whoever has such an error has loaded it.
    from pydantic import ValidationError


class Refusal(click.ClickException):
    """One sentence with the cause and the cure; ends the program with exit code 1, without a traceback."""

    def format_message(self) -> str:
        """Return the sentence, harmless: it may quote a server or a bucket."""
        # Nobody who only reads help need wait for it.
        from nas_api.harmless import harmless

        return harmless(self.message)


class NoAnswer(Refusal):
    """The cluster does not answer, or is in trouble: the same may succeed later without anybody changing it."""


class NotThere(Refusal):
    """There is no such experiment."""


def first_fault(error: "ValidationError") -> str:
    """Return what a model objects to first, in one line with its place."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
