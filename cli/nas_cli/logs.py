"""``nas logs``: what a controller, or the child of a sample, has said: from its pod, or from a local run's folder."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from nas_cli.child_logs import child_logs, read
from nas_cli.cluster import find_experiment, readable
from nas_cli.errors import Refusal
from nas_cli.experiment_store import open_experiment, read_samples
from nas_cli.folders import is_run
from nas_cli.terminal import echo


def print_log(
    name: str, namespace: str | None, context: str | None, *, follow: bool, tail: int | None, sample: int | None
) -> None:
    """Print a log line by line: for a terminal as people read it and harmless, else as it is, as kubectl does.

    Args:
        name: of an experiment on the cluster, or the folder of a local run.
        namespace: the context's when None.
        context: of the kubeconfig; the current one when None.
        follow: go on as new lines come; only of a pod.
        tail: only so many of the last lines; all when None.
        sample: whose newest child is asked for; the controller when None.

    Raises:
        Refusal: there is no such log.
    """
    people = Console().is_terminal
    if is_run(Path(name)):
        lines = iter(_of_run(Path(name), sample, follow, tail))
    else:
        lines = _of_pod(name, namespace, context, sample, follow, tail)
    for line in lines:
        click.echo(readable(line) if people else line)


def _of_pod(
    name: str, namespace: str | None, context: str | None, sample: int | None, follow: bool, tail: int | None
) -> Iterator[str]:
    experiment, cluster = find_experiment(name, namespace, context)
    pod, container = cluster.controller(experiment) if sample is None else cluster.trainer(experiment, sample)
    return cluster.log(pod, container, follow=follow, tail=tail)


def _of_run(folder: Path, sample: int | None, follow: bool, tail: int | None) -> list[str]:
    if sample is None:
        words = f"nas logs {folder} --sample N prints what the child of a sample has said (all: {folder / 'children'})"
        raise Refusal(f"{folder} is a local run, whose search shows its own log under `nas run --verbose`: {words}")
    attempts = child_logs(folder, read_samples(*open_experiment(str(folder), None, None, None)), sample)
    if follow:
        raise Refusal(f"-f works with pods only; for a local run: tail -f {attempts[-1]}")
    for earlier in attempts[:-1]:
        echo(f"An earlier attempt of sample {sample}: {earlier}", err=True)
    return read(attempts[-1], tail)
