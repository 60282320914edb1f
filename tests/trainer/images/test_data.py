"""Datasets of images: layouts, splits, whitening, the copy on the node, and what is said of broken ones."""

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset
from nas_store import open_store
from nas_store.s3 import S3Store
from nas_trainer.files import DatasetUnavailable, open_files
from nas_trainer.images import data
from nas_trainer.images.cifar import Labelled
from nas_trainer.images.data import fixed_order, load_images

NOWHERE = StoreLocation(folder="/nowhere")
TRAIN, TEST = 250, 50
Write = Callable[[Path, int], None]


def labelled(classes: int, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (n, 3, 32, 32) that differ, with every class among their labels."""
    rng = np.random.default_rng(len(part))
    count = TRAIN if part == "train" else TEST
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    # Red is bright, blue is dark: a mixed-up layout would show.
    pixels[:, 0] |= 128
    pixels[:, 2] &= 63
    return pixels, np.arange(count) * 7 % classes


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "png")
    return out.getvalue()


def write_binary(folder: Path, classes: int) -> None:
    folder = folder / "cifar-batches-bin"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        pixels, labels = labelled(classes, part)
        columns = [labels[:, None].astype(np.uint8), pixels.reshape(len(pixels), -1)]
        if classes == 100:
            columns.insert(0, np.full((len(pixels), 1), 99, np.uint8))  # the coarse label, which nobody wants
        records = np.concatenate(columns, 1)
        if classes == 100:
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        elif part == "test":
            (folder / "test_batch.bin").write_bytes(records.tobytes())
        else:
            for number, batch in enumerate(np.split(records, 5), 1):
                (folder / f"data_batch_{number}.bin").write_bytes(batch.tobytes())


def write_parquet(folder: Path, classes: int) -> None:
    for part in ("train", "test"):
        pixels, labels = labelled(classes, part)
        image, label = ("img", "label") if classes == 10 else ("image", "fine_label")
        table = pyarrow.table(
            {
                image: [{"bytes": png(each), "path": None} for each in pixels],
                "coarse_label": [0] * len(labels),
                label: labels,
            }
        )
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        half = len(labels) // 2
        for number, piece in enumerate((table[:half], table[half:])):
            pyarrow.parquet.write_table(piece, folder / "plain_text" / f"{part}-0000{number}-of-00002.parquet")


def write_images(folder: Path, classes: int) -> None:
    for part in ("train", "test"):
        pixels, labels = labelled(classes, part)
        for index, (each, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / part / f"class{label:02}" / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(each))


LAYOUTS: dict[str, Write] = {"binary": write_binary, "parquet": write_parquet, "images": write_images}


def spec(uri: object, classes: int = 10) -> DatasetSpec:
    dataset = CifarDataset(uri=str(uri), validation_images=100)
    return DatasetSpec(cifar10=dataset) if classes == 10 else DatasetSpec(cifar100=dataset)


def rows(images: torch.Tensor, labels: torch.Tensor, classes: int, part: str) -> list[int]:
    """Return which of the written images each of these is, whitened; its label must be that image's."""
    pixels, truth = labelled(classes, part)
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1)).double()
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)
    distance, row = torch.cdist(images.flatten(1).double(), flat).min(1)
    assert distance.max() < 1e-2
    assert labels.tolist() == truth[row].tolist()
    return row.tolist()


