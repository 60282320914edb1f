"""What early stopping spares and what it costs, on real small networks: the digits example, trained by local processes.

    .venv/bin/python bench/early_stopping.py --seeds 3 --samples 60 --epochs 9 --epoch 3

Prints for each seed the epochs trained and the best accuracy without trainer.earlyStopping and with it, how many
children the rule ends, and how many of those would have been among the better half, or the best tenth. One of the 397
validation images is 0.0025. Random search proposes the same networks whatever their rewards, so one run, where every
training comes to its end, tells both; another searcher is run a second time, with the rule. The networks have three
layers and learn 400 images, so that all of it takes minutes on two cores.
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

from nas_api.experiment import EarlyStoppingSpec
from nas_api.stopping import Rung, StopRule
from nas_controller.state import RUNGS
from nas_log.follower import Follower, learning_curve
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
        log = Follower(store)
        for sample in log.read():
            if sample.state == "Observed" and sample.reused is None and log.facts is not None:
                history = learning_curve(store, sample, log.facts.objective)
                children.append(Child(sample.metrics["accuracy"], history, sample.stopped is not None))
    return children


def with_rule(children: Sequence[Child], stopping: EarlyStoppingSpec) -> list[Child]:
    """Return what these children, all trained to their end, would have become; two of them are in flight."""
    out: list[Child] = []
    metrics: list[float] = []
    for index, child in enumerate(children):
        rule = StopRule.among(metrics[: max(0, index - 1)][-RUNGS:], stopping, "Maximize")
        rung = Rung.of(child.history, stopping.epoch, "Maximize")
        assert rung is not None
        metrics.append(rung.metric)
        ended = rule is not None and rule.ends(rung)
        out.append(Child(rung.metric, child.history[: stopping.epoch], stopped=True) if ended else child)
    return out


def main() -> None:
    """Run the searches and print a row for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searcher", default="random")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--epoch", type=int, default=3)
    parser.add_argument("--worst", default="0.25")
    parser.add_argument("--startup", type=int, default=10)
    arguments = parser.parse_args()
    stopping = EarlyStoppingSpec(epoch=arguments.epoch, worst=arguments.worst, startup=arguments.startup)
    print("seed  epochs without  with  ratio  best without    with  ended  of the better half  of the best tenth")
    ratios, differences = [], []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        whole = search(arguments.searcher, seed, arguments.samples, arguments.epochs, None)
        ruled = with_rule(whole, stopping)
        ended = [child for child, other in zip(whole, ruled, strict=True) if other.stopped]
        if arguments.searcher != "random":
            ruled = search(arguments.searcher, seed, arguments.samples, arguments.epochs, stopping)
        epochs, fewer = (sum(len(child.history) for child in each) for each in (whole, ruled))
        best, found = (max(child.metric for child in each if not child.stopped) for each in (whole, ruled))
        ratios.append(fewer / epochs)
        differences.append(found - best)
        ranked = sorted((child.metric for child in whole), reverse=True)
        better, tenth = (sum(child.metric > ranked[len(ranked) // part] for child in ended) for part in (2, 10))
        print(
            f"{seed:4}  {epochs:14,}  {fewer:4,}  {ratios[-1]:5.2f}  {best:12.4f}  {found:.4f}"
            f"  {len(ended):5}  {better:18}  {tenth:17}",
            flush=True,
        )
    print(
        f"epochs, with over without: {statistics.mean(ratios):.3f}; best accuracy, with minus without:"
        f" {statistics.mean(differences):+.4f}"
    )


if __name__ == "__main__":
    main()
