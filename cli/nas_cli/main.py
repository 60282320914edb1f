"""The commands: their words, options and what they are for. What they do is in the module that each names.

Modules are imported by the command that needs them: nobody should wait for torch, the cluster's client or the models in
order to read what there is.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nas_api import __version__
from nas_cli.folders import RUNS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    from nas_cli.completion import experiments_and_runs

    return experiments_and_runs(context, parameter, incomplete)


_FILE = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_name = click.argument("name", shell_complete=_complete_name)
_namespace = click.option("-n", "--namespace", help="Namespace; the context's when not given.")
_context = click.option("--context", help="Context of the kubeconfig; the current one when not given.")
_as_table_or_json = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people, or for programs."
)


def _seconds(context: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
    from nas_api.base import duration

    try:
        return None if given is None else duration(given).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nas")
def main() -> None:
    """Neural architecture search with reinforcement learning, here or on a cluster."""


@main.command()
@click.argument("file", type=_FILE)
def validate(file: Path) -> None:
    """Check manifests, and report all faults at once."""
    from nas_cli.validation import validate_file

    validate_file(file)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--folder", type=_FOLDER, help="Where to keep everything; nas-runs/NAME when not given.")
@click.option(
    "--parallelism",
    type=click.IntRange(1, 1024),
    help="Children at once; spec.parallelism when not given, at most one a core for the built-in trainer.",
)
@click.option("--verbose", is_flag=True, help="Show the search's own log, too.")
def run(file: Path, folder: Path | None, parallelism: int | None, verbose: bool) -> None:
    """Search on this machine; the same command resumes it later.

    Processes stand for Jobs, a folder for the bucket. Your own trainer's command (spec.trainer.command) runs in the
    folder of FILE. Ends with 0 when the search is complete or was stopped by Ctrl-C or SIGTERM, with 1 when it has
    failed or cannot begin, with 2 when the command line is wrong. Without a terminal, progress is one line at a time.
    """
    from nas_cli.extras import require_run
    from nas_cli.manifest import read_experiment
    from nas_cli.terminal import HarmlessConsole, echo

    experiment = read_experiment(file, partial(echo, err=True))
    require_run()
    # Only now: this loads torch.
    from nas_cli import local_run

    again = f"nas run {file}" + (f" --folder {folder}" if folder is not None else "")
    local_run.silence_logs(verbose)
    folder = folder or RUNS / experiment.metadata.name
    local_run.run(experiment, folder, parallelism, HarmlessConsole(), here=file.parent, again=again)


@main.command("proxy-check")
@click.argument("file", type=_FILE)
@click.option("--architectures", type=click.IntRange(2, 1000), default=6, show_default=True, help="Drawn at random.")
@click.option("--repeats", type=click.IntRange(2, 100), default=4, show_default=True, help="Training runs of each.")
@click.option("--folder", type=_FOLDER, help="Where to keep everything; nas-runs/NAME-proxy-check when not given.")
@click.option("--parallelism", type=click.IntRange(1, 1024), help="Children at once; spec.parallelism at most.")
def proxy_check(file: Path, architectures: int, repeats: int, folder: Path | None, parallelism: int | None) -> None:
    """Measure how noisy the reward is, before a search.

    Trains a few random architectures several times each, on this machine.
    """
    from nas_cli.extras import require_run
    from nas_cli.manifest import read_experiment
    from nas_cli.terminal import HarmlessConsole, echo

    experiment = read_experiment(file, partial(echo, err=True))
    require_run()
    # Only now: this loads torch.
    from nas_cli import local_run
    from nas_cli.proxy_check import check

    local_run.silence_logs(verbose=False)
    check(
        experiment,
        folder or RUNS / f"{experiment.metadata.name}-proxy-check",
        parallelism,
        HarmlessConsole(),
        architectures=architectures,
        repeats=repeats,
        here=file.parent,
        again="the same command",
    )


@main.command()
@click.argument("file", type=_FILE)
@click.option("--wait", is_flag=True, help="Until the search is Complete or Failed.")
@click.option("--timeout", metavar="DURATION", callback=_seconds, help="Wait no longer, for example 12h or 1h30m.")
@_as_table_or_json
@_namespace
@_context
def submit(
    file: Path, wait: bool, timeout: float | None, output: str, namespace: str | None, context: str | None
) -> None:
    """Make an experiment on the cluster: a pipeline's step.

    FILE is checked first, as `nas validate` does. An experiment that exists with the same spec is taken as it is, so
    the same command may run again. Progress goes to standard error, the outcome alone to standard output. Exit codes:

    \b
      0    the search is complete; without --wait, it is there and has not failed
      1    the search has failed, or something was refused
      2    the command line is wrong
      3    --timeout has passed; the search goes on
      130  Ctrl-C or SIGTERM; the search goes on
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is how long to --wait: give both")
    from nas_cli.submit import submit as submit_file

    submit_file(file, wait=wait, timeout=timeout, namespace=namespace, context=context, output=output)


