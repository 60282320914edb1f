"""The trainer's process: reads one document, trains one child or several, writes a result for each, and ends with a
documented code.

Whatever is expected to go wrong ends in one sentence with its cure, on the log and as the container's
termination message. The exit codes are ``nas_api.child.ExitCode``.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from types import FrameType
from typing import Any

import safetensors.torch
import structlog
import torch
from pydantic import ValidationError

import nas_api
from nas_api import names
from nas_api.child import ExitCode, Result, TrainerInput, read_trainer_document
from nas_api.handover import Vocabulary
from nas_api.stopping import Rung, Stopped
from nas_store import Store, open_store
from nas_store.errors import StoreError
from nas_trainer import checkpoint
from nas_trainer.files import DatasetUnavailable
from nas_trainer.images.data import Images
from nas_trainer.images.training import image_training, load_images
from nas_trainer.process import leave_message
from nas_trainer.task import ExportFailed, Progress, Task, Unsuitable
from nas_trainer.text.data import Text, load_text
from nas_trainer.text.training import language_training
from nas_trainer.together import Defer, run_together

# A child that ends sooner is cheaper to repeat than to save.
_CHECKPOINT_SECONDS = 60.0
# What CPU allocators say; a GPU's has an exception of its own.
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")

_log = structlog.get_logger()


@dataclass
class Failure(Exception):
    """An expected end without a result."""

    code: int
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class _Shared:
    """What the children of one process have in common."""

    building: threading.Lock
    """Held while a network is built: torch draws initial weights from one generator for all threads, seeded by each."""
    images: Callable[..., Images]
    """``load_images``, once."""
    text: Callable[..., Text]
    """``load_text``, once."""


class Terminated(BaseException):
    """SIGTERM came: pre-empted, cancelled or suspended. No Exception, so that nothing takes it for an error."""


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Train what ``NAS_INPUT`` says and return the exit code. Must be called from the main thread.

    Unexpected errors are raised: their traceback is what their finder needs.
    """
    try:
        with _terminated_by_sigterm() as defer:
            documents = _read_input(environment)
            shared = _Shared(threading.Lock(), lru_cache(1)(load_images), lru_cache(1)(load_text))
            message = _run(documents[0], shared, defer) if len(documents) == 1 else _run_together(documents, shared)
    except Failure as failure:
        _log.error("failed", reason=failure.message, code=failure.code)
        leave_message(environment, failure.message)
        return failure.code
    except Terminated:
        _log.warning("terminated")
        leave_message(environment, "terminated by SIGTERM; the next attempt goes on from the last checkpoint")
        return ExitCode.TERMINATED
    leave_message(environment, message)
    return ExitCode.OK


def _run_together(documents: tuple[TrainerInput, ...], shared: _Shared) -> str:
    """Train several children, a thread each, and return the termination message.

    Raises:
        Terminated: SIGTERM came, and a child has no result.
        Failure: that of the first child without a result, after the others have theirs.
    """
    raised = run_together([partial(_run_beside_others, document, shared) for document in documents], Terminated)
    failed = [(document, error) for document, error in zip(documents, raised, strict=True) if error is not None]
    for document, error in failed:
        if isinstance(error, Failure):
            _log.error("failed", sample=document.sample, reason=error.message, code=error.code)
        elif not isinstance(error, Terminated):
            _log.error("failed", sample=document.sample, exc_info=error)
    if any(isinstance(error, Terminated) for _, error in failed):
        raise Terminated
    if failed:
        document, error = failed[0]
        code = error.code if isinstance(error, Failure) else 1
        what = f"{len(failed)} of {len(documents)} children have no result"
        raise Failure(code, f"{what}; sample {document.sample}: {_first_line(error)}")
    return f"all {len(documents)} children have their results"


