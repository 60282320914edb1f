"""Texts: Penn Treebank's layout, the vocabulary, words and characters, the text that Python ships."""

from pathlib import Path

import pytest

from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import TextDataset
from nas_store import open_store
from nas_trainer.files import DatasetUnavailable
from nas_trainer.text.data import Text, load_text

NOWHERE = StoreLocation(folder="/nowhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ptb.train.txt").write_text(" a b a \n a c <unk> \n")
    (tmp_path / "ptb.valid.txt").write_text(" a d \n")
    (tmp_path / "ptb.test.txt").write_text(" b b b \n")
    return tmp_path


def read(text: Text) -> tuple[str, str]:
    """Return training and held-out text as words again."""
    train, held_out = (" ".join(text.vocabulary[token] for token in part) for part in (text.train, text.held_out))
    return train, held_out


def test_words_are_those_of_penn_treebank_s_files(folder: Path) -> None:
    text = load_text(TextDataset(uri=str(folder)), NOWHERE)
    # The most frequent first, and of equals the first in the alphabet; what the training text has not is <unk>.
    assert text.vocabulary == ("<unk>", "a", "<eos>", "b", "c")
    assert read(text) == ("a b a <eos> a c <unk> <eos>", "a <unk> <eos>")


def test_characters_are_those_of_the_lines(folder: Path) -> None:
    text = load_text(TextDataset(uri=str(folder), level="character"), NOWHERE)
    assert read(text)[0] == "a   b   a <eos> a   c   < u n k > <eos>"
    assert read(text)[1] == "a   <unk> <eos>"


def test_only_the_most_frequent_words_are_kept(folder: Path) -> None:
    (folder / "ptb.train.txt").write_text("".join(f"{'w' * n} \n" * n for n in range(1, 20)))
    text = load_text(TextDataset(uri=str(folder), vocabulary=10), NOWHERE)
    assert len(text.vocabulary) == 10
    assert text.vocabulary[:3] == ("<unk>", "<eos>", "w" * 19)
    assert read(text)[0].split()[0] == "<unk>"


def test_the_test_text_is_held_out_only_in_the_end_and_gives_no_words(folder: Path) -> None:
    (folder / "ptb.test.txt").unlink()
    load_text(TextDataset(uri=str(folder)), NOWHERE)  # it is not read
    (folder / "ptb.test.txt").write_text(" b e b \n")
    text = load_text(TextDataset(uri=str(folder)), NOWHERE, test=True)
    assert text.vocabulary == ("<unk>", "a", "<eos>", "b", "c")
    assert read(text) == ("a b a <eos> a c <unk> <eos> a <unk> <eos>", "b <unk> b <eos>")
    text = load_text(TextDataset(uri=str(folder)), NOWHERE, test=True, on_validation=False)
    assert read(text) == ("a b a <eos> a c <unk> <eos>", "b <unk> b <eos>")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("ptb.train.txt", None, "ptb.train.txt"),
        ("ptb.train.txt", b"\xff\n", "is not UTF-8"),
        ("ptb.valid.txt", b"", "tokens: correct trainer.dataset.text.uri"),
    ],
)
def test_a_broken_text_is_said_to_be(folder: Path, name: str, data: bytes | None, words: str) -> None:
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(DatasetUnavailable, match=words):
        load_text(TextDataset(uri=str(folder)), NOWHERE)


@pytest.mark.parametrize("level", ["word", "character"])
def test_python_s_own_text_is_there_without_a_download_and_always_the_same(level: str) -> None:
    text, again = (load_text(TextDataset.model_validate({"level": level}), NOWHERE) for _ in range(2))
    assert text.vocabulary == again.vocabulary
    assert text.train.equal(again.train) and text.held_out.equal(again.held_out)
    assert len(text.train) > 3 * len(text.held_out) > 20_000
    assert (text.held_out == 0).float().mean() < 0.05
    tested = load_text(TextDataset.model_validate({"level": level}), NOWHERE, test=True)
    assert tested.train[: len(text.train)].equal(text.train)
    assert tested.train[len(text.train) :].equal(text.held_out)
    assert len(tested.held_out) > 5000 and not tested.held_out[:1000].equal(text.held_out[:1000])


def test_words_of_python_s_text_look_like_penn_treebank_s() -> None:
    words = read(load_text(TextDataset(), NOWHERE))[0].split()
    assert all(word == word.lower() for word in words if word != "N")
    assert not any(character.isdigit() for word in words for character in word)


@pytest.mark.s3
def test_a_text_is_read_from_the_stores_own_server(s3_location: S3Location, folder: Path) -> None:
    server = open_store(StoreLocation(s3=s3_location.model_copy(update={"prefix": "text/"})))
    for path in folder.iterdir():
        server.put(path.name, path.read_bytes())
    text = load_text(TextDataset(uri=f"s3://{s3_location.bucket}/text"), StoreLocation(s3=s3_location))
    assert read(text)[1] == "a <unk> <eos>"
