"""``nas samples``: all samples of a search, from its log: as JSON lines for programs, as a table for people."""

import json
import math
from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from nas_cli.experiment_store import open_experiment, read_samples
from nas_cli.terminal import HarmlessConsole, echo
from nas_log.reader import Sample


def show_samples(name: str, namespace: str | None, context: str | None, endpoint: str | None, *, output: str) -> None:
    """Print the samples of a search in the order they were drawn.

    Args:
        name: of an experiment on the cluster, or the folder of a local run.
        namespace: the context's when None.
        context: of the kubeconfig; the current one when None.
        endpoint: where the S3 server is seen from here; as the manifest says when None.
        output: ``table`` or ``json``.

    Raises:
        Refusal: there is no such experiment, or it cannot be read.
    """
    experiment, store = open_experiment(name, namespace, context, endpoint)
    found = read_samples(experiment, store)
    metric = experiment.spec.objective.metric
    if output == "json":
        echo(json_lines(found, metric), nl=False)
        return
    people = HarmlessConsole()
    # A line of a file or a pipe need not fit a screen.
    console = people if people.is_terminal else HarmlessConsole(width=10_000)
    console.print(table(found, metric))


def document(sample: Sample, metric: str) -> dict[str, Any]:
    """Return a sample as plain JSON values; ``metric`` is the objective's name. Unknown and infinite numbers are null.

    A reused result is the objective's metric and no more: the rest is in the document of its original.
    """
    return {
        "sample": sample.number,
        "state": sample.state,
        "arm": sample.arm,
        "metric": _finite(sample.reported.get(metric)),
        "reward": _finite(sample.reward),
        "metrics": {name: _finite(value) for name, value in sample.reported.items()},
        "seconds": sample.seconds,
        "parameters": sample.parameters if sample.reused is None else 0,
        "attempts": sample.launches[-1].attempt if sample.launches else 0,
        "reused": sample.reused,
        "stopped": None if sample.stopped is None else sample.stopped.model_dump(),
        "message": _loss(sample),
        "digest": sample.architecture.digest,
        "architecture": sample.architecture.document(),
    }


def json_lines(found: Iterable[Sample], metric: str) -> str:
    """Return one JSON document a line."""
    return "".join(json.dumps(document(sample, metric), separators=(",", ":")) + "\n" for sample in found)


def table(found: Iterable[Sample], metric: str) -> Table:
    """Return a table with one row a sample."""
    out = Table(show_edge=False, pad_edge=False, header_style="bold")
    out.add_column("sample", justify="right")
    out.add_column("state")
    out.add_column(metric, justify="right")
    out.add_column("seconds", justify="right")
    out.add_column("architecture, or why it was lost", overflow="fold")
    for sample in found:
        value = _finite(sample.reported.get(metric))
        state = sample.state if sample.reused is None else f"{sample.state}, as {sample.reused}"
        if sample.stopped is not None:
            state += f", stopped after {sample.stopped.epoch} of {sample.stopped.of} epochs"
        out.add_row(
            str(sample.number),
            state if sample.arm == "policy" else f"{state} ({sample.arm})",
            "" if value is None else f"{value:.4f}",
            "" if sample.seconds is None else f"{sample.seconds:.1f}",
            Text(_loss(sample) or sample.architecture.short()),
        )
    return out


def _loss(sample: Sample) -> str | None:
    """Return why a sample was lost; None: it was not."""
    return f"{sample.reason}: {sample.message}".rstrip(": ") if sample.state == "Lost" else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
