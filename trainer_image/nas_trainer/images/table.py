"""Users' own images as one table of pixels, from which training takes a batch at a time.

The table is a file that is mapped into memory: what fits is read from memory, what does not from the disk. With a
cache, the first child on a node makes it, and all later ones map the same; without, each child has its own in its
temporary folder, gone with it. Pixels are kept as they are stored, a byte each; they become numbers around 0 when a
batch is taken.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.base import Model
from nas_api.experiment import ImagesDataset
from nas_trainer.files import DatasetUnavailable, Files, kept
from nas_trainer.images.pictures import FIELD, Part, Picture, catalogued, class_names, pictures

_PIXELS = "pixels"
_ABOUT = "about.json"
T = TypeVar("T")


class _About(Model):
    """What is known of a table's images, each in its place."""

    shape: tuple[int, int, int]
    """Channels, height and width."""
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    labels: tuple[int, ...]
    sums: tuple[int, ...]
    """Of an image's bytes."""
    squares: tuple[int, ...]
    """Sum of their squares."""
    digest: str
    """SHA-256 of all pixels."""


@dataclass(frozen=True)
class Table:
    """All images of a dataset."""

    pixels: NDArray[np.uint8]
    """(n, channels, height, width), on the disk as far as it is not in memory."""
    about: _About


@dataclass(frozen=True)
class Split:
    """Which rows of a table belong to which part, int64 each, ascending."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table as a network takes them: what indexing returns is float32 (n, channels, height, width)."""

    pixels: Tensor
    """uint8, of the whole table, on the device or not."""
    rows: Tensor
    """int64 (n,), beside the pixels."""
    mean: float
    deviation: float
    device: torch.device
    """Where batches are wanted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all these images together."""
        return (len(self.rows), *self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        if isinstance(which, Tensor):
            which = which.to(self.rows.device)
        batch = self.pixels[self.rows[which]].to(self.device)
        return (batch.float() - self.mean) / self.deviation

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> "TableRows":
        """Return the same for batches on a device; the pixels move there as well where they take half its free memory
        at most."""
        if device.type != "cuda" or self.pixels.numel() > torch.cuda.mem_get_info(device)[0] // 2:
            return replace(self, device=device)
        pixels, rows = self.pixels.to(device, memory_format=memory_format), self.rows.to(device)
        return replace(self, pixels=pixels, rows=rows, device=device)


def read_table(files: Files, spec: ImagesDataset, cache: str | None) -> Table:
    """Return a dataset's images.

    Args:
        files: where they are.
        spec: the manifest's.
        cache: folder of this node in which the table is kept for others.

    Raises:
        DatasetUnavailable: the files are no such dataset, or the cache cannot be used.
        StoreUnreachable: the files' server does not answer.
    """
    versions = files.versions()
    catalogue = catalogued(files.address, list(versions), spec)

    def make(folder: Path) -> None:
        about = _write(folder / _PIXELS, pictures(files, catalogue, spec), class_names(files, catalogue, spec))
        (folder / _ABOUT).write_text(about.model_dump_json(by_alias=True))

    if cache is None:
        # The name goes, the mapped file stays as long as somebody has it.
        try:
            with tempfile.TemporaryDirectory(prefix="nas-images-") as folder:
                make(Path(folder))
                made = _opened(Path(folder))
        except OSError as error:
            raise DatasetUnavailable(
                f"the images do not fit into {tempfile.gettempdir()} ({error}): give it more room in trainer.template,"
                " or set trainer.datasetCache"
            ) from error
        assert made is not None
        return made
    told = spec.model_dump(mode="json", include={"channels", "classes", "size"})
    wanted = {name: versions[name] for name, _ in catalogue.files}
    return kept(cache, json.dumps([files.server, files.address, wanted, told], sort_keys=True), _sound, make)


def split(about: _About, spec: ImagesDataset) -> Split:
    """Return which rows are trained on, held out for validation, and held out for the test.

    What is split off is taken from each class alike, in an order that follows from the seed.

    Raises:
        DatasetUnavailable: a class has no training images, or too few of them.
    """
    parts, labels = np.array(about.parts), np.array(about.labels)
    held = {part: parts == part for part in ("validation", "test")}
    shares = {part: 0.0 if held[part].any() else float(getattr(spec, part)) for part in held}
    for label in range(spec.classes):
        rows = np.flatnonzero((parts == "train") & (labels == label))
        if not len(rows):
            raise DatasetUnavailable(
                f"no training image has the label {label}: correct {FIELD}.classes, or give it images"
            )
        rows = np.array(sorted(rows.tolist(), key=lambda row: _drawn(spec.split_seed, row)), dtype=np.int64)
        counts = {part: math.ceil(share * len(rows)) for part, share in shares.items()}
        if sum(counts.values()) >= len(rows):
            raise DatasetUnavailable(
                f"the class {about.classes[label]} has {len(rows)} training images, of which {sum(counts.values())}"
                f" would be held out: give it more images, or lower {FIELD}.validation and {FIELD}.test"
            )
        for part, count in counts.items():
            held[part][rows[:count]] = True
            rows = rows[count:]
    train = ~held["validation"] & ~held["test"]
    return Split(*(np.flatnonzero(each) for each in (train, held["validation"], held["test"])))


def scale(about: _About, rows: NDArray[np.int64]) -> tuple[float, float]:
    """Return mean and deviation of all pixels of some images; the deviation is 1 where they are of one colour."""
    count = len(rows) * math.prod(about.shape)
    mean = _total(about.sums, rows) / count
    return mean, math.sqrt(max(0.0, _total(about.squares, rows) / count - mean**2)) or 1.0


def _total(each: tuple[int, ...], rows: NDArray[np.int64]) -> int:
    """Return a sum without rounding: whole numbers, in any order."""
    return sum(each[row] for row in rows.tolist())


def _drawn(seed: int, row: int) -> bytes:
    return hashlib.sha256(f"{seed}/{row}".encode()).digest()


def _write(path: Path, images: Iterable[Picture], classes: tuple[str, ...]) -> _About:
    """Write images one after the other, and return what is known of them."""
    digest = hashlib.sha256()
    parts, labels, sums, squares = [], [], [], []
    shape = (0, 0, 0)
    with path.open("wb") as file:
        for each in images:
            data = each.pixels.tobytes()
            file.write(data)
            digest.update(data)
            whole = each.pixels.astype(np.int64)
            parts.append(each.part)
            labels.append(each.label)
            sums.append(int(whole.sum()))
            squares.append(int((whole * whole).sum()))
            shape = each.pixels.shape
    return _About(
        shape=shape,
        classes=classes,
        parts=tuple(parts),
        labels=tuple(labels),
        sums=tuple(sums),
        squares=tuple(squares),
        digest=digest.hexdigest(),
    )


def _opened(folder: Path) -> Table | None:
    """Return the table in a folder; None where there is none."""
    try:
        about = _About.model_validate_json((folder / _ABOUT).read_bytes())
        # Copied on writing, which nobody does: torch warns of memory that cannot be written.
        pixels = np.memmap(folder / _PIXELS, np.uint8, "c", shape=(len(about.labels), *about.shape))
    except (FileNotFoundError, ValueError):
        return None
    return Table(pixels, about)


def _sound(folder: Path) -> Table | None:
    """Return the table in a folder; None where there is none, or a disk has damaged it."""
    table = _opened(folder)
    return table if table is not None and hashlib.sha256(table.pixels.data).hexdigest() == table.about.digest else None
