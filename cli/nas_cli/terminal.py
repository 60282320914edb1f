"""The one way to a terminal. What others have written (a trainer, a bucket, a status, a server) is made harmless here,
whatever it is part of: no escape sequence, no mark of the direction of writing, no mark-up of ours gets through.
"""

from collections.abc import Iterable

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nas_api.harmless import harmless


def echo(words: object, *, err: bool = False, nl: bool = True) -> None:
    """Print words, on standard error with ``err``, and a newline unless ``nl`` is false."""
    click.echo(harmless(str(words)), err=err, nl=nl)


class HarmlessConsole(Console):
    """Renders tables, styles and live panels of ours, with harmless text in them; strings have no mark-up."""

    def __init__(self, width: int | None = None) -> None:
        """Begin to write to standard output; ``width`` is the terminal's when None."""
        super().__init__(width=width, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See :class:`rich.console.Console`."""
        for segment in super().render(renderable, options):
            # What rich itself tells the terminal has a control.
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
