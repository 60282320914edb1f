"""``kubectl_complete-nas``, which kubectl looks for and runs while ``kubectl nas ...`` is typed."""

import click

from nas_cli.completion import KubectlComplete
from nas_cli.main import main


def complete() -> None:
    """Print what may come next, for kubectl."""
    click.echo(KubectlComplete(main, {}, "kubectl nas", "").complete())