def stored(layout: str, classes: int, part: str) -> NDArray[np.int64]:
    """Return which of the written images comes first, second and so on in the files."""
    labels = labelled(classes, part)[1]
    return np.argsort(labels, kind="stable") if layout == "images" else np.arange(len(labels))


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_split_and_whitened(tmp_path: Path, layout: str, classes: int) -> None:
    LAYOUTS[layout](tmp_path, classes)
    images = load_images(spec(tmp_path, classes), NOWHERE)
    assert images.train_images.shape == (150, 3, 32, 32)
    assert images.held_out_images.shape == (100, 3, 32, 32)
    assert images.classes == classes
    assert images.augmented
    both = torch.cat([images.train_images[:], images.held_out_images[:]])
    labels = torch.cat([images.train_labels, images.held_out_labels])
    assert rows(both, labels, classes, "train") == stored(layout, classes, "train")[fixed_order(TRAIN)].tolist()
    assert images.train_images[:].mean((1, 2, 3)).abs().max() < 1e-5
    assert (images.train_images[:].std((1, 2, 3), correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("layout", "classes"), [("binary", 10), ("binary", 100), ("parquet", 10), ("parquet", 100), ("images", 10)]
)
def test_a_final_test_knows_the_names_of_the_classes(tmp_path: Path, layout: str, classes: int) -> None:
    LAYOUTS[layout](tmp_path, classes)
    numbers, names = (tuple(form.format(each) for each in range(classes)) for form in ("{}", "class{:02}"))
    assert load_images(spec(tmp_path, classes), NOWHERE).class_names == ()
    # Binary and parquet files may say nothing; folders have names.
    assert load_images(spec(tmp_path, classes), NOWHERE, test=True).class_names == (
        names if layout == "images" else numbers
    )
    meta = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    if layout == "binary":
        (tmp_path / "cifar-batches-bin" / meta).write_text("\n".join(names) + "\n\n")
    elif layout == "parquet":
        features = {"label" if classes == 10 else "fine_label": {"names": names, "_type": "ClassLabel"}}
        for path in (tmp_path / "plain_text").glob("test*"):
            table = pyarrow.parquet.read_table(path)
            known = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            pyarrow.parquet.write_table(known, path)
    assert load_images(spec(tmp_path, classes), NOWHERE, test=True).class_names == names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_final_test_trains_on_all_but_the_test_images(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, 10)
    images = load_images(spec(tmp_path), NOWHERE, test=True)
    assert (
        rows(images.train_images[:], images.train_labels, 10, "train")
        == stored(layout, 10, "train")[fixed_order(TRAIN)].tolist()
    )
    assert rows(images.held_out_images[:], images.held_out_labels, 10, "test") == stored(layout, 10, "test").tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_search_does_not_need_the_test_images_and_a_final_test_says_so(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, 10)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and "test" in path.relative_to(tmp_path).as_posix():
            path.unlink()
    assert len(load_images(spec(tmp_path), NOWHERE).train_labels) == 150
    with pytest.raises(DatasetUnavailable, match=r"no test images: put test_batch\.bin"):
        load_images(spec(tmp_path), NOWHERE, test=True)


def test_an_image_of_one_colour_is_whitened_to_zero() -> None:
    stored = Labelled(np.full((2, 3, 32, 32), 7, np.uint8), np.zeros(2, np.int64))
    assert torch.equal(data._whitened(stored, np.arange(2))[0], torch.zeros(2, 3, 32, 32))


def damage_missing(folder: Path) -> None:
    write_binary(folder, 10)
    (folder / "cifar-batches-bin" / "data_batch_3.bin").unlink()


def damage_short(folder: Path) -> None:
    write_binary(folder, 10)
    path = folder / "cifar-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])


def damage_label(folder: Path) -> None:
    write_binary(folder, 10)
    path = folder / "cifar-batches-bin" / "data_batch_3.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])


def damage_parquet(folder: Path) -> None:
    write_parquet(folder, 10)
    (folder / "plain_text" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 not at all")


def damage_columns(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"picture": [1], "label": [1]}), folder / "train.parquet")


def damage_image(folder: Path) -> None:
    write_images(folder, 10)
    path = next((folder / "train" / "class03").iterdir())
    path.write_bytes(path.read_bytes()[:60])


def damage_size(folder: Path) -> None:
    write_images(folder, 10)
    next((folder / "train" / "class03").iterdir()).write_bytes(png(np.zeros((3, 16, 32), np.uint8)))


