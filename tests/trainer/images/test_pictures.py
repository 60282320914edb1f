"""Users' own images: layouts, parts, splits, sizes and channels; the table on the node; what is said of broken ones."""

import io
import json
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import DatasetSpec, ImagesDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_store.s3 import S3Store
from nas_trainer.files import DatasetUnavailable
from nas_trainer.images import pictures, table
from nas_trainer.images.data import Images, load_images
from nas_trainer.images.table import TableRows
from nas_trainer.images.training import ImageTraining

NOWHERE = StoreLocation(folder="/nowhere")
HEIGHT, WIDTH = 6, 9
COUNTS = {"train": 20, "validation": 6, "test": 4}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def image(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) that tells its number: the first pixel's red."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0, 0] = number
    return pixels


def encoded(pixels: NDArray[np.uint8], form: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def written(part: str) -> list[tuple[int, int]]:
    """Return number and label of the images of a part, in the order in which they are written."""
    first = {"train": 0, "validation": 100, "test": 200}[part]
    return [(first + index, index % 2) for index in range(COUNTS[part])]


def write_folders(folder: Path, parts: tuple[str, ...] = ("train", "validation", "test")) -> None:
    for part in parts:
        for number, label in written(part):
            path = folder / part / ("cat", "dog")[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image(number)))


def write_parquet(folder: Path, parts: tuple[str, ...] = ("train", "validation", "test")) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    (folder / "data").mkdir(parents=True)
    for part in parts:
        rows = written(part)
        columns: dict[str, Any] = {
            "image": [{"bytes": encoded(image(number)), "path": f"{number}.png"} for number, _ in rows],
            "label": [label for _, label in rows],
        }
        known = {"huggingface": json.dumps({"info": {"features": features}})}
        whole = pyarrow.table(columns).replace_schema_metadata(known)
        half = len(rows) // 2
        for index, piece in enumerate((whole[:half], whole[half:])):
            pyarrow.parquet.write_table(piece, folder / "data" / f"{part}-0000{index}-of-00002.parquet")


def spec(uri: object, **changes: Any) -> DatasetSpec:
    return DatasetSpec(images=ImagesDataset.model_validate({"uri": str(uri), "classes": 2, **changes}))


