"""``nas status``: how a search is going, on the cluster or in the folder of a local run."""

from pathlib import Path

from nas_api.experiment import UNSEEN
from nas_cli import display
from nas_cli.cluster import find_experiment
from nas_cli.experiment_store import open_experiment
from nas_cli.folders import is_run
from nas_cli.local_status import read_run_status
from nas_cli.terminal import HarmlessConsole


def show_status(name: str, namespace: str | None, context: str | None) -> None:
    """Print a search's status.

    Args:
        name: of an experiment on the cluster, or the folder of a local run.
        namespace: the context's when None.
        context: of the kubeconfig; the current one when None.

    Raises:
        Refusal: there is no such experiment, or it cannot be read.
    """
    console = HarmlessConsole()
    if is_run(Path(name)):
        experiment, _ = open_experiment(name, None, None, None)
        run = read_run_status(Path(name))
        console.print(run.stage, style="bold", highlight=False)
        console.print(display.status_panel(run.status, experiment.spec.objective.metric))
        return
    experiment, _ = find_experiment(name, namespace, context)
    if experiment.status is None or experiment.status.observed_generation == UNSEEN:
        console.print("The operator has not seen it yet: is it running?", highlight=False)
        return
    console.print(display.conditions(experiment.status))
    console.print(display.status_panel(experiment.status, experiment.spec.objective.metric))