def _run_beside_others(document: TrainerInput, shared: _Shared, defer: Defer) -> None:
    """Train one of several children; on a GPU in a stream of its own, so that they do not wait for each other."""
    gpu = torch.cuda.is_available()
    with torch.cuda.stream(torch.cuda.Stream()) if gpu else nullcontext():  # type: ignore[no-untyped-call]
        _run(document, shared, defer)


def _run(document: TrainerInput, shared: _Shared, defer: Defer) -> str:
    """Train, and return the termination message; ``defer`` makes SIGTERM wait until the result is written."""
    log = _log.bind(experiment=document.experiment, sample=document.sample, attempt=document.attempt)
    with _storage_failures():
        store = open_store(document.store)
        # Asked for before anything is built: an earlier attempt may have ended right after its result.
        if store.get(names.result_key(document.sample)) is not None:
            log.info("the result exists already")
            return "the result of this sample exists already"
    started = time.monotonic()
    torch.set_num_threads(document.threads)
    try:
        task = _task(document, shared)
        _restore(document, store, task, log)
        stopped = _train(document, store, task, log)
        metrics = {} if task.progress.diverged else task.metrics(document.reward_epochs)
        if document.final is not None and document.final.test and not task.progress.diverged:
            metrics |= _export(document, store, task, log)
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError is a RuntimeError; a CPU's allocator raises a plain one.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY_WORDS):
            raise
        raise Failure(
            ExitCode.OUT_OF_MEMORY,
            f"the network does not fit into memory ({_first_line(error)}): lower trainer.batchSize, or give"
            " trainers more memory in trainer.template",
        ) from error
    defer()
    result = _result(document, task, metrics, stopped, time.monotonic() - started)
    with _storage_failures():
        # Somebody else's result of this sample is as good as ours: the first one counts.
        store.put_if_absent(names.result_key(document.sample), result.model_dump_json(by_alias=True).encode())
    log.info("result", status=result.status, **result.metrics, seconds=round(result.seconds, 2))
    return result.termination_message()


