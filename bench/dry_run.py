"""From data to first step: every full-size manifest of examples/paper with the built-in trainer, two steps a training.

    python bench/dry_run.py [NAME...]

What a week of GPUs would find out too late: files in their real layout and number (50,000 training images of noise in
CIFAR-10's binary files, 929,589 words of ten thousand kinds in Penn Treebank's), networks and budgets of parameters as
the manifest has them, an interruption after the first epoch and the way back from its checkpoint, the first setting of
the final grid, the test, and what it hands over. Only the epochs are cut, to two steps each; architectures are drawn at
random, those that another experiment is to find too. Each manifest has a process of its own, whose memory is compared
with what the manifest gives a trainer.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
import yaml
from paper_cost import PAPER, PTB_TRAINING_WORDS, PTB_VOCABULARY, drawn

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import Result, StoreLocation, TrainerInput
from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.source import architecture_source
from nas_api.trainer_input import trainer_input
from nas_cli.manifest import read_experiment
from nas_controller.final_stage import combinations
from nas_log.records import FinalRun
from nas_store import Store, open_store
from nas_trainer.child import Shared, Terminated, train_child
from nas_trainer.descent import Descent
from nas_trainer.images.data import Images
from nas_trainer.images.training import images_on_device
from nas_trainer.text.data import Text, load_text

STEPS = 2
IMAGES_A_FILE, PIXELS = 10_000, 3 * 32 * 32
HELD_OUT_IMAGES = 256
MANIFESTS = sorted(path.stem for path in PAPER.glob("*.yaml") if not path.stem.endswith("-small"))


def write_images(folder: Path) -> None:
    """Write noise as CIFAR-10's binary files: a label and the pixels of each image."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (IMAGES_A_FILE, 1 + PIXELS), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def write_text(folder: Path) -> None:
    """Write words at random, all of them in each part, as Penn Treebank's files have them: a sentence a line."""
    rng = np.random.default_rng(0)
    for part, count in (("train", PTB_TRAINING_WORDS), ("valid", 73_760), ("test", 82_430)):
        # Those that END and UNKNOWN add are of the vocabulary.
        words = [f"w{number}" for number in rng.integers(0, PTB_VOCABULARY - 2, count)]
        lines = [" ".join(words[start : start + 21]) for start in range(0, count, 21)]
        (folder / f"ptb.{part}.txt").write_text("".join(f" {line} \n" for line in lines))


def cut_images(batch: int) -> Callable[..., Images]:
    """Return a loader of all images that hands on those of two steps."""

    def load(*given: Any, **named: Any) -> Images:
        images, kept = images_on_device(*given, **named), STEPS * batch
        return replace(
            images,
            train_images=images.train_images[:kept],
            train_labels=images.train_labels[:kept],
            held_out_images=images.held_out_images[:HELD_OUT_IMAGES],
            held_out_labels=images.held_out_labels[:HELD_OUT_IMAGES],
        )

    return load


def cut_text(streams: int, window: int) -> Callable[..., Text]:
    """Return a loader of the whole text, vocabulary and all, that hands on the words of two steps."""

    def load(*given: Any, **named: Any) -> Text:
        text, kept = load_text(*given, **named), streams * (STEPS * window + 1)
        return replace(text, train=text.train[:kept], held_out=text.held_out[:kept])

    return load


def manifest(name: str, data: Path) -> NASExperiment:
    """Return a full-size experiment whose dataset is here, of one epoch a child and two a final training."""
    document = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
    trainer = document["spec"]["trainer"]
    (dataset,) = trainer["dataset"].values()
    dataset["uri"] = str(data)
    trainer["epochs"] = 1
    trainer.pop("earlyStopping", None)
    document["spec"]["finalTraining"] |= {"epochs": 2, "checkpointEvery": "0s"}
    path = data / "manifest.yaml"
    path.write_text(yaml.safe_dump(document))
    return read_experiment(path)


def architecture(of: NASExperiment) -> Architecture:
    """Return an architecture drawn at random as the budget's last sample."""
    rng, spec = random.Random(0), of.spec.search_space
    if spec.fixed is None:
        return drawn(search_space(spec), of.spec.budget.samples - 1, rng)
    other = read_experiment(PAPER / f"{spec.fixed.experiment}.yaml").spec
    found = drawn(search_space(other.search_space), other.budget.samples - 1, rng)
    changed: Architecture = search_space(spec, found).decode((0,))
    return changed


