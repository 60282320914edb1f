"""Users' own images as they lie in files: which there are, the part and class of each, and their pixels.

- folders: ``train/<class>/*.png``, with ``validation`` and ``test`` beside ``train`` or not, or ``<class>/*.png``;
- parquet, as Hugging Face's datasets have it: ``train*.parquet`` or ``train/*.parquet``, likewise, or any
  ``*.parquet``; with the columns ``image`` or ``img`` (a struct with ``bytes``) and ``label``.

Each may lie in a folder of its own below the address. What a system hides (``.ipynb_checkpoints``) is no image.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas_api.experiment import ImagesDataset
from nas_trainer.files import DatasetUnavailable, Files

Part = Literal["train", "validation", "test"]
FIELD = "trainer.dataset.images"
_NAMES: dict[str, Part] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".gif", ".webp", ".tif", ".tiff")
_COLUMNS = ("image", "img")
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Picture:
    """One image."""

    address: str
    """Where it is, for people."""
    part: Part
    label: int
    pixels: NDArray[np.uint8]
    """(channels, height, width)."""


@dataclass(frozen=True)
class Catalogue:
    """Which files there are to read."""

    parquet: bool
    files: tuple[tuple[str, Part], ...]
    """Each with its part, training images first; sorted by name within a part."""
    classes: tuple[str, ...]
    """Names in the order of the labels, where folders have them."""


def catalogued(address: str, names: list[str], spec: ImagesDataset) -> Catalogue:
    """Return which of some files are the dataset.

    Args:
        address: where the files are.
        names: all of them, sorted.
        spec: the manifest's.

    Raises:
        DatasetUnavailable: there are no images, or not as many classes as the manifest says.
    """
    paths = [path for path in map(PurePosixPath, names) if not any(part.startswith(".") for part in path.parts)]
    tables = [path for path in paths if path.suffix == ".parquet"]
    found = _parted([(path, _part_of_table(path)) for path in tables])
    if found:
        return Catalogue(True, found, ())
    images = [path for path in paths if path.suffix.lower() in _SUFFIXES and len(path.parts) > 1]
    found = _parted([(path, _NAMES.get(path.parts[-3]) if len(path.parts) > 2 else None) for path in images])
    if not found:
        raise _no_images(address)
    together: dict[Part, set[str]] = {}
    for name, part in found:
        together.setdefault(part, set()).add(PurePosixPath(name).parent.name)
    folders = {part: sorted(classes) for part, classes in together.items()}
    if len(folders["train"]) != spec.classes:
        raise DatasetUnavailable(
            f"{address} has {_counted(len(folders['train']), 'folder')} of training images ({_some(folders['train'])}):"
            f" {FIELD}.classes says {spec.classes}"
        )
    for part, classes in folders.items():
        unknown = sorted(set(classes) - set(folders["train"]))
        if unknown:
            raise DatasetUnavailable(
                f"{address} has images of {unknown[0]!r} in {part}/ but none to train on: put some into train/, or"
                " remove these"
            )
    return Catalogue(False, found, tuple(folders["train"]))


def pictures(files: Files, catalogue: Catalogue, spec: ImagesDataset) -> Iterator[Picture]:
    """Yield all images of a dataset, one file's contents in memory at a time; all are of one size.

    Raises:
        DatasetUnavailable: a file is missing or damaged, a label is wrong, or sizes differ where none is given.
    """
    read = _of_tables if catalogue.parquet else _of_folders
    first: tuple[str, tuple[int, int]] | None = None
    for address, part, label, data in read(files, catalogue):
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < spec.classes:
            raise DatasetUnavailable(
                f"{address} has the label {label}: {FIELD}.classes says {spec.classes}, so that labels are 0 to"
                f" {spec.classes - 1}"
            )
        pixels = _decoded(data, address, spec)
        height, width = pixels.shape[1:]
        first = first or (address, (height, width))
        if (height, width) != first[1]:
            raise DatasetUnavailable(
                f"{address} has {width}x{height} pixels, but {first[0]} has {first[1][1]}x{first[1][0]}: set"
                f" {FIELD}.size, and all are brought to it"
            )
        yield Picture(address, part, label, pixels)
    if first is None:
        raise _no_images(files.address)


def class_names(files: Files, catalogue: Catalogue, spec: ImagesDataset) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels, as the files have them; their numbers otherwise."""
    found = catalogue.classes
    if catalogue.parquet:
        found = tuple(_named_in(next(iter(files.each([catalogue.files[0][0]])))))
    return found if len(found) == spec.classes else tuple(map(str, range(spec.classes)))


