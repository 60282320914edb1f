"""The commands. Each is a few lines that call into the module named after what it does.

Modules are imported by the command that needs them: ``nas --help`` must not wait for torch.
"""

import json
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from nas_api import __version__
from nas_api.experiment import NASExperiment
from nas_cli.errors import Refusal
from nas_cli.folders import RUNS, is_run, local_hint

_FILE = click.Path(path_type=Path)
_namespace = click.option("-n", "--namespace", help="Namespace; the context's when not given.")
_context = click.option("--context", help="Context of the kubeconfig; the current one when not given.")
_as_table_or_json = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people, or for programs."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nas")
def main() -> None:
    """Neural architecture search with reinforcement learning, here or on a cluster."""


@main.command()
@click.argument("file", type=_FILE)
def validate(file: Path) -> None:
    """Check manifests, and report all faults at once."""
    from nas_cli.manifest import read_documents

    try:
        documents = read_documents(file)
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}") from error
    ours = [document for document in documents if not document.foreign]
    for document in documents:
        if document.foreign:
            click.echo(f"{file}: {document.title} is of another kind: skipped")
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
    from nas_cli.manifest import read_experiment

    experiment = read_experiment(file, partial(click.echo, err=True))
    # Only now: this loads torch.
    from nas_cli import local_run

    again = f"nas run {file}" + (f" --folder {folder}" if folder is not None else "")
    local_run.silence_logs(verbose)
    folder = folder or RUNS / experiment.metadata.name
    local_run.run(experiment, folder, parallelism, Console(), here=file.parent, again=again)


@main.command("proxy-check")
@click.argument("file", type=_FILE)
@click.option("--architectures", type=click.IntRange(2, 1000), default=6, show_default=True, help="Drawn at random.")
@click.option("--repeats", type=click.IntRange(2, 100), default=4, show_default=True, help="Training runs of each.")
@click.option("--folder", type=_FILE, help="Where to keep everything; nas-runs/NAME-proxy-check when not given.")
@click.option("--parallelism", type=click.IntRange(1, 1024), help="Children at once; spec.parallelism at most.")
def proxy_check(file: Path, architectures: int, repeats: int, folder: Path | None, parallelism: int | None) -> None:
    """Measure how noisy the reward is, before a search.

    Trains a few random architectures several times each, on this machine.
    """
    from nas_cli.manifest import read_experiment

    experiment = read_experiment(file, partial(click.echo, err=True))
    # Only now: this loads torch.
    from nas_cli import local_run
    from nas_cli.proxy_check import check

    local_run.silence_logs(verbose=False)
    check(
        experiment,
        folder or RUNS / f"{experiment.metadata.name}-proxy-check",
        parallelism,
        Console(),
        architectures=architectures,
        repeats=repeats,
        here=file.parent,
        again="the same command",
    )


@main.command()
@click.argument("name")
@_namespace
@_context
def status(name: str, namespace: str | None, context: str | None) -> None:
    """Show how an experiment is going. NAME is one on the cluster, or the folder of a local run."""
    from nas_cli import display

    console = Console()
    if is_run(Path(name)):
        from nas_cli.local_run import read_status, stage

        experiment, found, _ = read_status(Path(name))
        console.print(stage(Path(name), found), style="bold", highlight=False)
        console.print(display.status_panel(found, experiment.spec.objective.metric))
        return
    experiment = _experiment(name, namespace, context)
    if experiment.status is not None:
        console.print(display.conditions(experiment.status))
        console.print(display.status_panel(experiment.status, experiment.spec.objective.metric))
    else:
        console.print("The operator has not seen it yet: is it running?", highlight=False)


@main.command()
@click.argument("name")
@_namespace
@_context
@click.option("--code", is_flag=True, help="Print Python code that builds the network, and nothing else.")
@_as_table_or_json
def best(name: str, namespace: str | None, context: str | None, code: bool, output: str) -> None:
    """Show the search's best network. NAME is an experiment on the cluster, or the folder of a local run."""
    from nas_api.search_space import arranged, search_space
    from nas_api.source import architecture_source
    from nas_cli import display

    if is_run(Path(name)):
        from nas_cli.local_run import read_status

        experiment, found, state = read_status(Path(name))
        record, final = found.best, found.final
        exact = None if state is None else state.core.best
        architecture = None if state is None or exact is None else arranged(state.space, exact.architecture)
    else:
        experiment, exact = _experiment(name, namespace, context), None
        seen = experiment.status
        record, final = (None, None) if seen is None else (seen.best, seen.final)
        architecture = None
        if record is not None:
            try:
                architecture = search_space(experiment.spec.search_space).parse_short(record.architecture)
            except ValueError:
                # It was cut, as the digest below shows of one that was cut between two words.
                architecture = None
            if architecture is None or architecture.digest != record.digest:
                raise Refusal(f"the architecture is too long for the status: read {record.uri}")
    if record is None or architecture is None:
        raise Refusal(f"no sample of {name} has a result yet: `nas status {name}` tells how it is going")
    channels = display.in_channels(experiment)
    if code:
        classes = experiment.spec.trainer.dataset.classes
        module = architecture_source(architecture, in_channels=channels, classes=classes)
        if module is None:
            raise Refusal("only your own trainer knows how to build this network: read its architecture.json")
        click.echo(module, nl=False)
        return
    if output == "json":
        # A run's folder has all digits; a status has six of them.
        numbers = (float(record.metric), float(record.reward)) if exact is None else (exact.metric, exact.reward)
        click.echo(json.dumps(display.best_document(record, architecture, experiment, *numbers, final), indent=2))
        return
    console = Console()
    metric = experiment.spec.objective.metric
    console.print(display.best_text(record, metric), style="bold", highlight=False)
    if final is not None:
        console.print(f"final training: {display.final_text(final, metric)}", highlight=False, soft_wrap=True)
    if final is not None and final.sample not in (None, record.sample):
        words = f"It prefers sample {final.sample}, whose network `nas export {name}` hands over once it has ended."
        console.print(words, highlight=False, soft_wrap=True)
    console.print(display.architecture_table(architecture, channels))
    console.print(f"{record.uri}\ndigest {record.digest}", style="dim", highlight=False, soft_wrap=True)


