"""Do several ranks train as well as one process? Final metrics of both, over several seeds.

    python bench/several_pods.py [--seeds 5] [--ranks 2] [--epochs 12]

Each training is a process of the trainer for each rank, as in a final training's pods: on digits in float32, and on the
text that Python ships with dropout, which each rank draws for itself. Printed are the mean metric of both ways, the
mean difference over the seeds, and its standard error. The bar is a difference within two of these.
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nas_api import names
from nas_api.child import FinalSettings, StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, DigitsDataset, LanguageSpec, OptimizerSpec, TextDataset
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_api.spaces.recurrent_cell import CellNode, RecurrentCellArchitecture


def digits(epochs: int) -> dict[str, Any]:
    """Return what is trained on images."""
    first = ConvolutionalLayer(filter_height=3, filter_width=3, filters=8)
    layers = (first, first.model_copy(update={"inputs": (0,)}), first.model_copy(update={"inputs": (0, 1)}))
    return {
        "metric": "accuracy",
        "architecture": ConvolutionalArchitecture(layers=layers),
        "dataset": DatasetSpec(digits=DigitsDataset(training_images=400)),
        "batch_size": 64,
        "optimizer": OptimizerSpec(learning_rate="0.05"),
        "epochs": epochs,
    }


def text(epochs: int) -> dict[str, Any]:
    """Return what is trained on characters, with dropout."""
    node = CellNode(combination="add", activation="tanh")
    return {
        "metric": "bitsPerCharacter",
        "architecture": RecurrentCellArchitecture(nodes=(node,) * 3, inject=node, injected=0, cell_output=2),
        "dataset": DatasetSpec(text=TextDataset(level="character")),
        "language": LanguageSpec(layers=1, parameters=20_000, dropout="0.2"),
        "batch_size": 64,
        "optimizer": OptimizerSpec(learning_rate="0.05"),
        "epochs": max(1, epochs // 4),
    }


def metric(task: dict[str, Any], seed: int, ranks: int) -> float:
    """Return the final metric of one training."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        document = TrainerInput(
            experiment="bench",
            sample=0,
            attempt=1,
            seed=seed,
            reward_epochs=1,
            final=FinalSettings(),
            store=StoreLocation(folder=folder),
            **task,
        )
        place = {names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True), "NAS_LOG_LEVEL": "error"}
        if ranks > 1:
            place |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        processes = [
            subprocess.Popen([sys.executable, "-m", "nas_trainer"], env=os.environ | place | {"RANK": str(rank)})
            for rank in range(ranks)
        ]
        ends = [process.wait() for process in processes]
        if any(ends):
            raise SystemExit("a training failed")
        result = json.loads(Path(folder, names.result_key(0)).read_text())
        return float(result["metrics"][document.metric])


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", choices=["digits", "text"])
    options = parser.parse_args()
    tasks = {"digits": digits(options.epochs), "text": text(options.epochs)}
    print(f"| task | one process | {options.ranks} ranks | difference | its standard error |\n|---|---|---|---|---|")
    for name, task in tasks.items():
        if options.only not in (None, name):
            continue
        one, several = ([metric(task, seed, ranks) for seed in range(options.seeds)] for ranks in (1, options.ranks))
        differences = [b - a for a, b in zip(one, several, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        means = " | ".join(f"{statistics.mean(each):.4f}" for each in (one, several, differences))
        print(f"| {name} | {means} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
