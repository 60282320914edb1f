"""CIFAR-10 and CIFAR-100 in the three layouts that people have them in; which one is seen from the files' names.

- binary: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or ``train.bin`` and ``test.bin``;
- parquet: ``train*.parquet`` and ``test*.parquet`` with the columns ``img`` or ``image`` (a struct with ``bytes``) and
  ``label`` or ``fine_label``;
- a folder of images: ``train/<class>/*.png`` and ``test/<class>/*.png``; classes are numbered by their sorted names.

Each may lie in a folder of its own below the address.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas_api.experiment import CifarDataset
from nas_trainer.files import DatasetUnavailable, Files

Part = Literal["train", "test"]
_SIDE = CifarDataset.side
_SHAPE = (CifarDataset.channels, _SIDE, _SIDE)
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm")
_IMAGE_COLUMNS = ("img", "image")


@dataclass(frozen=True)
class Labelled:
    """Images as they are stored: pixels uint8 (n, 3, 32, 32), red, green and blue; labels int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_cifar(files: Files, classes: int, part: Part) -> Labelled:
    """Return one part of a dataset, in the order of the files.

    Args:
        files: where it is.
        classes: 10 or 100.
        part: the training or the test images; the other's files are not read.

    Raises:
        DatasetUnavailable: no layout is recognised, a file is missing, or one is broken.
    """
    names = files.names()
    layouts: tuple[tuple[Callable[[list[str], int, Part], list[str]], _Reader], ...] = (
        (_binary_files, _read_binary),
        (_parquet_files, _read_parquet),
        (_image_files, _read_images),
    )
    for find, read in layouts:
        # The training images say which layout it is, also where the test images are wanted.
        if not find(names, classes, "train"):
            continue
        chosen = find(names, classes, part)
        if not chosen:
            raise DatasetUnavailable(f"{files.address} has no test images: {_cure(classes, 'test')}")
        missing = sorted(set(chosen) - set(names))
        if missing:
            raise DatasetUnavailable(f"{files.address}/{missing[0]} is missing: {_cure(classes, part)}")
        labelled = read(files, chosen, classes)
        if labelled.labels.size == 0 or not 0 <= labelled.labels.min() <= labelled.labels.max() < classes:
            raise DatasetUnavailable(
                f"{files.address} has labels outside of 0 to {classes - 1}: {_cure(classes, part)}"
            )
        return labelled
    raise DatasetUnavailable(f"{files.address} has no training images: {_cure(classes, 'train')}")


def class_names(files: Files, classes: int) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels, as the files have them; their numbers otherwise.

    Args:
        files: where the dataset is.
        classes: 10 or 100.

    Raises:
        DatasetUnavailable: a file cannot be read.
    """
    names = files.names()
    if binary := _binary_files(names, classes, "train"):
        found = _binary_class_names(files, PurePosixPath(binary[0]).parent, classes)
    elif parquet := _parquet_files(names, classes, "test"):
        found = _parquet_class_names(files, parquet[0], classes)
    else:
        found = _folders(_image_files(names, classes, "train"))
    return tuple(found) if len(found) == classes else tuple(map(str, range(classes)))


_Reader = Callable[[Files, list[str], int], Labelled]


def _cure(classes: int, part: Part) -> str:
    binary = {
        (10, "train"): "data_batch_1.bin to data_batch_5.bin",
        (10, "test"): "test_batch.bin",
        (100, "train"): "train.bin",
        (100, "test"): "test.bin",
    }[classes, part]
    return (
        f"put {binary}, {part}*.parquet or {part}/<class>/*.png of CIFAR-{classes} there, or correct"
        f" trainer.dataset.cifar{classes}.uri"
    )


# ---------------------------------------------------------------- binary


def _binary_files(names: list[str], classes: int, part: Part) -> list[str]:
    """Return the files that there must be when there is any of the binary version's, whether or not they exist."""
    if classes == 10:
        wanted = [f"data_batch_{number}.bin" for number in range(1, 6)] if part == "train" else ["test_batch.bin"]
    else:
        wanted = [f"{part}.bin"]
    found = next((PurePosixPath(name) for name in names if PurePosixPath(name).name in wanted), None)
    return [] if found is None else [(found.parent / name).as_posix() for name in wanted]


def _read_binary(files: Files, names: list[str], classes: int) -> Labelled:
    # A record is the label (CIFAR-100: the coarse one, then the fine one) and all red, all green and all blue pixels.
    before = 1 if classes == 10 else 2
    record = before + math.prod(_SHAPE)
    parts = []
    for name, data in zip(names, files.read(names), strict=True):
        if not data or len(data) % record:
            raise DatasetUnavailable(
                f"{files.address}/{name} has {len(data):,} bytes, not a multiple of {record:,}: copy it again"
            )
        parts.append(np.frombuffer(data, dtype=np.uint8).reshape(-1, record))
    records = np.concatenate(parts)
    return Labelled(records[:, before:].reshape(-1, *_SHAPE), records[:, before - 1].astype(np.int64))


