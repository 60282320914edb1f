"""What early stopping spares and what it costs, on real small networks: the digits example, trained by local processes.

    .venv/bin/python bench/early_stopping.py --seeds 3 --samples 60 --epochs 9 --epoch 3

The networks have three layers and learn 400 images, so that all of it takes minutes on two cores.

Each search is run with trainer.earlyStopping and without. Prints for each seed the epochs trained and the best accuracy
of both, and what the rule would have stopped in the search without it, where every training came to its end: how many,
and how many of those would have been among the better half, or the best tenth, of that search. One of the 397
validation images is 0.0025.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nas_api import names
from nas_api.experiment import EarlyStoppingSpec
from nas_api.stopping import Rung, StopRule
from nas_controller.log import read_log
from nas_controller.records import Observed
from nas_controller.state import RUNGS
from nas_store.folder import FolderStore

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "digits.yaml"


class Child(NamedTuple):
    """A trained child of a search."""

    metric: float
    history: tuple[float, ...]
    stopped: bool


def search(searcher: str, seed: int, samples: int, epochs: int, stopping: EarlyStoppingSpec | None) -> list[Child]:
    """Run a search; return its children in the order in which they were observed, without those that diverged."""
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    spec = document["spec"]
    spec |= {"searcher": {"seed": seed, searcher: {}}, "budget": {"samples": samples}}
    spec["searchSpace"]["convolutional"]["layers"]["initial"] = 3
    spec["trainer"] |= {"epochs": epochs, "dataset": {"digits": {"trainingImages": 400}}}
    if stopping is not None:
        spec["trainer"] |= {"earlyStopping": stopping.model_dump(by_alias=True)}
    nas = Path(sys.executable).with_name("nas")
    children = []
    with tempfile.TemporaryDirectory() as folder:
        manifest, run = Path(folder, "experiment.json"), Path(folder, "run")
        manifest.write_text(json.dumps(document))
        subprocess.run([nas, "run", manifest, "--folder", run], check=True, stdout=subprocess.DEVNULL)
        store = FolderStore(run)
        for record in read_log(store):
            if isinstance(record, Observed) and record.reused is None and not record.diverged:
                result = json.loads(store.get(names.result_key(record.sample)) or b"")
                history = tuple(result["history"])
                children.append(Child(record.metrics["accuracy"], history, record.stopped is not None))
    return children


def hopeless(children: Sequence[Child], stopping: EarlyStoppingSpec) -> list[Child]:
    """Return which of these, all trained to their end, the rule would have stopped; two of them are in flight."""
    found = []
    metrics: list[float] = []
    for index, child in enumerate(children):
        rule = StopRule.among(metrics[: max(0, index - 1)][-RUNGS:], stopping, "Maximize")
        rung = Rung.of(child.history, stopping.epoch, "Maximize")
        assert rung is not None
        metrics.append(rung.metric)
        if rule is not None and rule.ends(rung):
            found.append(child)
    return found


def main() -> None:
    """Run the searches and print a row for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searcher", default="guided")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--epoch", type=int, default=3)
    parser.add_argument("--worst", default="0.25")
    parser.add_argument("--startup", type=int, default=20)
    arguments = parser.parse_args()
    stopping = EarlyStoppingSpec(epoch=arguments.epoch, worst=arguments.worst, startup=arguments.startup)
    print("seed  epochs without  with  ratio   best without  with     hopeless  of the better half  of the best tenth")
    ratios, differences = [], []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        whole = search(arguments.searcher, seed, arguments.samples, arguments.epochs, None)
        short = search(arguments.searcher, seed, arguments.samples, arguments.epochs, stopping)
        epochs = [sum(len(child.history) for child in each) for each in (whole, short)]
        best = [max(child.metric for child in each if not child.stopped) for each in (whole, short)]
        refused = hopeless(whole, stopping)
        ranked = sorted((child.metric for child in whole), reverse=True)
        middle, tenth = ranked[len(ranked) // 2], ranked[len(ranked) // 10]
        ratios.append(epochs[1] / epochs[0])
        differences.append(best[1] - best[0])
        print(
            f"{seed:4}  {epochs[0]:14,}  {epochs[1]:4,}  {ratios[-1]:5.2f}   {best[0]:12.4f}  {best[1]:.4f}"
            f"   {len(refused):8}  {sum(child.metric > middle for child in refused):18}"
            f"  {sum(child.metric > tenth for child in refused):17}",
            flush=True,
        )
    print(
        f"epochs, with over without: {statistics.mean(ratios):.3f}; best accuracy, with minus without:"
        f" {statistics.mean(differences):+.4f}"
    )


if __name__ == "__main__":
    main()