@main.command()
@_name
@_namespace
@_context
def status(name: str, namespace: str | None, context: str | None) -> None:
    """Show how an experiment is going. NAME is one on the cluster, or the folder of a local run."""
    from nas_cli.status import show_status

    show_status(name, namespace, context)


@main.command()
@_name
@_namespace
@_context
@click.option("--code", is_flag=True, help="Print Python code that builds the network, and nothing else.")
@_as_table_or_json
def best(name: str, namespace: str | None, context: str | None, code: bool, output: str) -> None:
    """Show the search's best network. NAME is an experiment on the cluster, or the folder of a local run."""
    from nas_cli.best import show_best

    show_best(name, namespace, context, code=code, output=output)


@main.command()
@_name
@_namespace
@_context
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's, once you agree.")
@_as_table_or_json
def samples(name: str, namespace: str | None, context: str | None, endpoint: str | None, output: str) -> None:
    """List all samples in the order they were drawn.

    With -o json, each is a document on a line of its own. NAME is an experiment on the cluster, whose bucket is read
    with your own AWS credentials, or the folder of a local run.
    """
    from nas_cli.samples import show_samples

    show_samples(name, namespace, context, endpoint, output=output)


@main.command()
@_name
@click.option("-o", "--output", type=_FOLDER, required=True, help="The folder to write; made when it is missing.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["folder", "kserve", "mlflow"]),
    default="folder",
    show_default=True,
    help="All there is; or the trained network, for an ONNX server (KServe, Triton), or for MLflow.",
)
@_namespace
@_context
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's, once you agree.")
def export(
    name: str, output: Path, layout: str, namespace: str | None, context: str | None, endpoint: str | None
) -> None:
    """Hand the best network over as a folder.

    It holds the module, weights, an ONNX model and how to feed them, with a page that shows it. NAME is an experiment
    on the cluster, whose bucket is read with your own AWS credentials, or the folder of a local run.
    """
    from nas_cli.experiment_store import open_experiment
    from nas_cli.export import README, hand_over, hand_over_model
    from nas_cli.terminal import echo

    experiment, store = open_experiment(name, namespace, context, endpoint)
    if layout == "folder":
        written = hand_over(experiment, store, output)
    else:
        written = hand_over_model(experiment, store, output, layout)
    for file in written.files:
        echo(output / file)
    if written.unverified:
        files = ", ".join(written.unverified)
        echo(f"Nothing vouches for {files}: an older version has tested it, without digests in the log.", err=True)
    if written.own:
        echo("There are no weights: your own trainer keeps those.", err=True)
    elif not written.trained:
        echo(f"There are no weights yet; {output / README} says why.", err=True)


@main.command()
@_name
@_namespace
@_context
@click.option("-o", "--output", type=_FILE, default=Path("report.html"), show_default=True, help="The file to write.")
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's, once you agree.")
def report(name: str, output: Path, namespace: str | None, context: str | None, endpoint: str | None) -> None:
    """Draw a search as one HTML page that needs no network.

    NAME is an experiment on the cluster, whose bucket is read with your own AWS credentials, or the folder of a
    local run. The controller keeps such a page in the bucket, too, at report/report.html.
    """
    from nas_cli.experiment_store import open_experiment
    from nas_cli.report import write_report
    from nas_cli.terminal import echo

    experiment, store = open_experiment(name, namespace, context, endpoint)
    write_report(experiment, store, output)
    echo(output)


@main.command()
@_name
@_namespace
@_context
@click.option("-f", "--follow", is_flag=True, help="Keep printing lines as they come.")
@click.option("--tail", type=click.IntRange(0), help="Only this many of the last lines.")
@click.option("--sample", type=click.IntRange(0), help="The log of the newest child that trains this sample.")
def logs(
    name: str, namespace: str | None, context: str | None, follow: bool, tail: int | None, sample: int | None
) -> None:
    """Print the log of a controller, or of a sample's child.

    NAME is an experiment on the cluster, or the folder of a local run, which has the logs of children only. A child
    may share its pod with others.
    """
    from nas_cli.logs import print_log

    print_log(name, namespace, context, follow=follow, tail=tail, sample=sample)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what teaches a shell to complete all this.

    It completes experiments, local runs and files. Write into ~/.bashrc or ~/.zshrc, below compinit:

      eval "$(nas completion bash)"

    For fish: nas completion fish > ~/.config/fish/completions/nas.fish. kubectl completes `kubectl nas` by itself.
    """
    from nas_cli.completion import script

    click.echo(script(main, shell), nl=False)
