"""What one child of examples/digits.yaml costs and how much its result says, and what a process costs before it trains.

    python bench/child_training.py [--architectures 12] [--seeds 4] [--starts 5]

The first part trains random architectures of the example's space with several seeds each, on one thread, and gives the
seconds of a training and two spreads of the accuracy: between architectures (of their means, less what the seeds add)
and between the seeds of one architecture. A policy can learn when the first is larger.

The second part starts the trainer's process several times and gives the seconds from there to the first training step,
and those of ``import torch`` alone in such a process. The bar is 2.5 s.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from nas_api import names
from nas_api.child import StoreLocation, TrainerInput
from nas_api.decisions import Anchor
from nas_api.experiment import NASExperiment
from nas_api.search_space import SearchSpace, search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining, best_of_last

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.yaml"
BAR_SECONDS = 2.5
# The clock that every process of a machine shares; the parent's reading is the process's start.
_FIRST_STEP = """
import sys, time
from nas_trainer import main
from nas_trainer.images import training

step = training.ImageTraining._step

def first(self, *batch):
    print(time.monotonic(), flush=True)
    training.ImageTraining._step = step
    return step(self, *batch)

training.ImageTraining._step = first
sys.exit(main.main())
"""
_IMPORT_TORCH = "import time; started = time.monotonic(); import torch; print(time.monotonic() - started)"


def draw(space: SearchSpace, rng: random.Random) -> ConvolutionalArchitecture:
    """Return a uniformly random architecture."""
    choices = [
        rng.randrange(2**decision.index if isinstance(decision, Anchor) else len(decision.options))
        for decision in space.decisions(0)
    ]
    architecture = space.decode(tuple(choices))
    assert isinstance(architecture, ConvolutionalArchitecture)
    return architecture


def children(experiment: NASExperiment, architectures: int, seeds: int) -> None:
    """Print seconds and spreads of trainings in this process."""
    trainer = experiment.spec.trainer
    space, rng = search_space(experiment.spec.search_space), random.Random(0)
    images = load_images(trainer.dataset, StoreLocation(folder="/"))
    times: list[float] = []
    accuracies: list[list[float]] = []
    for _ in range(architectures):
        architecture = draw(space, rng)
        row = []
        for seed in range(seeds):
            started = time.process_time()
            training = ImageTraining(
                architecture, images, trainer.optimizer, trainer.batch_size, seed, torch.device("cpu")
            )
            training.run(trainer.epochs, lambda: None)
            times.append(time.process_time() - started)
            row.append(best_of_last(training.progress.metrics, trainer.reward_epochs))
        accuracies.append(row)
    noise = statistics.fmean(statistics.variance(row) for row in accuracies)
    means = statistics.variance([statistics.fmean(row) for row in accuracies])
    print(
        f"training: median {statistics.median(times):.2f} s of CPU time (slowest {max(times):.2f});"
        f" accuracy {statistics.fmean(map(statistics.fmean, accuracies)):.3f}, standard deviation between architectures"
        f" {max(0.0, means - noise / seeds) ** 0.5:.3f}, between seeds {noise**0.5:.3f}"
        f" ({architectures} architectures, {seeds} seeds)"
    )


def starts(experiment: NASExperiment, count: int) -> bool:
    """Print seconds from the start of a process to its first step; return whether the median holds the bar."""
    trainer = experiment.spec.trainer
    architecture = draw(search_space(experiment.spec.search_space), random.Random(0))
    until_step, importing = [], []
    for sample in range(count):
        with tempfile.TemporaryDirectory() as folder:
            document = TrainerInput(
                experiment="bench",
                sample=sample,
                attempt=1,
                seed=0,
                metric="accuracy",
                architecture=architecture,
                dataset=trainer.dataset,
                epochs=1,
                reward_epochs=1,
                batch_size=trainer.batch_size,
                optimizer=trainer.optimizer,
                store=StoreLocation(folder=folder),
            )
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True),
            }
            started = time.monotonic()
            stepped = _output(_FIRST_STEP, environment)
            until_step.append(stepped - started)
        importing.append(_output(_IMPORT_TORCH, environment))
    median = statistics.median(until_step)
    print(
        f"process start to first step: median {median:.2f} s (slowest {max(until_step):.2f}), of which importing torch"
        f" {statistics.median(importing):.2f} s (bar {BAR_SECONDS} s: {'holds' if median <= BAR_SECONDS else 'MISSED'})"
    )
    return median <= BAR_SECONDS


def _output(program: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return float(done.stdout.split()[0])


def main() -> int:
    """Print both parts; the exit code is 1 when a process takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, default=12, help="at least 2")
    parser.add_argument("--seeds", type=int, default=4, help="at least 2")
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    manifest = yaml.safe_load(EXAMPLE.read_text())
    experiment = NASExperiment.model_validate(manifest)
    children(experiment, arguments.architectures, arguments.seeds)
    return 0 if starts(experiment, arguments.starts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
