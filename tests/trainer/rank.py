"""One rank of a training in float64, as a program: takes so many steps and saves what it has come to.

``python rank.py WHAT FILE`` with ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``, or without them for a
training of one process. ``WHAT`` is ``images``, ``cells`` or ``text``.
"""

import dataclasses
import os
import sys

import torch

from nas_api.child import StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, LanguageSpec, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellSpace, RecurrentCellSpec
from nas_trainer.descent import Descent
from nas_trainer.distributed import Ranks, joined, losses
from nas_trainer.images.architectures import ImageArchitecture
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining
from nas_trainer.text.data import Text
from nas_trainer.text.training import TextTraining

CPU = torch.device("cpu")
# An odd batch: two ranks' shares differ. Four epochs of five steps.
BATCH, IMAGES = 61, 305
EPOCHS = 4


SKIPS = ConvolutionalArchitecture(
    layers=(
        ConvolutionalLayer(filter_height=3, filter_width=3, filters=6),
        ConvolutionalLayer(filter_height=5, filter_width=3, filters=8, inputs=(0,), pool=True),
        ConvolutionalLayer(filter_height=3, filter_width=3, filters=6, inputs=(0, 1)),
    )
)
CELLS = ConvolutionalCellArchitecture.parse_short(
    # The first node's convolution has nothing that hangs on it: its gradients are zeros, but they are there.
    "dense 2x1:6 |conv_3x3~0|+|conv_3x3~0|none~1|+|skip~0|none~1|conv_1x1~2|"
)


def images(ranks: Ranks, architecture: ImageArchitecture) -> ImageTraining:
    """Return the training of a network on digits."""
    found = load_images(DatasetSpec(digits=DigitsDataset(training_images=IMAGES)), StoreLocation(folder="/nowhere"))
    found = dataclasses.replace(
        found, train_images=found.train_images[:].double(), held_out_images=found.held_out_images[:].double()
    )
    return ImageTraining(architecture, found, OptimizerSpec(), BATCH, 7, CPU, ranks=ranks)


def text(ranks: Ranks) -> TextTraining:
    """Return the training of a small language model without dropout, on numbers that follow from one another."""
    tokens = torch.tensor([(each * each + each // 7) % 23 for each in range(1501)])
    found = Text(tokens, tokens[:400], tuple(map(str, range(23))), "character")
    space = RecurrentCellSpace(RecurrentCellSpec(base=2))
    architecture = space.decode(tuple(0 for _ in space.decisions(0)))
    spec = LanguageSpec(layers=1, parameters=4000, steps=15, dropout="0")
    return TextTraining(architecture, found, spec, OptimizerSpec(learning_rate="0.05"), 21, 7, CPU, ranks=ranks)


def _training(what: str, ranks: Ranks) -> Descent:  # type: ignore[type-arg]
    return text(ranks) if what == "text" else images(ranks, CELLS if what == "cells" else SKIPS)


def main(what: str, file: str) -> None:
    """Train, and let each rank save all that training changes, beside losses and metrics."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with joined(os.environ) as ranks, losses():
        training = _training(what, ranks)
        training.run(EPOCHS, lambda: None)
        state = training.state()
    progress = torch.tensor([training.progress.losses, training.progress.metrics])
    torch.save({**state, "progress": progress}, f"{file}.{ranks.number}")


if __name__ == "__main__":
    main(*sys.argv[1:])