def damage_class(folder: Path) -> None:
    write_images(folder, 10)
    (folder / "train" / "class03").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: None, "is missing: mount the volume"),
        (lambda folder: folder.mkdir(), r"has no training images: put data_batch_1\.bin to data_batch_5\.bin, train\*"),
        (damage_missing, r"data_batch_3\.bin is missing: put data_batch_1\.bin to data_batch_5\.bin"),
        (damage_short, r"data_batch_3\.bin has 153,649 bytes, not a multiple of 3,073"),
        (damage_label, "labels outside of 0 to 9"),
        (damage_parquet, r"train-00000-of-00002\.parquet is not a parquet file"),
        (damage_columns, "has the columns picture, label, not img or image, and label"),
        (damage_image, r"class03/\d+\.png is not a readable image"),
        (damage_size, r"class03/\d+\.png has 32x16 pixels, not 32x32"),
        (damage_class, "has 9 folders of images in train/, not one for each of 10 classes"),
    ],
    ids=["nothing", "empty", "missing", "short", "label", "parquet", "columns", "image", "size", "class"],
)
def test_a_broken_dataset_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(tmp_path / "cifar")
    with pytest.raises(DatasetUnavailable, match=words) as caught:
        load_images(spec(tmp_path / "cifar"), NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write_binary(tmp_path, 10)
    (tmp_path / "cifar-batches-bin" / "data_batch_2.bin").chmod(0)
    with pytest.raises(DatasetUnavailable, match=r"data_batch_2\.bin cannot be read \(Permission denied\)"):
        load_images(spec(tmp_path), NOWHERE)


def test_more_images_to_validate_than_there_are_is_said(tmp_path: Path) -> None:
    write_binary(tmp_path, 10)
    dataset = DatasetSpec(cifar10=CifarDataset(uri=str(tmp_path), validation_images=250))
    with pytest.raises(
        DatasetUnavailable, match=r"250 training images, and trainer\.dataset\.cifar10\.validationImages"
    ):
        load_images(dataset, NOWHERE)


# ---------------------------------------------------------------- digits


def test_the_digits_test_images_are_those_that_no_child_sees() -> None:
    dataset = DatasetSpec(digits=DigitsDataset(training_images=1000))
    search, final = load_images(dataset, NOWHERE), load_images(dataset, NOWHERE, test=True)
    assert len(final.train_labels) == 1397 and len(final.held_out_labels) == 400
    seen = torch.cat([search.train_labels, search.held_out_labels])
    assert torch.equal(final.train_labels, seen)
    assert final.train_images[:].mean().abs() < 1e-5
    without = load_images(dataset, NOWHERE, test=True, on_validation=False)
    assert torch.equal(without.train_images[:], search.train_images[:])
    assert torch.equal(without.held_out_labels, final.held_out_labels)
    with pytest.raises(DatasetUnavailable, match=r"lower trainer\.dataset\.digits\.trainingImages"):
        load_images(DatasetSpec(digits=DigitsDataset(training_images=1400)), NOWHERE, test=True)


# ---------------------------------------------------------------- S3, and its copy on the node


@pytest.fixture
def bucket(s3_location: S3Location, tmp_path: Path) -> str:
    """A bucket with a small CIFAR-10; returns its address."""
    write_binary(tmp_path / "source", 10)
    store = S3Store(s3_location.model_copy(update={"prefix": "data/cifar10/"}))
    for path in (tmp_path / "source").rglob("*.bin"):
        store.put(path.name, path.read_bytes())
    return f"s3://{s3_location.bucket}/data/cifar10/"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are downloaded."""
    seen: list[str] = []
    get = S3Store.get

    def counted(self: S3Store, key: str) -> bytes | None:
        seen.append(key)
        return get(self, key)

    monkeypatch.setattr(S3Store, "get", counted)
    return seen


@pytest.mark.s3
def test_a_dataset_in_s3_is_read_from_the_experiments_server(bucket: str, s3_location: S3Location) -> None:
    store = StoreLocation(s3=s3_location)
    images = load_images(spec(bucket), store)
    assert len(images.train_labels) == 150
    open_store(StoreLocation(s3=s3_location.model_copy(update={"prefix": "data/cifar10/"}))).put(
        "data_batch_2.bin", b"x"
    )
    with pytest.raises(DatasetUnavailable, match=r"s3://.*/data/cifar10/data_batch_2\.bin has 1 bytes"):
        load_images(spec(bucket), store)
    with pytest.raises(DatasetUnavailable, match=r"nothing-here has no training images"):
        load_images(spec(f"s3://{s3_location.bucket}/nothing-here"), store)
    with pytest.raises(DatasetUnavailable, match=r"cannot be read \(BucketNotFound\)"):
        load_images(spec("s3://no-such-bucket-at-all/x"), store)


@pytest.mark.s3
def test_a_node_downloads_a_dataset_once(
    bucket: str, s3_location: S3Location, tmp_path: Path, downloads: list[str]
) -> None:
    store, cache = StoreLocation(s3=s3_location), str(tmp_path / "cache")
    results = []

    def child() -> None:
        results.append(load_images(spec(bucket), store, cache=cache))

    children = [threading.Thread(target=child) for _ in range(4)]
    for each in children:
        each.start()
    for each in children:
        each.join()
    assert sorted(downloads) == [f"data_batch_{number}.bin" for number in range(1, 6)]
    assert len(results) == 4
    assert all(torch.equal(each.train_images[:], results[0].train_images[:]) for each in results)
    assert not [path for path in Path(cache).iterdir() if path.name.startswith(".incoming")]

    # The test images are another copy, made when they are wanted.
    load_images(spec(bucket), store, cache=cache, test=True)
    assert downloads[5:] == ["test_batch.bin"]


@pytest.mark.s3
@pytest.mark.parametrize("damage", ["content", "file", "digests"])
def test_a_damaged_copy_is_downloaded_again(
    bucket: str, s3_location: S3Location, tmp_path: Path, downloads: list[str], damage: str
) -> None:
    store, cache = StoreLocation(s3=s3_location), tmp_path / "cache"
    first = load_images(spec(bucket), store, cache=str(cache))
    copy = next(path for path in cache.iterdir() if path.is_dir())
    if damage == "content":
        path = copy / "1"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        (copy / {"file": "2", "digests": "digests.json"}[damage]).unlink()
    again = load_images(spec(bucket), store, cache=str(cache))
    assert len(downloads) == 10
    assert torch.equal(first.train_images[:], again.train_images[:])


@pytest.mark.s3
def test_a_dataset_that_changes_is_downloaded_anew(
    bucket: str, s3_location: S3Location, tmp_path: Path, downloads: list[str]
) -> None:
    store, cache = StoreLocation(s3=s3_location), str(tmp_path / "cache")
    first = load_images(spec(bucket), store, cache=cache)
    changed = S3Store(s3_location.model_copy(update={"prefix": "data/cifar10/"}))
    one, two = (changed.get(f"data_batch_{number}.bin") for number in (1, 2))
    assert one is not None and two is not None
    changed.put("data_batch_1.bin", two)  # the same size, another content
    again = load_images(spec(bucket), store, cache=cache)
    assert not torch.equal(first.train_images[:], again.train_images[:])


@pytest.mark.s3
def test_a_cache_that_cannot_be_written_is_named(bucket: str, s3_location: S3Location, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetUnavailable, match=r"trainer\.datasetCache .*/file/cache cannot be used"):
        load_images(spec(bucket), StoreLocation(s3=s3_location), cache=str(tmp_path / "file" / "cache"))


def test_a_folder_needs_no_copy(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar", 10)
    files = open_files(str(tmp_path / "cifar"), NOWHERE, str(tmp_path / "cache"), "field")
    assert len(files.read(files.names())) == 6
    assert not (tmp_path / "cache").exists()
