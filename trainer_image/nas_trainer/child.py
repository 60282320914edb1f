"""One child, from what it is told to its result: the network is built, goes on from a checkpoint if there is one, is
trained, measured and, in a final test, left for others.

What learns is a wing's matter (``images``, ``text``); here it is a :class:`~nas_trainer.task.Task`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import safetensors.torch
import structlog
import torch

import nas_api
from nas_api import names
from nas_api.base import duration
from nas_api.child import LATENCY, ExitCode, Result, TrainerInput
from nas_api.experiment import LatencySpec
from nas_api.handover import Vocabulary
from nas_api.stopping import Rung, Stopped
from nas_store import Store, open_store
from nas_store.errors import StoreError
from nas_trainer import checkpoint, latency
from nas_trainer.descent import choose_device
from nas_trainer.distributed import ALONE, RankLost, Ranks, losses
from nas_trainer.files import DatasetUnavailable
from nas_trainer.generations import Checkpoints, last_checkpoint
from nas_trainer.images.data import Images
from nas_trainer.images.training import image_training, images_on_device
from nas_trainer.patience import Patient
from nas_trainer.task import ExportFailed, Progress, Task, Unsuitable
from nas_trainer.text.data import Text, load_text
from nas_trainer.text.training import text_training
from nas_trainer.together import Defer

# A child that ends sooner is cheaper to repeat than to save.
_CHECKPOINT_SECONDS = 60.0
# What CPU allocators say; a GPU's has an exception of its own.
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")

_log = structlog.get_logger()
_Log = structlog.typing.FilteringBoundLogger


@dataclass
class Failure(Exception):
    """An expected end without a result."""

    code: int
    message: str

    def __str__(self) -> str:
        return self.message


class Terminated(BaseException):
    """SIGTERM came: pre-empted, cancelled or suspended. No Exception, so that nothing takes it for an error."""


@dataclass(frozen=True)
class Shared:
    """What the children of one process have in common."""

    building: threading.Lock = field(default_factory=threading.Lock)
    """Held while a network is built: torch draws initial weights from one generator for all threads, seeded by each."""
    images: Callable[..., Images] = field(default_factory=lambda: lru_cache(1)(images_on_device))
    """``images_on_device``, once."""
    text: Callable[..., Text] = field(default_factory=lambda: lru_cache(1)(load_text))
    """``load_text``, once."""


def train_child(document: TrainerInput, shared: Shared, defer: Defer, ranks: Ranks = ALONE) -> str:
    """Train a child, write its result, and return the termination message.

    Args:
        document: what it is told.
        shared: what it has in common with the other children of the process.
        defer: makes an interruption wait; called before the result is written.
        ranks: the processes that train it together; the first of them reads and writes the store.

    Raises:
        Failure: an expected end without a result.
        Terminated: it was interrupted; its state is saved.
        RankLost: another of its processes is gone; its state is saved.
    """
    log = _log.bind(experiment=document.experiment, sample=document.sample, attempt=document.attempt)
    if ranks.count > 1:
        log = log.bind(rank=ranks.number)
    with _storage_failures():
        # A folder is here or is not; what is wrong with it does not pass.
        store: Store = open_store(document.store)
        store = store if document.store.s3 is None else Patient(store)
        checkpoints = Checkpoints(store, document.sample, document.attempt)
        # Asked for before anything is built: an earlier attempt may have ended right after its result.
        done = ranks.first and store.get(names.result_key(document.sample)) is not None
    with losses():
        if ranks.shared(b"done" if done else None) is not None:
            log.info("the result exists already")
            return "the result of this sample exists already"
    started = time.monotonic()
    torch.set_num_threads(document.threads)
    with _memory_failures(), losses():
        task = _task(document, shared, ranks)
        if task.gpu is not None:
            log.info("gpu", **task.gpu.model_dump())
        _restore(document, store, checkpoints, task, ranks, log)
        stopped = _train(document, checkpoints, task, ranks, log)
        metrics = _metrics(document, store, task, ranks, log)
    if not ranks.first:
        return f"rank {ranks.number} has trained with the others; the first one's result counts"
    defer()
    result = _result(document, task, metrics, stopped, time.monotonic() - started)
    with _storage_failures():
        # Somebody else's result of this sample is as good as ours: the first one counts.
        store.put_if_absent(names.result_key(document.sample), result.model_dump_json(by_alias=True).encode())
    log.info("result", status=result.status, **result.metrics, seconds=round(result.seconds, 2))
    return result.termination_message()


def _task(document: TrainerInput, shared: Shared, ranks: Ranks) -> Task:
    try:
        with _storage_failures(), shared.building:
            if document.dataset.text is None:
                return image_training(document, shared.images, ranks)
            return text_training(document, shared.text, ranks)
    except Unsuitable as error:
        raise Failure(ExitCode.INVALID_INPUT, str(error)) from error
    except DatasetUnavailable as error:
        raise Failure(ExitCode.DATASET_UNAVAILABLE, str(error)) from error


def _restore(
    document: TrainerInput, store: Store, checkpoints: Checkpoints, task: Task, ranks: Ranks, log: _Log
) -> None:
    """Go on from where an attempt before has come to, or with the network that is only to be tested."""
    data, final = None, document.final
    if ranks.first:
        with _storage_failures():
            data = checkpoints.take_over()
            if data is None and final is not None and final.repeats is not None and not final.on_validation:
                data = last_checkpoint(store, final.repeats)
    data = ranks.shared(data)
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


def _train(document: TrainerInput, checkpoints: Checkpoints, task: Task, ranks: Ranks, log: _Log) -> Stopped | None:
    """Train to the end, or to where the document's rule ends it; return where that was."""
    rule, final = document.stop, document.final
    every = _CHECKPOINT_SECONDS
    if document.checkpoint_every is not None:
        every = duration(document.checkpoint_every).total_seconds()
    saved_at, saved = time.monotonic(), task.progress.epochs
    # The end may come in the middle of an epoch, whose half is of no use.
    newest = (task.state(), task.progress)

    def save() -> None:
        """Save what is newer than what this attempt has begun with: a checkpoint of its own says that it got on."""
        nonlocal saved_at, saved
        if ranks.first and newest[1].epochs > saved:
            _save(document, checkpoints, *newest, log)
            saved_at, saved = time.monotonic(), newest[1].epochs

    def after_epoch() -> None:
        nonlocal newest
        newest = (task.state(), task.progress)
        metric = {document.metric: task.progress.metrics[-1]} if task.progress.metrics else {}
        log.debug("epoch", number=task.progress.epochs, loss=task.progress.losses[-1], **metric)
        if time.monotonic() - saved_at >= every:
            save()

    try:
        with losses():
            # One that goes on from a later epoch was let pass by an earlier attempt's rule, and what it cost is spent.
            if rule is not None and task.progress.epochs <= rule.epoch < document.epochs:
                task.run(rule.epoch, after_epoch)
                rung = Rung.of(task.progress.metrics, rule.epoch, rule.goal)
                if not task.progress.diverged and rule.ends(rung):
                    log.info("stopped early", epoch=rule.epoch, bound=rule.bound)
                    return Stopped(epoch=rule.epoch, of=document.epochs)
            task.run(document.epochs, after_epoch)
    except (Terminated, RankLost):
        save()
        raise
    if final is not None and not final.test and not final.on_validation:
        # If this one wins, its network is tested as it is.
        save()
    return None