@main.command()
@click.argument("name")
@_namespace
@_context
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's when not given.")
@_as_table_or_json
def samples(name: str, namespace: str | None, context: str | None, endpoint: str | None, output: str) -> None:
    """List all samples in the order they were drawn.

    With -o json, each is a document on a line of its own. NAME is an experiment on the cluster, whose bucket is read
    with your own AWS credentials, or the folder of a local run.
    """
    from nas_cli import samples as listing
    from nas_cli.experiment_store import open_experiment, read_records

    experiment, store = open_experiment(name, namespace, context, endpoint)
    found = listing.samples(read_records(experiment, store))
    metric = experiment.spec.objective.metric
    if output == "json":
        click.echo(listing.json_lines(found, metric), nl=False)
        return
    people = Console()
    # A line of a file or a pipe need not fit a screen.
    console = people if people.is_terminal else Console(width=10_000)
    console.print(listing.table(found, metric))


@main.command()
@click.argument("name")
@click.option("-o", "--output", type=_FILE, required=True, help="The folder to write; made when it is missing.")
@_namespace
@_context
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's when not given.")
def export(name: str, output: Path, namespace: str | None, context: str | None, endpoint: str | None) -> None:
    """Hand the best network over as a folder.

    It holds the module, weights, an ONNX model and how to feed them, with a page that shows it. NAME is an experiment
    on the cluster, whose bucket is read with your own AWS credentials, or the folder of a local run.
    """
    from nas_cli.experiment_store import open_experiment
    from nas_cli.export import README, hand_over

    experiment, store = open_experiment(name, namespace, context, endpoint)
    written = hand_over(experiment, store, output)
    for file in written.files:
        click.echo(output / file)
    if written.own:
        click.echo("There are no weights: your own trainer keeps those.", err=True)
    elif not written.trained:
        click.echo(f"There are no weights yet; {output / README} says why.", err=True)


@main.command()
@click.argument("name")
@_namespace
@_context
@click.option("-o", "--output", type=_FILE, default=Path("report.html"), show_default=True, help="The file to write.")
@click.option("--endpoint", help="URL of the S3 server as seen from here; the manifest's when not given.")
def report(name: str, output: Path, namespace: str | None, context: str | None, endpoint: str | None) -> None:
    """Draw a search as one HTML page that needs no network.

    NAME is an experiment on the cluster, whose bucket is read with your own AWS credentials, or the folder of a
    local run. The controller keeps such a page in the bucket, too, at report/report.html.
    """
    from nas_cli.experiment_store import open_experiment
    from nas_cli.report import write_report

    experiment, store = open_experiment(name, namespace, context, endpoint)
    write_report(experiment, store, output)
    click.echo(output)


@main.command()
@click.argument("name")
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
    from nas_cli.cluster import Cluster, readable

    people = Console().is_terminal
    if is_run(Path(name)):
        lines = iter(_child_log(Path(name), sample, follow, tail))
    else:
        cluster = Cluster(namespace, context)
        experiment = cluster.experiment(name)
        pod, container = cluster.controller(experiment) if sample is None else cluster.trainer(experiment, sample)
        lines = cluster.log(pod, container, follow=follow, tail=tail)
    for line in lines:
        click.echo(readable(line) if people else line)


def _child_log(folder: Path, sample: int | None, follow: bool, tail: int | None) -> list[str]:
    from nas_cli.child_logs import child_logs, read
    from nas_cli.experiment_store import open_experiment, read_records

    if sample is None:
        words = f"nas logs {folder} --sample N prints what the child of a sample has said (all: {folder / 'children'})"
        raise Refusal(f"{folder} is a local run, whose search shows its own log under `nas run --verbose`: {words}")
    attempts = child_logs(folder, read_records(*open_experiment(str(folder), None, None, None)), sample)
    if follow:
        raise Refusal(f"-f works with pods only; for a local run: tail -f {attempts[-1]}")
    for earlier in attempts[:-1]:
        click.echo(f"An earlier attempt of sample {sample}: {earlier}", err=True)
    return read(attempts[-1], tail)


def _experiment(name: str, namespace: str | None, context: str | None) -> NASExperiment:
    from nas_cli.cluster import Cluster

    try:
        return Cluster(namespace, context).experiment(name)
    except Refusal as refusal:
        raise Refusal(refusal.message + local_hint(name)) from refusal