@contextmanager
def sigterm_after(epochs: int) -> Iterator[None]:
    """Let trainings end as if SIGTERM came after some epochs."""
    run = Descent.run

    def interrupted(self: Any, until: int, after_epoch: Callable[[], None]) -> None:
        run(self, min(until, epochs), after_epoch)
        raise Terminated

    with patch.object(Descent, "run", interrupted), suppress(Terminated):
        yield


def dry_run(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """Train a child, a final training with an interruption, and the test; return what there is to say of them."""
    torch.set_num_threads(1)
    began = time.monotonic()
    experiment = manifest(name, data)
    spec, final = experiment.spec, experiment.spec.final_training
    assert final is not None
    network, location = architecture(experiment), StoreLocation(folder=str(folder))
    store = open_store(location)
    shared = Shared(
        images=cut_images(spec.trainer.batch_size), text=cut_text(spec.trainer.batch_size, spec.trainer.language.steps)
    )

    def train(document: TrainerInput) -> Result:
        train_child(document, shared, lambda: None)
        data = store.get(names.result_key(document.sample))
        return Result.parse(data or b"", sample=document.sample, digest=network.digest, metric=document.metric)

    child = train(trainer_input(experiment, location, 0, 1, network))
    settings, optimizer = combinations(final, spec.trainer.optimizer)[0]
    run = FinalRun(of=0, settings=settings, optimizer=optimizer, epochs=final.epochs)
    with sigterm_after(1):
        train(trainer_input(experiment, location, 1, 1, network, run))
    resumed = train(trainer_input(experiment, location, 1, 2, network, run))
    metric = spec.objective.metric
    assert not child.diverged(metric), "two steps are too few to diverge in"
    assert len(resumed.history) == 2 and store.get(names.inherited_checkpoint_key(1, 2)), "it went on from the first"
    test = settings.model_copy(update={"test": True, "repeats": None if final.train_on_validation else 1})
    tested = train(trainer_input(experiment, location, 2, 1, network, run.model_copy(update={"settings": test})))
    check_handover(store, experiment, network)
    return {
        "manifest": name,
        "parameters": child.parameters or int(child.metrics["parameters"]),
        metric: [round(each.metrics[metric], 4) for each in (child, resumed, tested)],
        "onnxDifference": tested.metrics.get("onnxDifference"),
        "seconds": round(time.monotonic() - began),
        "gibibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def check_handover(store: Store, experiment: NASExperiment, network: Architecture) -> None:
    """Load the weights into the readable module, as whoever takes the model over does."""
    dataset = experiment.spec.trainer.dataset
    source = architecture_source(network, in_channels=dataset.channels, classes=dataset.classes)
    assert source is not None
    module: dict[str, Any] = {}
    exec(source, module)
    weights = safetensors.torch.load(store.get(names.weights_key(2)) or b"")
    if dataset.text is None:
        module["Network"]().load_state_dict(weights)
    else:
        module["Network"].of(weights)


def _child(name: str, data: Path, folder: Path, found: "multiprocessing.Queue[dict[str, Any]]") -> None:
    found.put(dry_run(name, data, folder))


def main() -> None:
    """Print a line for each manifest; end with 1 if one of them has failed."""
    parser = argparse.ArgumentParser(description="Every full-size manifest, from its data to its best model.")
    parser.add_argument("names", nargs="*", default=MANIFESTS)
    context = multiprocessing.get_context("spawn")
    failed: list[str] = []
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            data, store = Path(folder, "data"), Path(folder, "store")
            data.mkdir()
            (write_text if name.startswith("ptb") else write_images)(data)
            found: multiprocessing.Queue[dict[str, Any]] = context.Queue()
            process = context.Process(target=_child, args=(name, data, store, found))
            process.start()
            process.join()
            if process.exitcode == os.EX_OK:
                print(json.dumps(found.get()), flush=True)
            else:
                failed.append(name)
                print(f"{name} FAILED", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