def _parted(candidates: list[tuple[PurePosixPath, Part | None]]) -> tuple[tuple[str, Part], ...]:
    """Return files with their parts, those to train on first; all are to train on where none is said to be."""
    split = any(part == "train" for _, part in candidates)
    found = [(path.as_posix(), part if split else "train") for path, part in candidates]
    parts: list[Part] = ["train", "validation", "test"]
    return tuple((name, part) for each in parts for name, part in found if part == each)


def _part_of_table(path: PurePosixPath) -> Part | None:
    beginning = path.name.replace("_", "-").replace(".", "-").split("-")[0]
    return next((_NAMES[name] for name in (beginning, *reversed(path.parts[:-1])) if name in _NAMES), None)


def _no_images(address: str) -> DatasetUnavailable:
    return DatasetUnavailable(
        f"{address} has no images to train on: put <class>/*.png, train/<class>/*.png or train*.parquet there, or"
        f" correct {FIELD}.uri"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


_Encoded = tuple[str, Part, object, bytes]


def _of_folders(files: Files, catalogue: Catalogue) -> Iterator[_Encoded]:
    numbers = {name: number for number, name in enumerate(catalogue.classes)}
    contents = files.each([name for name, _ in catalogue.files])
    for (name, part), data in zip(catalogue.files, contents, strict=True):
        yield f"{files.address}/{name}", part, numbers[PurePosixPath(name).parent.name], data


def _of_tables(files: Files, catalogue: Catalogue) -> Iterator[_Encoded]:
    # Imported where it is needed: it takes longer than a small child's training.
    import pyarrow
    import pyarrow.parquet

    contents = files.each([name for name, _ in catalogue.files])
    for (name, part), data in zip(catalogue.files, contents, strict=True):
        address = f"{files.address}/{name}"
        row = 0
        try:
            table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
            columns = table.schema_arrow.names
            image = next((column for column in _COLUMNS if column in columns), None)
            if image is None or "label" not in columns:
                raise DatasetUnavailable(
                    f"{address} has the columns {', '.join(columns)}, not image and label: rename them, or correct"
                    f" {FIELD}.uri"
                )
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[image, "label"]):
                encoded, labels = (batch.column(column).to_pylist() for column in (image, "label"))
                for each, label in zip(encoded, labels, strict=True):
                    yield f"{address}, row {row}", part, label, each["bytes"]
                    row += 1
        except (pyarrow.ArrowException, KeyError, TypeError) as error:
            raise DatasetUnavailable(f"{address} is not a parquet file of images ({error}): copy it again") from error


def _named_in(data: bytes) -> list[str]:
    """Return the classes of a parquet file, in the words of Hugging Face's datasets; none where it does not say."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(pyarrow.BufferReader(data))
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(each) for each in features["label"]["names"]]
    # There is no such metadata, or it is another's.
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError):
        return []


def _decoded(data: bytes, address: str, spec: ImagesDataset) -> NDArray[np.uint8]:
    """Return an encoded image's pixels, uint8 (channels, height, width), brought to the manifest's size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            colours = image.convert("RGB")
        if spec.size is not None:
            colours = colours.resize((spec.size.width, spec.size.height), Image.Resampling.BILINEAR)
        pixels = np.ascontiguousarray(np.asarray(colours).transpose(2, 0, 1))
    # What Pillow raises for damaged files of several formats, and for those that would fill the memory.
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DatasetUnavailable(f"{address} is not a readable image ({error}): replace or remove it") from error
    if mode.startswith(("I", "F")):
        raise DatasetUnavailable(
            f"{address} has more than 8 bits a channel (Pillow's mode {mode}), which would be cut off: convert it"
        )
    if spec.channels == 3:
        return pixels
    if not (np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])):
        raise DatasetUnavailable(f"{address} has colours: set {FIELD}.channels to 3, or convert the images to grey")
    return pixels[:1]
