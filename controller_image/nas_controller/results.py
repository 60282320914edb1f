"""The results of a launch's samples, fetched from the store beside the search's thread."""

from collections.abc import Callable, Container, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass, field

from nas_api import names
from nas_api.child import MAX_MODEL_BYTES, MAX_RESULT_BYTES
from nas_controller.executor import End
from nas_controller.launches import Question
from nas_log.best import TRAINED
from nas_store import Store
from nas_store.errors import StoreError, TooLarge


@dataclass(frozen=True)
class Answer:
    """What the store has said."""

    question: Question
    results: Mapping[int, bytes | TooLarge | None]
    """By sample: its result object, None when there is none, or that it is too large to be read."""
    files: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Of those that are the final training's test: SHA-256 in hex of what they have left, by its name in ``best/``."""
    checkpoints: frozenset[str] = frozenset()
    """Keys of the checkpoints that there are; asked for only where the launch came to its deadline."""
    error: StoreError | None = None
    """Why there is no answer; the results are not complete then."""


@dataclass(frozen=True)
class Broken:
    """There will be no answer, for a reason that nobody foresaw."""

    error: BaseException


class Results:
    """Asks the store in other threads, and posts one answer for each question."""

    def __init__(self, store: Store, pool: futures.Executor, post: Callable[[Answer | Broken], None]) -> None:
        self._store = store
        self._pool = pool
        self._post = post

    def ask(self, questions: Iterable[Question], tests: Container[int] = ()) -> None:
        """Have questions answered; returns at once.

        Args:
            questions: what is asked.
            tests: samples that are the final training's test.
        """
        for question in questions:
            self._pool.submit(self._answer, question, tests).add_done_callback(self._report_broken)

    def _answer(self, question: Question, tests: Container[int]) -> None:
        files: dict[int, Mapping[str, str]] = {}
        results: dict[int, bytes | TooLarge | None] = {}
        checkpoints: set[str] = set()
        error: StoreError | None = None
        try:
            for sample in question.samples:
                results[sample] = self._result(sample)
                if sample in tests and isinstance(results[sample], bytes):
                    files[sample] = self._files(sample)
                if question.end is End.DEADLINE_EXCEEDED:
                    checkpoints.update(self._store.list(names.checkpoint_key(sample)))
        except StoreError as caught:
            error = caught
        self._post(Answer(question, results, files, frozenset(checkpoints), error))

    def _files(self, sample: int) -> dict[str, str]:
        files = {}
        for key, target in TRAINED:
            try:
                digest = self._store.digest(key(sample), limit=MAX_MODEL_BYTES)
            except TooLarge:
                # It is not handed over either.
                continue
            if digest is not None:
                files[names.file(target)] = digest
        return files

    def _result(self, sample: int) -> bytes | TooLarge | None:
        try:
            return self._store.get(names.result_key(sample), limit=MAX_RESULT_BYTES)
        except TooLarge as caught:
            # An answer like any other: this is what the trainer wrote.
            return caught

    def _report_broken(self, future: "futures.Future[None]") -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._post(Broken(error))