def _save(
    document: TrainerInput, checkpoints: Checkpoints, state: dict[str, torch.Tensor], progress: Progress, log: _Log
) -> None:
    try:
        checkpoints.save(checkpoint.encode(document, state, progress))
    except StoreError as error:
        # A training without a checkpoint is slower to repeat, and right all the same.
        log.warning("the checkpoint could not be written", reason=str(error))
    else:
        log.info("checkpoint", epochs=progress.epochs)


def _metrics(document: TrainerInput, store: Store, task: Task, ranks: Ranks, log: _Log) -> dict[str, float]:
    """Return the result's numbers; a final test leaves the network beside them."""
    if task.progress.diverged:
        return {}
    metrics = task.metrics(document.reward_epochs)
    if ranks.first and document.latency is not None:
        metrics[LATENCY] = _latency(document.latency, task)
    if ranks.first and document.final is not None and document.final.test:
        metrics |= _export(document, store, task, log)
    return metrics


def _latency(spec: LatencySpec, task: Task) -> float:
    """Return the seconds that the trained network takes where it was trained."""
    if choose_device().type == "cuda":
        return latency.on_gpu(task.once(spec.batch), spec)
    try:
        # What is measured need not be compared with torch: nobody is given it.
        model, _ = task.onnx(compared=False)
        return latency.on_cpu(model, spec)
    except ExportFailed as error:
        raise Failure(
            ExitCode.INVALID_INPUT,
            f"{LATENCY} cannot be measured, since there is no ONNX model of this network ({error}): leave the penalty"
            " out of objective.penalties",
        ) from error


def _export(document: TrainerInput, store: Store, task: Task, log: _Log) -> dict[str, float]:
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
        gpu=task.gpu,
    )


@contextmanager
def _storage_failures() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        code = ExitCode.STORAGE_UNREACHABLE if error.retryable else ExitCode.STORAGE_REFUSED
        raise Failure(code, str(error)) from error


@contextmanager
def _memory_failures() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError is a RuntimeError; a CPU's allocator raises a plain one.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY_WORDS):
            raise
        raise Failure(
            ExitCode.OUT_OF_MEMORY,
            f"the network does not fit into memory ({first_line(error)}): lower trainer.batchSize, or give"
            " trainers more memory in trainer.template",
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error says in one line, or its type's name where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
