"""What our training loop costs beyond the network: an epoch against bare forward, backward and step, on one CPU thread.

    python bench/image_trainer.py [--repeats 9]

Two shapes: a child of examples/digits.yaml, and one of the paper's CIFAR-10 search on fewer images, with upsampling,
crops and flips. "Bare" takes the same network through the same number of batches, which lie ready in memory, with
torch's own SGD. Both run in turns in one process, so that a busy machine slows both; the ratio is the median over
repeats. The bar is 1.10. The validation after an epoch, which bare has not, is given apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nas_api.child import FinalSettings, StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer.images.data import Images, load_images
from nas_trainer.images.network import Network
from nas_trainer.images.training import ImageTraining

BAR = 1.10
NETWORKS = {
    "digits": "3x5:24/1x2 5x3:12<0 1x3:36/2x1<0,1 3x3:24<1 5x5:12<2,3 3x1:36<0,4",
    "CIFAR-10": "3x3:36 5x3:24<0 3x3:48<0,1 1x1:36<1 3x5:24<2,3 3x3:48<4",
}


def dataset(name: str) -> Images:
    """Return the digits as the demo has them, or random images of CIFAR-10's shape, enough for six steps."""
    if name == "digits":
        return load_images(DatasetSpec(digits=DigitsDataset()), StoreLocation(folder="/"))
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(256, 3, 32, 32, generator=generator), torch.arange(256) % 10
    return Images(images[:192], labels[:192], images[192:], labels[192:], classes=10, augmented=True)


def bare_epoch(
    architecture: ConvolutionalArchitecture, images: Images, batch_size: int, spec: OptimizerSpec
) -> Callable[[], None]:
    """Return a function that takes a network through as many batches as an epoch has, and does nothing else."""
    torch.manual_seed(0)
    network = Network(architecture, images.shape[0], images.classes).train()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=float(spec.learning_rate),
        momentum=float(spec.momentum),
        weight_decay=float(spec.weight_decay),
        nesterov=True,
    )
    whole = len(images.train_labels) // batch_size * batch_size
    batches: list[tuple[Tensor, Tensor]] = list(
        zip(
            torch.split(images.train_images[:whole], batch_size),
            torch.split(images.train_labels[:whole], batch_size),
            strict=True,
        )
    )

    def epoch() -> None:
        for batch, labels in batches:
            torch.autograd.backward(functional.cross_entropy(network(batch), labels))
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def our_epoch(
    architecture: ConvolutionalArchitecture, images: Images, batch_size: int, spec: OptimizerSpec, *, measured: bool
) -> Callable[[], None]:
    """Return a function that trains one epoch more; with ``measured`` it ends with the validation."""
    final = FinalSettings(test=not measured)
    training = ImageTraining(architecture, images, spec, batch_size, 0, torch.device("cpu"), final=final)
    return lambda: training.run(training.progress.epochs + 1, lambda: None)


def seconds(work: Callable[[], None]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Print a line for each shape; the exit code is 1 when one misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    missed = False
    # A learning rate at which random images never diverge.
    spec = OptimizerSpec(learning_rate="0.01")
    for name, batch_size in (("digits", 64), ("CIFAR-10", 32)):
        architecture = ConvolutionalArchitecture.parse_short(NETWORKS[name])
        images = dataset(name)
        bare = bare_epoch(architecture, images, batch_size, spec)
        ours = our_epoch(architecture, images, batch_size, spec, measured=False)
        whole = our_epoch(architecture, images, batch_size, spec, measured=True)
        for each in (bare, ours, whole):
            each()  # allocations, and the choice of algorithms
        turns = [(seconds(bare), seconds(ours), seconds(whole)) for _ in range(repeats)]
        ratio = statistics.median(mine / base for base, mine, _ in turns)
        missed |= ratio > BAR
        print(
            f"{name}: bare epoch {statistics.median(turn[0] for turn in turns):.3f} s, ours"
            f" {statistics.median(turn[1] for turn in turns):.3f} s, ratio {ratio:.3f} (bar {BAR:.2f}:"
            f" {'MISSED' if ratio > BAR else 'holds'}); with the validation"
            f" {statistics.median(turn[2] for turn in turns):.3f} s"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