def taken(images: Images, part: str) -> dict[int, int]:
    """Return the labels of the images trained on or held out, by their number; each must be the image as written."""
    rows = images.train_images if part == "train" else images.held_out_images
    labels = images.train_labels if part == "train" else images.held_out_labels
    assert isinstance(rows, TableRows) and images.scale is not None
    mean, deviation = images.scale
    pixels = (rows[:] * deviation + mean).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for each in pixels:
        assert np.array_equal(each, image(int(each[0, 0, 0])))
    return {int(each[0, 0, 0]): label for each, label in zip(pixels, labels.tolist(), strict=True)}


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("write", [write_folders, write_parquet])
def test_parts_that_have_names_are_used_as_such(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a")
    images = load_images(spec(tmp_path / "a"), NOWHERE)
    assert images.shape == (3, HEIGHT, WIDTH)
    assert images.class_names == ("cat", "dog")
    assert taken(images, "train") == dict(written("train"))
    assert taken(images, "held out") == dict(written("validation"))
    tested = load_images(spec(tmp_path / "a"), NOWHERE, test=True)
    assert taken(tested, "train") == dict(written("train") + written("validation"))
    assert taken(tested, "held out") == dict(written("test"))
    without = load_images(spec(tmp_path / "a"), NOWHERE, test=True, on_validation=False)
    assert taken(without, "train") == dict(written("train"))


@pytest.mark.parametrize("layout", ["train", "none", "parquet", "any parquet"])
def test_what_has_no_parts_is_split_alike_for_each_class(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "a"
    if layout == "parquet":
        write_parquet(folder, ("train",))
    elif layout == "any parquet":
        write_parquet(folder, ("train",))
        for path in sorted((folder / "data").iterdir()):
            path.rename(path.with_name(path.name.replace("train", "part")))
    else:
        write_folders(folder, ("train",))
        folder = folder if layout == "train" else folder / "train"
    shares = {"validation": "0.3", "test": "0.15"}
    images, tested = (load_images(spec(folder, **shares), NOWHERE, test=test) for test in (False, True))
    train, validation, test = taken(images, "train"), taken(images, "held out"), taken(tested, "held out")
    assert not train.keys() & validation.keys() and not (train.keys() | validation.keys()) & test.keys()
    assert train | validation | test == dict(written("train"))
    # 10 of each class: 3 and 1.5, which is 2.
    assert [Counter(each.values()) for each in (train, validation, test)] == [{0: 5, 1: 5}, {0: 3, 1: 3}, {0: 2, 1: 2}]
    assert taken(tested, "train") == train | validation
    again = load_images(spec(folder, **shares), NOWHERE)
    assert taken(again, "held out") == validation
    assert taken(load_images(spec(folder, splitSeed=1, **shares), NOWHERE), "held out") != validation


def test_what_systems_hide_beside_images_is_no_image(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for name in (".ipynb_checkpoints/1.png", "cat/._001.png", "cat/.DS_Store"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "README.md").write_text("about")
    assert taken(load_images(spec(tmp_path), NOWHERE), "train") == dict(written("train"))


def test_images_are_scaled_by_the_mean_and_deviation_of_those_trained_on(tmp_path: Path) -> None:
    write_folders(tmp_path)
    images = load_images(spec(tmp_path), NOWHERE)
    truth = np.stack([image(number) for number, _ in written("train")]).astype(np.float64)
    assert images.scale is not None
    assert images.scale[0] == pytest.approx(truth.mean(), rel=1e-12)
    assert images.scale[1] == pytest.approx(truth.std(), rel=1e-12)
    assert images.train_images[:].mean().abs() < 1e-5
    assert images.train_images[torch.tensor([3, 1])].shape == (2, 3, HEIGHT, WIDTH)


def test_a_size_is_what_all_images_are_brought_to(tmp_path: Path) -> None:
    write_folders(tmp_path)
    odd = tmp_path / "train" / "cat" / "000.png"
    odd.write_bytes(encoded(image(0, 12, 18)))
    with pytest.raises(
        DatasetUnavailable, match=r"\d\.png has 9x6 pixels, but .*000\.png has 18x12: set trainer\.data"
    ):
        load_images(spec(tmp_path), NOWHERE)
    images = load_images(spec(tmp_path, size={"height": 4, "width": 5}), NOWHERE)
    assert images.shape == (3, 4, 5)
    wanted = Image.fromarray(image(2)).resize((5, 4), Image.Resampling.BILINEAR)
    assert images.scale is not None
    found = images.train_images[1:2] * images.scale[1] + images.scale[0]
    np.testing.assert_allclose(found[0].permute(1, 2, 0), np.asarray(wanted), atol=1e-3)


def test_grey_images_have_one_channel_or_three(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        # Half of them are written with three channels that are equal.
        grey = image(number)[..., 0]
        path.write_bytes(encoded(grey if number < 4 else np.repeat(grey[..., None], 3, 2)))
    one, three = (load_images(spec(tmp_path, channels=channels), NOWHERE) for channels in (1, 3))
    assert (one.shape, three.shape) == ((1, HEIGHT, WIDTH), (3, HEIGHT, WIDTH))
    assert torch.equal(one.train_images[:], three.train_images[:][:, :1])
    assert one.scale == three.scale


# ---------------------------------------------------------------- what is wrong


def nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "1.png").write_bytes(encoded(image(1)))


def one_class(folder: Path) -> None:
    write_folders(folder)
    (folder / "train" / "dog").rename(folder / "dog")


def a_class_more(folder: Path) -> None:
    write_folders(folder)
    (folder / "train" / "emu").mkdir()
    (folder / "train" / "emu" / "1.png").write_bytes(encoded(image(1)))


def unknown_class(folder: Path) -> None:
    write_folders(folder)
    (folder / "test" / "dog").rename(folder / "test" / "dgo")


def damaged(folder: Path) -> None:
    write_folders(folder)
    path = folder / "train" / "cat" / "002.png"
    path.write_bytes(path.read_bytes()[:60])


def deep(folder: Path) -> None:
    write_folders(folder)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(folder / "train" / "cat" / "002.png")


def damaged_parquet(folder: Path) -> None:
    write_parquet(folder)
    (folder / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 not at all")


def table_of(**columns: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")

    return write


def labels(*values: Any) -> Callable[[Path], None]:
    return table_of(image=[{"bytes": encoded(image(1))} for _ in values], label=list(values))


def few(folder: Path) -> None:
    write_folders(folder, ("train",))
    for path in sorted((folder / "train" / "dog").iterdir())[2:]:
        path.unlink()


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: None, r"/a is missing: mount the volume .* or correct trainer\.dataset\.images\.uri"),
    "nothing": (nothing, r"has no images to train on: put <class>/\*\.png, train/<class>/\*\.png or train\*\.parquet"),
    "one class": (one_class, r"has 1 folder of training images \(cat\): trainer\.dataset\.images\.classes says 2"),
    "a class more": (a_class_more, r"has 3 folders of training images \(cat, dog, emu\): .*classes says 2"),
    "unknown class": (unknown_class, r"has images of 'dgo' in test/ but none to train on"),
    "damaged": (damaged, r"train/cat/002\.png is not a readable image \(.*\): replace or remove it"),
    "16 bits": (deep, r"train/cat/002\.png has more than 8 bits a channel \(Pillow's mode I;16\)"),
    "damaged parquet": (damaged_parquet, r"train-00001-of-00002\.parquet is not a parquet file of images"),
    "columns": (table_of(picture=[1], label=[1]), r"has the columns picture, label, not image and label"),
    "no bytes": (table_of(image=[{"path": "1.png"}], label=[0]), r"train\.parquet is not a parquet file of images"),
    "null bytes": (
        table_of(image=[{"bytes": None, "path": "1.png"}], label=[0]),
        r"train\.parquet, row 0 is not a readable image",
    ),
    "label": (labels(0, 1, 2), r"train\.parquet, row 2 has the label 2: .*classes says 2, so that labels are 0 to 1"),
    "no label": (labels(0, None), r"train\.parquet, row 1 has the label None"),
    "word": (labels("cat", "dog"), r"train\.parquet, row 0 has the label cat"),
    "one label": (labels(*[0] * 9), r"no training image has the label 1: correct trainer\.dataset\.images\.classes"),
    "no rows": (labels(), r"/a has no images to train on"),
    "few": (few, r"the class dog has 2 training images, of which 2 would be held out: give it more images, or lower"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_dataset_says_what_is_wrong_and_what_to_do(tmp_path: Path, name: str) -> None:
    damage, words = WRONG[name]
    damage(tmp_path / "a")
    with pytest.raises(DatasetUnavailable, match=words) as caught:
        load_images(spec(tmp_path / "a"), NOWHERE)
    assert "\n" not in str(caught.value)


def test_colours_are_not_thrown_away_in_silence(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(
        DatasetUnavailable, match=r"cat/000\.png has colours: set trainer\.dataset\.images\.channels to 3"
    ):
        load_images(spec(tmp_path, channels=1), NOWHERE)


@pytest.mark.parametrize(("part", "test"), [("validation", False), ("test", True)])
def test_a_part_that_is_needed_and_not_there_is_named(tmp_path: Path, part: str, test: bool) -> None:
    write_folders(tmp_path, ("train",))
    words = rf"has no {part} images: put {part}/<class>/\*\.png .* or set trainer\.dataset\.images\.{part}$"
    with pytest.raises(DatasetUnavailable, match=words):
        load_images(spec(tmp_path, **{part: "0"}), NOWHERE, test=test)
    load_images(spec(tmp_path, **{part: "0"}), NOWHERE, test=not test)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "ppm", "gif", "webp", "tiff"])
def test_whatever_a_disk_does_to_an_image_is_one_sentence(form: str) -> None:
    """An image that is cut or has a byte changed is read or refused; no other error gets through."""
    data = encoded(image(1, 8, 8), form)
    own = ImagesDataset(uri="/a", classes=2)
    broken = [data[:length] for length in range(0, len(data), 7)]
    broken += [data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] for at in range(0, len(data), 7)]
    refused = 0
    for each in broken:
        try:
            pictures._decoded(each, "here", own)
        except DatasetUnavailable as error:
            refused += str(error).startswith("here ")
    assert refused > 0


# ---------------------------------------------------------------- memory, and the copy on the node


def test_only_one_file_is_in_memory_at_a_time_and_pixels_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read: list[str] = []
    seen: list[int] = []

    def counted(*arguments: Any) -> Any:
        for each in pictures.pictures(*arguments):
            seen.append(len(read))
            yield each

    get = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return get(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    monkeypatch.setattr(table, "pictures", counted)
    images = load_images(spec(tmp_path / "a"), NOWHERE)
    assert seen == list(range(1, 31))  # each is read when its turn has come
    assert isinstance(images.train_images, TableRows)
    mapped = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}/nas-images-" in mapped and "pixels (deleted)" in mapped
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetUnavailable, match=r"do not fit into .*/nowhere .* or set trainer\.datasetCache"):
        load_images(spec(tmp_path / "a"), NOWHERE)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetUnavailable, match=r"trainer\.datasetCache .*/file/cache cannot be used"):
        load_images(spec(tmp_path / "a"), NOWHERE, cache=str(tmp_path / "file" / "cache"))


def test_a_node_makes_the_table_once_and_again_when_it_is_damaged_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "a")
    cache = tmp_path / "cache"
    made: list[Path] = []
    write = table._write

    def noted(path: Path, *rest: Any) -> Any:
        made.append(path)
        return write(path, *rest)

    monkeypatch.setattr(table, "_write", noted)
    results: list[Images] = []

    def child(**changes: Any) -> None:
        results.append(load_images(spec(tmp_path / "a", **changes), NOWHERE, cache=str(cache)))

    children = [threading.Thread(target=child) for _ in range(4)]
    for each in children:
        each.start()
    for each in children:
        each.join()
    assert len(made) == 1
    assert all(torch.equal(each.train_images[:], results[0].train_images[:]) for each in results)
    child(splitSeed=3, validation="0.4", augmentation=["Flip"])
    assert len(made) == 1
    pixels = next(cache.glob("*/pixels"))
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"?")
    child()
    assert len(made) == 2
    assert torch.equal(results[-1].train_images[:], results[0].train_images[:])
    child(size={"height": 4, "width": 4})
    assert len(made) == 3
    (tmp_path / "a" / "train" / "cat" / "000.png").write_bytes(encoded(image(50)))
    child()
    assert len(made) == 4
    assert 50 in taken(results[-1], "train")
    assert not list(cache.glob(".incoming*"))