def _binary_class_names(files: Files, folder: PurePosixPath, classes: int) -> list[str]:
    name = (folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")).as_posix()
    if name not in files.names():
        return []
    return files.read([name])[0].decode(errors="replace").split()


# ---------------------------------------------------------------- parquet


def _parquet_files(names: list[str], classes: int, part: Part) -> list[str]:
    return [
        name for name in names if PurePosixPath(name).suffix == ".parquet" and PurePosixPath(name).name.startswith(part)
    ]


def _read_parquet(files: Files, names: list[str], classes: int) -> Labelled:
    # Imported where it is needed: it takes longer than a small child's training.
    import pyarrow
    import pyarrow.parquet

    pixels, labels = [], []
    for name, data in zip(names, files.read(names), strict=True):
        address = f"{files.address}/{name}"
        try:
            file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
            columns = file.schema_arrow.names
            image = next((column for column in _IMAGE_COLUMNS if column in columns), None)
            label = "label" if classes == 10 else "fine_label"
            if image is None or label not in columns:
                raise DatasetUnavailable(
                    f"{address} has the columns {', '.join(columns)}, not img or image, and {label}:"
                    f" {_cure(classes, 'train')}"
                )
            table = file.read(columns=[image, label])
            encoded = [row["bytes"] for row in table.column(image).to_pylist()]
            labels += table.column(label).to_pylist()
        except (pyarrow.ArrowException, KeyError, TypeError) as error:
            raise DatasetUnavailable(f"{address} is not a parquet file of images ({error}): copy it again") from error
        pixels += [_decoded(one, f"{address}, row {row}") for row, one in enumerate(encoded)]
    return _labelled(pixels, labels)


def _parquet_class_names(files: Files, name: str, classes: int) -> list[str]:
    """Return what the schema says in the words of Hugging Face's datasets, if it does."""
    import pyarrow
    import pyarrow.parquet

    label = "label" if classes == 10 else "fine_label"
    try:
        schema = pyarrow.parquet.read_schema(pyarrow.BufferReader(files.read([name])[0]))
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(each) for each in features[label]["names"]]
    # There is no such metadata, or it is another's.
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError):
        return []


# ---------------------------------------------------------------- a folder of images


def _image_files(names: list[str], classes: int, part: Part) -> list[str]:
    paths = [PurePosixPath(name) for name in names]
    return [
        path.as_posix()
        for path in paths
        if path.suffix.lower() in _IMAGE_SUFFIXES and len(path.parts) >= 3 and path.parts[-3] == part
    ]


def _read_images(files: Files, names: list[str], classes: int) -> Labelled:
    numbers = {folder: number for number, folder in enumerate(_folders(names))}
    if len(numbers) != classes:
        raise DatasetUnavailable(
            f"{files.address} has {len(numbers)} folders of images in {PurePosixPath(names[0]).parts[-3]}/, not one for"
            f" each of {classes} classes: {_cure(classes, 'train')}"
        )
    contents = files.read(names)
    pixels = [_decoded(data, f"{files.address}/{name}") for name, data in zip(names, contents, strict=True)]
    return _labelled(pixels, [numbers[PurePosixPath(name).parent.name] for name in names])


def _folders(names: list[str]) -> list[str]:
    """Return the names of the classes: of the folders that the images are in."""
    return sorted({PurePosixPath(name).parent.name for name in names})


def _decoded(data: bytes, address: str) -> NDArray[np.uint8]:
    """Return an encoded image's pixels, uint8 (3, 32, 32)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    # What Pillow raises for damaged files of several formats.
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise DatasetUnavailable(f"{address} is not a readable image ({error}): copy it again") from error
    pixels = pixels.transpose(2, 0, 1)
    if pixels.shape != _SHAPE:
        raise DatasetUnavailable(
            f"{address} has {pixels.shape[2]}x{pixels.shape[1]} pixels, not {_SIDE}x{_SIDE}: these are not CIFAR images"
        )
    return pixels


def _labelled(pixels: Sequence[NDArray[np.uint8]], labels: Sequence[int]) -> Labelled:
    stacked = np.stack(pixels) if pixels else np.zeros((0, *_SHAPE), np.uint8)
    return Labelled(stacked, np.array(labels, dtype=np.int64))