def _read_input(environment: Mapping[str, str]) -> tuple[TrainerInput, ...]:
    text = environment.get(names.ENV_TRAINER_INPUT)
    if text is None:
        raise Failure(
            ExitCode.INVALID_INPUT,
            f"the environment has no {names.ENV_TRAINER_INPUT}: this program is started by the controller's Jobs",
        )
    try:
        return read_trainer_document(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise Failure(
            ExitCode.INVALID_INPUT,
            f"{names.ENV_TRAINER_INPUT} cannot be used ({place}: {first['msg']}): use images of one version for"
            " controller and trainer",
        ) from error


def _task(document: TrainerInput, shared: _Shared) -> Task:
    try:
        with _storage_failures(), shared.building:
            if document.dataset.text is None:
                return image_training(document, shared.images)
            return language_training(document, shared.text)
    except Unsuitable as error:
        raise Failure(ExitCode.INVALID_INPUT, str(error)) from error
    except DatasetUnavailable as error:
        raise Failure(ExitCode.DATASET_UNAVAILABLE, str(error)) from error


def _restore(document: TrainerInput, store: Store, task: Task, log: structlog.typing.FilteringBoundLogger) -> None:
    with _storage_failures():
        data = store.get(names.checkpoint_key(document.sample))
    if data is None:
        return
    try:
        tensors, progress = checkpoint.decode(document, data)
        task.restore(tensors, progress)
    except (ValueError, KeyError) as error:
        # Training from the start costs time and nothing else.
        log.warning("the checkpoint is not used", reason=str(error))
    else:
        log.info("goes on from its checkpoint", epochs=progress.epochs)


def _train(
    document: TrainerInput, store: Store, task: Task, log: structlog.typing.FilteringBoundLogger
) -> Stopped | None:
    """Train to the end, or to where the document's rule ends it; return where that was."""
    rule = document.stop
    saved_at = time.monotonic()
    # SIGTERM may come in the middle of an epoch, whose half is of no use.
    newest = (task.state(), task.progress)

    def after_epoch() -> None:
        nonlocal saved_at, newest
        newest = (task.state(), task.progress)
        metric = {document.metric: task.progress.metrics[-1]} if task.progress.metrics else {}
        log.debug("epoch", number=task.progress.epochs, loss=task.progress.losses[-1], **metric)
        if time.monotonic() - saved_at >= _CHECKPOINT_SECONDS:
            _save(document, store, *newest, log)
            saved_at = time.monotonic()

    try:
        # One that goes on from a later epoch was let pass by an earlier attempt's rule, and what it cost is spent.
        if rule is not None and task.progress.epochs <= rule.epoch < document.epochs:
            task.run(rule.epoch, after_epoch)
            rung = Rung.of(task.progress.metrics, rule.epoch, rule.goal)
            if not task.progress.diverged and rule.ends(rung):
                log.info("stopped early", epoch=rule.epoch, bound=rule.bound)
                return Stopped(epoch=rule.epoch, of=document.epochs)
        task.run(document.epochs, after_epoch)
    except Terminated:
        if newest[1].epochs:
            _save(document, store, *newest, log)
            log.info("checkpoint", epochs=newest[1].epochs)
        raise
    return None


def _save(
    document: TrainerInput,
    store: Store,
    state: dict[str, torch.Tensor],
    progress: Progress,
    log: structlog.typing.FilteringBoundLogger,
) -> None:
    try:
        store.put(names.checkpoint_key(document.sample), checkpoint.encode(document, state, progress))
    except StoreError as error:
        # A training without a checkpoint is slower to repeat, and right all the same.
        log.warning("the checkpoint could not be written", reason=str(error))


def _export(
    document: TrainerInput, store: Store, task: Task, log: structlog.typing.FilteringBoundLogger
) -> dict[str, float]:
    """Leave the network and how to feed it beside the result that will follow; return what there is to say of it."""
    contract = task.contract()
    key = names.vocabulary_key if isinstance(contract, Vocabulary) else names.preprocessing_key
    with _storage_failures():
        store.put(key(document.sample), contract.model_dump_json(by_alias=True).encode())
        store.put(names.training_key(document.sample), json.dumps(_training(document)).encode())
        store.put(names.weights_key(document.sample), safetensors.torch.save(task.weights()))
    try:
        model, difference = task.onnx()
    except ExportFailed as error:
        # The weights are there, and so will be the result: it has no onnxDifference then.
        log.warning("no ONNX model", reason=str(error))
        return {}
    with _storage_failures():
        store.put(names.onnx_key(document.sample), model)
    return {"onnxDifference": difference}


def _training(document: TrainerInput) -> dict[str, Any]:
    """Return what was trained from, without the store, which is no matter of the network's."""
    told = document.model_dump(mode="json", by_alias=True, exclude={"store"})
    return {**told, "software": {"nas-operator": nas_api.__version__, "torch": str(torch.__version__)}}


def _result(
    document: TrainerInput, task: Task, metrics: dict[str, float], stopped: Stopped | None, seconds: float
) -> Result:
    progress = task.progress
    return Result(
        sample=document.sample,
        attempt=document.attempt,
        architecture=document.architecture.digest,
        status="Diverged" if progress.diverged else "Trained",
        metrics=metrics,
        history=progress.metrics,
        stopped=stopped,
        seconds=seconds,
        parameters=task.parameters,
    )


@contextmanager
def _storage_failures() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise _storage_failure(error) from error


def _storage_failure(error: StoreError) -> Failure:
    # One that may pass by itself is an ordinary failure, which is tried again.
    return Failure(1 if error.retryable else ExitCode.STORAGE_REFUSED, str(error))


@contextmanager
def _terminated_by_sigterm() -> Iterator[Defer]:
    """Turn SIGTERM into ``Terminated`` within the block; yields a function that ignores it from then on."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    def defer() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield defer
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
