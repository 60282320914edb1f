"""What the command line says when it cannot do what it was asked."""

import click


class Refusal(click.ClickException):
    """One sentence with the cause and the cure; ends the program with exit code 1, without a traceback."""
