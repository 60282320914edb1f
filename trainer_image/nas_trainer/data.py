"""Datasets as tensors: what a child trains on and validates on. The test set is never read.

Splits are the same for every child, on every machine and with every version of every library: images are
ordered by the SHA-256 of their index.
"""

import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset
from nas_store import open_store
from nas_store.errors import StoreError, StoreUnreachable

DIGITS_IMAGES = 1797
DIGITS_VALIDATION_IMAGES = 397
CIFAR10_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_FILE_BYTES = 10_000 * (1 + 3 * 32 * 32)


class DatasetUnavailable(Exception):
    """The dataset is missing or broken; the message is one sentence that names the cure."""


@dataclass(frozen=True)
class Images:
    """A split dataset: images float32 (n, channels, height, width), whitened; labels int64 (n,)."""

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    classes: int
    augmented: bool
    """Whether training images are to be flipped and cropped at random (paper section 4.1)."""

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Images":
        """Return the dataset on a device."""
        return Images(
            self.train_images.to(device, memory_format=memory_format),
            self.train_labels.to(device),
            self.validation_images.to(device, memory_format=memory_format),
            self.validation_labels.to(device),
            self.classes,
            self.augmented,
        )


def load(spec: DatasetSpec, store: StoreLocation) -> Images:
    """Return the dataset that a manifest names.

    Args:
        spec: which dataset.
        store: where the experiment's objects are; a dataset in S3 is read from the same server.

    Raises:
        DatasetUnavailable: a file is missing, unreadable or of the wrong size.
    """
    if spec.cifar10 is not None:
        return _cifar10(spec.cifar10, store)
    return _digits(spec.digits or DigitsDataset())


def fixed_order(count: int) -> NDArray[np.int64]:
    """Return 0..count-1 in an order that looks random and never changes."""
    keys = [hashlib.sha256(str(index).encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def _digits(spec: DigitsDataset) -> Images:
    # Importing scikit-learn costs more than training a small child does; its data file is all we need.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DatasetUnavailable("scikit-learn, which carries the digits, is not installed: use the trainer's image")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except (OSError, ValueError) as error:
        raise DatasetUnavailable(f"the digits of scikit-learn cannot be read ({error}): install it again") from error
    if table.shape != (DIGITS_IMAGES, 65):
        raise DatasetUnavailable(f"the digits of scikit-learn have the shape {table.shape}: install it again")
    table = table[fixed_order(DIGITS_IMAGES)]
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    seen = spec.training_images + DIGITS_VALIDATION_IMAGES
    return _split(images[:seen], labels[:seen], spec.training_images, augmented=False)


def _cifar10(spec: CifarDataset, store: StoreLocation) -> Images:
    # One record is the label, then 32x32 pixels of red, of green and of blue.
    records = np.concatenate(
        [np.frombuffer(data, dtype=np.uint8).reshape(-1, 3073) for data in _cifar10_files(spec.uri, store)]
    )[fixed_order(50_000)]
    if records[:, 0].max() > 9:
        raise DatasetUnavailable(f"{spec.uri} has labels above 9: is it the binary version of CIFAR-10?")
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)).float()
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    return _split(images, labels, 50_000 - spec.validation_images, augmented=True)


def _cifar10_files(uri: str, store: StoreLocation) -> list[bytes]:
    cure = "put the five data_batch_*.bin of CIFAR-10's binary version there, or correct trainer.dataset.cifar10.uri"
    read = _bucket_reader(uri, store) if uri.startswith("s3://") else _folder_reader(Path(uri))
    files = []
    for name in CIFAR10_FILES:
        address = f"{uri.rstrip('/')}/{name}"
        try:
            data = read(name)
        except OSError as error:
            raise DatasetUnavailable(f"{address} cannot be read ({error.strerror}): {cure}") from error
        except StoreUnreachable:
            # The same server as the experiment's: it is no worse with the dataset than with the result.
            raise
        except StoreError as error:
            raise DatasetUnavailable(f"{address} cannot be read ({error.reason}): {cure}") from error
        if data is None:
            raise DatasetUnavailable(f"{address} is missing: {cure}")
        if len(data) != CIFAR10_FILE_BYTES:
            raise DatasetUnavailable(f"{address} has {len(data):,} bytes, not {CIFAR10_FILE_BYTES:,}: {cure}")
        files.append(data)
    return files


def _bucket_reader(uri: str, store: StoreLocation) -> Callable[[str], bytes | None]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    server = store.s3 or S3Location(bucket=bucket, prefix=prefix)
    return open_store(StoreLocation(s3=server.model_copy(update={"bucket": bucket, "prefix": prefix}))).get


def _folder_reader(folder: Path) -> Callable[[str], bytes | None]:
    return lambda name: (folder / name).read_bytes() if (folder / name).exists() else None


def _split(images: Tensor, labels: Tensor, training: int, *, augmented: bool) -> Images:
    """Whiten by the mean and deviation of each channel of the training images, and split."""
    mean = images[:training].mean((0, 2, 3), keepdim=True)
    deviation = images[:training].std((0, 2, 3), keepdim=True)
    images = (images - mean) / deviation
    return Images(
        images[:training],
        labels[:training],
        images[training:],
        labels[training:],
        classes=10,
        augmented=augmented,
    )