@pytest.mark.s3
def test_images_in_s3_are_read_once_for_a_node(
    s3_location: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "source")
    store = S3Store(s3_location.model_copy(update={"prefix": "own/images/"}))
    for path in (tmp_path / "source").rglob("*.parquet"):
        store.put(path.name, path.read_bytes())
    seen: list[str] = []
    get = S3Store.get

    def noted(self: S3Store, key: str) -> bytes | None:
        seen.append(key)
        return get(self, key)

    monkeypatch.setattr(S3Store, "get", noted)
    own, where = spec(f"s3://{s3_location.bucket}/own/images"), StoreLocation(s3=s3_location)
    plain = load_images(own, where)
    assert taken(plain, "train") == dict(written("train"))
    assert len(seen) == 7  # six files, and the first once more for the names of the classes
    for _ in range(2):
        kept = load_images(own, where, cache=str(tmp_path / "cache"))
        assert torch.equal(kept.train_images[:], plain.train_images[:])
    assert len(seen) == 14


def test_images_larger_than_cifars_are_measured_in_smaller_batches(tmp_path: Path) -> None:
    write_folders(tmp_path)
    images = load_images(spec(tmp_path, size={"height": 512, "width": 1024}), NOWHERE)
    network = ConvolutionalArchitecture.parse_short("1x1:1/4x4")
    training = ImageTraining(network, images, OptimizerSpec(), 4, 0, torch.device("cpu"))
    assert training._held_out_batch == math.prod((2048, 32, 32)) // (512 * 1024)
    training.run(1, lambda: None)
    assert training.progress.metrics[0] * 6 == pytest.approx(round(training.progress.metrics[0] * 6))
