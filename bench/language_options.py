"""What each kind of dropout of a language model is worth: its validation perplexity against that of none.

    python bench/language_options.py [--words 12000] [--epochs 48] [--seeds 3]

NASCell in two layers on a piece of the text that ships with Python, small enough to be learnt by heart: without
dropout the perplexity is lowest about half way and then rises. Each option alone at a share that is usual for it, and
all together, with the same seeds; the lowest perplexity of a training counts, as if it had been stopped there. The
difference to no dropout is given with its standard error over the seeds, which are paired.
"""

import argparse
import math
import statistics
import time
from dataclasses import replace

import torch
from recurrent_trainer import NASCELL

from nas_api.child import StoreLocation
from nas_api.experiment import LanguageSpec, OptimizerSpec, TextDataset
from nas_trainer.text.data import Text, load_text
from nas_trainer.text.training import TextTraining

NONE = LanguageSpec(parameters=600_000, dropout="0", steady_epochs=24, learning_rate_divisor="1.15")
OPTIONS = {
    "none": {},
    "dropout 0.3": {"dropout": "0.3"},
    "inputDropout 0.3": {"input_dropout": "0.3"},
    "recurrentDropout 0.25": {"recurrent_dropout": "0.25"},
    "embeddingDropout 0.1": {"embedding_dropout": "0.1"},
    "all of them": {
        "dropout": "0.2",
        "input_dropout": "0.2",
        "recurrent_dropout": "0.2",
        "embedding_dropout": "0.1",
    },
}
# Momentum, for these are few steps: without it nothing is learnt by heart in so many epochs.
OPTIMIZER = OptimizerSpec(learning_rate="0.1", momentum="0.9", weight_decay="0")
STREAMS = 20


def perplexity(text: Text, spec: LanguageSpec, epochs: int, seed: int) -> tuple[float, float]:
    """Return the lowest and the last validation perplexity of a training."""
    training = TextTraining(NASCELL, text, spec, OPTIMIZER, STREAMS, seed, torch.device("cpu"))
    training.run(epochs, lambda: None)
    return min(training.progress.metrics), training.progress.metrics[-1]


def main() -> None:
    """Print a line for each option."""
    parser = argparse.ArgumentParser(description="Kinds of dropout of a language model, against none.")
    parser.add_argument("--words", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_text(TextDataset(vocabulary=1000), StoreLocation(folder="."))
    text = replace(whole, train=whole.train[: given.words])
    print(f"{given.words:,} of {len(whole.train):,} words, {NONE.parameters:,} parameters, {given.epochs} epochs")
    print("| option | lowest perplexity, each seed | in the end | difference of the lowest to none | s a training |")
    print("|---|---|---|---|---|")
    base: tuple[float, ...] = ()
    for name, changes in OPTIONS.items():
        began = time.process_time()
        spec = NONE.model_copy(update=changes)
        found, last = zip(*(perplexity(text, spec, given.epochs, seed) for seed in range(given.seeds)), strict=True)
        seconds = (time.process_time() - began) / given.seeds
        base = base or found
        differences = [ours - none for ours, none in zip(found, base, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        told = "" if name == "none" else f"{statistics.fmean(differences):+.1f} ± {error:.1f}"
        lowest, end = (", ".join(f"{value:.1f}" for value in values) for values in (found, last))
        print(f"| {name} | {lowest} | {end} | {told} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
