"""The commands. Each is a few lines that call into the module named after what it does.

Modules are imported by the command that needs them: ``nas --help`` must not wait for torch.
"""

from pathlib import Path

import click
from rich.console import Console

from nas_api import __version__
from nas_cli.errors import Refusal

_FILE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nas")
def main() -> None:
    """Neural architecture search with reinforcement learning, here or on a cluster."""


@main.command()
@click.argument("file", type=_FILE)
def validate(file: Path) -> None:
    """Check manifests before kubectl does, with all faults at once."""
    from nas_cli.manifest import read_documents

    try:
        documents = read_documents(file)
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}") from error
    ours = [document for document in documents if not document.foreign]
    for document in documents:
        if document.foreign:
            click.echo(f"{file}: {document.title} is of another kind: not looked at")
        elif not document.faults:
            click.echo(f"{file}: {document.title} is valid")
    for document in ours:
        for fault in document.faults:
            click.echo(f"{file}:{fault.line}: {fault.text}", err=True)
    if not ours:
        raise Refusal(f"{file} holds no NASExperiment")
    if any(document.faults for document in ours):
        raise SystemExit(1)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--folder", type=_FILE, help="Where to keep everything; nas-runs/NAME when not given.")
@click.option("--parallelism", type=click.IntRange(1, 1024), help="Children at once; spec.parallelism at most.")
@click.option("--verbose", is_flag=True, help="Show the search's own log, too.")
def run(file: Path, folder: Path | None, parallelism: int | None, verbose: bool) -> None:
    """Search on this machine: processes for Jobs, a folder for the bucket. The same command goes on later."""
    from nas_cli.manifest import read_experiment

    experiment = read_experiment(file)
    # Only now: this loads torch.
    from nas_cli import local_run

    again = f"nas run {file}" + (f" --folder {folder}" if folder is not None else "")
    local_run.silence_logs(verbose)
    local_run.run(experiment, folder or Path("nas-runs") / experiment.metadata.name, parallelism, Console(), again)
