"""``nas best``: the search's best network, for people, for programs, or as code."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nas_api.architecture import Architecture
from nas_api.experiment import Best, FinalStatus, NASExperiment
from nas_api.source import architecture_source
from nas_cli import display
from nas_cli.cluster import find_experiment
from nas_cli.documents import best_architecture, final_document
from nas_cli.errors import Refusal
from nas_cli.experiment_store import open_experiment, read_samples
from nas_cli.folders import is_run
from nas_cli.local_status import STATUS, read_run_status
from nas_cli.terminal import HarmlessConsole, echo


@dataclass(frozen=True)
class _Found:
    """The best sample, and what the final training found."""

    experiment: NASExperiment
    record: Best
    architecture: Architecture
    metric: float
    reward: float
    final: FinalStatus | None


def show_best(name: str, namespace: str | None, context: str | None, *, code: bool, output: str) -> None:
    """Print the best network.

    Args:
        name: of an experiment on the cluster, or the folder of a local run.
        namespace: the context's when None.
        context: of the kubeconfig; the current one when None.
        code: as a Python module, and nothing else.
        output: ``table`` or ``json``.

    Raises:
        Refusal: there is none yet, it cannot be read, or has no code.
    """
    found = _of_run(Path(name)) if is_run(Path(name)) else _of_experiment(name, namespace, context)
    if code:
        echo(_code(found), nl=False)
    elif output == "json":
        echo(json.dumps(_document(found), indent=2))
    else:
        _print_table(found, name, HarmlessConsole())


def _of_run(folder: Path) -> _Found:
    experiment, store = open_experiment(str(folder), None, None, None)
    status = read_run_status(folder).status
    if status.best is None:
        raise _none_yet(str(folder))
    # The log has all digits, and the whole architecture however long.
    number = status.best.sample
    sample = next((each for each in read_samples(experiment, store) if each.number == number), None)
    if sample is None:
        raise Refusal(f"{folder / STATUS} names sample {number}, which the log does not have: remove that file")
    metric = sample.metrics[experiment.spec.objective.metric]
    assert sample.reward is not None
    return _Found(experiment, status.best, sample.architecture, metric, sample.reward, status.final)


def _of_experiment(name: str, namespace: str | None, context: str | None) -> _Found:
    experiment, _ = find_experiment(name, namespace, context)
    status = experiment.status
    if status is None or status.best is None:
        raise _none_yet(name)
    best = status.best
    architecture = best_architecture(experiment.spec, best)
    if architecture is None:
        raise Refusal(f"the architecture is too long for the status: read {best.uri}")
    return _Found(experiment, best, architecture, float(best.metric), float(best.reward), status.final)


def _none_yet(name: str) -> Refusal:
    return Refusal(f"no sample of {name} has a result yet: `nas status {name}` tells how it is going")


def _code(found: _Found) -> str:
    dataset = found.experiment.spec.trainer.dataset
    module = architecture_source(found.architecture, in_channels=dataset.channels, classes=dataset.classes)
    if module is None:
        raise Refusal("only your own trainer knows how to build this network: read its architecture.json")
    return module


def _document(found: _Found) -> dict[str, object]:
    """Return plain JSON values, with metric and reward in all the digits that are known.

    Beside them what the final training found, which may prefer another sample: null where there is none.
    """
    final = found.final
    return {
        "experiment": found.experiment.metadata.name,
        "sample": found.record.sample,
        "metricName": found.experiment.spec.objective.metric,
        "metric": found.metric,
        "reward": found.reward,
        "digest": found.record.digest,
        "uri": found.record.uri,
        "architecture": found.architecture.document(),
        "final": final_document(final),
    }


def _print_table(found: _Found, name: str, console: Console) -> None:
    metric, final = found.experiment.spec.objective.metric, found.final
    console.print(display.best_text(found.record, metric), style="bold", highlight=False)
    if final is not None:
        console.print(f"final training: {display.final_text(final, metric)}", highlight=False, soft_wrap=True)
    if final is not None and final.sample not in (None, found.record.sample):
        words = f"It prefers sample {final.sample}, whose network `nas export {name}` hands over once it has ended."
        console.print(words, highlight=False, soft_wrap=True)
    console.print(display.architecture_table(found.architecture, found.experiment.spec.trainer.dataset.channels))
    console.print(f"{found.record.uri}\ndigest {found.record.digest}", style="dim", highlight=False, soft_wrap=True)
