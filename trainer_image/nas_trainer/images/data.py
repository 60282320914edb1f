"""Image datasets as tensors: what a child trains on and is measured on. No child of a search reads the test set.

Splits are the same for every child, on every machine and with every version of every library: images are
ordered by the SHA-256 of their index.

CIFAR's images are whitened one by one, as the paper's section 4.1 ("we whiten all images") was done in the software of
its time: each has mean 0 and deviation 1 over its pixels and channels. Digits and users' own images have the mean and
deviation of the training images.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.child import StoreLocation
from nas_api.experiment import Augmentation, CifarDataset, DatasetSpec, DigitsDataset, ImagesDataset
from nas_trainer.files import DatasetUnavailable, open_files
from nas_trainer.images.cifar import Labelled, class_names, read_cifar
from nas_trainer.images.digits import read_digits
from nas_trainer.images.pictures import FIELD
from nas_trainer.images.preprocessing import whiten
from nas_trainer.images.table import TableRows, read_table, scale, split

DIGITS_VALIDATION_IMAGES = 397


@dataclass(frozen=True)
class Images:
    """A split dataset: images float32 (n, channels, height, width), whitened; labels int64 (n,)."""

    train_images: Tensor | TableRows
    train_labels: Tensor
    held_out_images: Tensor | TableRows
    """The validation images; the test images where the others are trained on as well."""
    held_out_labels: Tensor
    classes: int
    augmented: bool
    """Whether training images are upsampled, cropped at random and flipped (paper section 4.1)."""
    class_names: tuple[str, ...] = ()
    """In the order of the labels; empty where nobody has asked for them, which is all but the final test."""
    brightest: float = 255.0
    """The largest value of a pixel as it is stored."""
    scale: tuple[float, float] | None = None
    """The mean and the deviation that all images were whitened with; None: each one with its own."""
    augmentation: tuple[Augmentation, ...] = ()
    """What else is done to training images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Images":
        """Return the dataset on a device."""
        return replace(
            self,
            train_images=self.train_images.to(device, memory_format=memory_format),
            train_labels=self.train_labels.to(device),
            held_out_images=self.held_out_images.to(device, memory_format=memory_format),
            held_out_labels=self.held_out_labels.to(device),
        )


def load_images(
    spec: DatasetSpec,
    store: StoreLocation,
    *,
    cache: str | None = None,
    test: bool = False,
    on_validation: bool = True,
) -> Images:
    """Return the dataset that a manifest names.

    Args:
        spec: which dataset of images.
        store: where the experiment's objects are; a dataset in S3 is read from the same server.
        cache: folder of this node for copies of datasets in S3.
        test: hold the test images out; otherwise they are not read.
        on_validation: whether a test trains on the validation images as well.

    Raises:
        DatasetUnavailable: a file is missing or broken, or there are too few images for the split.
        StoreUnreachable: the S3 server does not answer.
    """
    cifar = spec.cifar10 or spec.cifar100
    if cifar is not None:
        return _cifar(cifar, spec.classes, store, cache, test, on_validation)
    if spec.images is not None:
        return _own(spec.images, store, cache, test, on_validation)
    return _digits(spec.digits or DigitsDataset(), spec.classes, test, on_validation)


def fixed_order(count: int) -> NDArray[np.int64]:
    """Return 0..count-1 in an order that looks random and never changes."""
    keys = [hashlib.sha256(str(index).encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def _digits(spec: DigitsDataset, classes: int, test: bool, on_validation: bool) -> Images:
    pixels, digits = read_digits()
    order = fixed_order(len(digits))
    seen = spec.training_images + DIGITS_VALIDATION_IMAGES
    if test and seen >= len(order):
        raise DatasetUnavailable("no digits are left to test on: lower trainer.dataset.digits.trainingImages")
    training = seen if test and on_validation else spec.training_images
    begin, end = (seen, len(order)) if test else (training, seen)
    images, labels = torch.from_numpy(pixels[order]), torch.from_numpy(digits[order])
    mean, deviation = images[:training].mean().item(), images[:training].std().item()
    images = (images - mean) / deviation
    return Images(
        images[:training],
        labels[:training],
        images[begin:end],
        labels[begin:end],
        classes,
        augmented=False,
        class_names=tuple(map(str, range(classes))),
        brightest=16.0,
        scale=(mean, deviation),
    )


def _cifar(
    spec: CifarDataset, classes: int, store: StoreLocation, cache: str | None, test: bool, on_validation: bool
) -> Images:
    files = open_files(spec.uri, store, cache, f"trainer.dataset.cifar{classes}.uri")
    stored = read_cifar(files, classes, "train")
    count = len(stored.labels)
    training = count - spec.validation_images
    if training < 1:
        raise DatasetUnavailable(
            f"{spec.uri} has {count:,} training images, and trainer.dataset.cifar{classes}.validationImages holds"
            f" {spec.validation_images:,} of them out: lower it"
        )
    order = fixed_order(count)
    if test:
        train_images, train_labels = _whitened(stored, order if on_validation else order[:training])
        held_out = read_cifar(files, classes, "test")
        test_images, test_labels = _whitened(held_out, np.arange(len(held_out.labels)))
        known = class_names(files, classes)
        return Images(train_images, train_labels, test_images, test_labels, classes, augmented=True, class_names=known)
    images, labels = _whitened(stored, order)
    return Images(images[:training], labels[:training], images[training:], labels[training:], classes, augmented=True)


def _own(spec: ImagesDataset, store: StoreLocation, cache: str | None, test: bool, on_validation: bool) -> Images:
    table = read_table(open_files(spec.uri, store, cache, f"{FIELD}.uri"), spec, cache)
    rows = split(table.about, spec)
    part = "test" if test else "validation"
    held_out = rows.test if test else rows.validation
    if not len(held_out):
        raise DatasetUnavailable(
            f"{spec.uri} has no {part} images: put {part}/<class>/*.png or {part}*.parquet there, or set {FIELD}.{part}"
        )
    train = np.sort(np.concatenate([rows.train, rows.validation])) if test and on_validation else rows.train
    mean, deviation = scale(table.about, train)
    labels = torch.tensor(table.about.labels)
    part_rows, held_out_rows = torch.from_numpy(train), torch.from_numpy(held_out)
    everything = TableRows(torch.from_numpy(table.pixels), part_rows, mean, deviation, torch.device("cpu"))
    return Images(
        everything,
        labels[part_rows],
        replace(everything, rows=held_out_rows),
        labels[held_out_rows],
        spec.classes,
        augmented=False,
        class_names=table.about.classes,
        scale=(mean, deviation),
        augmentation=spec.augmentation,
    )


def _whitened(stored: Labelled, order: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return images in an order, each whitened, with their labels."""
    return whiten(torch.from_numpy(stored.pixels[order]).float()), torch.from_numpy(stored.labels[order])
