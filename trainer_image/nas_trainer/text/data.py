"""Text as one long row of numbers: what a language model is trained on and measured on (paper section 4.2).

The layout is that of Penn Treebank: a file each for training, validation and test, one sentence a line. Words are what
blanks separate; a line's end is <eos>, as a word and as a character alike. The vocabulary is that of the training
text. No child of a search reads the test set.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nas_api.child import StoreLocation
from nas_api.experiment import TextDataset
from nas_trainer.files import DatasetUnavailable, open_files

UNKNOWN = "<unk>"
END = "<eos>"
FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
_FIELD = "trainer.dataset.text.uri"
# Of the embedded text, for validation and for the test.
_HELD_OUT_SHARE = 0.1
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[a-z]+|N|[^\w\s]")


@dataclass(frozen=True)
class Text:
    """A split text: tokens int64 (n,), each an index into the vocabulary."""

    train: Tensor
    held_out: Tensor
    """The validation text; the test text where both others are trained on."""
    vocabulary: tuple[str, ...]
    unit: Literal["word", "character"] = "word"
    """What a token is."""


def load_text(
    spec: TextDataset,
    store: StoreLocation,
    *,
    cache: str | None = None,
    test: bool = False,
    on_validation: bool = True,
) -> Text:
    """Return the text that a manifest names.

    Args:
        spec: which text, read as what.
        store: where the experiment's objects are; a text in S3 is read from the same server.
        cache: folder of this node for copies of datasets in S3.
        test: hold the test text out; otherwise it is not read.
        on_validation: whether a test trains on the validation text as well.

    Raises:
        DatasetUnavailable: a file is missing, no UTF-8, or too short.
        StoreUnreachable: the S3 server does not answer.
    """
    train, validation, *tests = _embedded() if spec.uri is None else _files(spec.uri, store, cache, test)
    split = _words if spec.level == "word" else _characters
    tokens = list(split(train))
    vocabulary = _vocabulary(tokens, spec.vocabulary)
    held_out = list(split(tests[0] if test else validation))
    if test and on_validation:
        tokens += split(validation)
    if min(len(tokens), len(held_out)) < 2:
        raise DatasetUnavailable(f"the text has {len(tokens)} and {len(held_out)} tokens: correct {_FIELD}")
    return Text(_numbers(tokens, vocabulary), _numbers(held_out, vocabulary), vocabulary, spec.level)


def _files(uri: str, store: StoreLocation, cache: str | None, test: bool) -> list[list[str]]:
    texts = []
    names = FILES if test else FILES[:2]
    for name, data in zip(names, open_files(uri, store, cache, _FIELD).read(names), strict=True):
        try:
            texts.append(data.decode().splitlines())
        except UnicodeDecodeError as error:
            raise DatasetUnavailable(f"{uri}/{name} is not UTF-8 ({error}): correct {_FIELD}") from error
    return texts


def _embedded() -> list[list[str]]:
    """Return the lines of the text that Python ships, prepared as Penn Treebank is: lower case, every number N.

    Topics are dealt out in the order of their names' SHA-256, so that the split is the same everywhere.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DatasetUnavailable(
            f"this Python has no pydoc_data.topics: use the trainer's image, or set {_FIELD}"
        ) from error
    ordered = sorted(topics, key=lambda topic: hashlib.sha256(topic.encode()).digest())
    share = _HELD_OUT_SHARE * sum(map(len, topics.values()))
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen = 0
    for topic in ordered:
        # Test first, then validation: what both leave is for training.
        part = parts[2] if seen < share else parts[1] if seen < 2 * share else parts[0]
        seen += len(topics[topic])
        for line in topics[topic].lower().splitlines():
            words = _WORD.findall(_NUMBER.sub("N", line))
            # A row of asterisks or dashes under a title tells nothing.
            if any(word.isalpha() for word in words):
                part.append(" ".join(words))
    return list(parts)


def _words(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from line.split()
        yield END


def _characters(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from line.strip()
        yield END


def _vocabulary(tokens: Sequence[str], size: int) -> tuple[str, ...]:
    """Return <unk>, then the most frequent others; of equally frequent ones those that come first in the alphabet."""
    counts = Counter(tokens)
    counts.pop(UNKNOWN, None)
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return (UNKNOWN, *ordered[: size - 1])


def _numbers(tokens: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return torch.tensor([numbers.get(token, 0) for token in tokens], dtype=torch.int64)
