"""The trainer's process: reads one document, trains one child or several, and ends with a documented code.

Whatever is expected to go wrong ends in one sentence with its cure, on the log and as the container's
termination message. The exit codes are ``nas_api.child.ExitCode``.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType

import structlog
import torch
from pydantic import ValidationError

from nas_api import names
from nas_api.child import ExitCode, TrainerInput, read_trainer_document
from nas_trainer.child import Failure, Shared, Terminated, first_line, train_child
from nas_trainer.distributed import RankLost, joined
from nas_trainer.gpu import NoCuda, prepare
from nas_trainer.process import leave_message
from nas_trainer.together import Defer, run_together

_log = structlog.get_logger()

_FIRST_TELLS_SECONDS = 30.0


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Train what ``NAS_INPUT`` says and return the exit code. Must be called from the main thread.

    Unexpected errors are raised: their traceback is what their finder needs.
    """
    # onnxruntime, which tries what is exported, would tell its maker of it, from its import on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with _terminated_by_sigterm() as defer:
            documents = _read_input(environment)
            _prepare_gpu(environment)
            several = len(documents) > 1
            message = _run_together(documents) if several else _run_one(documents[0], environment, defer)
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


def _prepare_gpu(environment: Mapping[str, str]) -> None:
    try:
        prepare(environment)
    except NoCuda as error:
        raise Failure(ExitCode.NO_CUDA, str(error)) from error


def _run_one(document: TrainerInput, environment: Mapping[str, str], defer: Defer) -> str:
    """Train a child, maybe with processes in other pods, and return the termination message.

    Raises:
        Terminated: SIGTERM came.
        Failure: an expected end without a result, or that of another process.
    """
    try:
        with joined(environment) as ranks:
            return train_child(document, Shared(), defer, ranks)
    except RankLost as error:
        _log.warning("another rank is lost", reason=str(error))
        # The one that fell first is to tell why: Kubernetes ends this one as soon as it knows.
        time.sleep(_FIRST_TELLS_SECONDS)
        raise Failure(
            1, f"another pod of this child is gone ({error}); the next attempt goes on from the last checkpoint"
        ) from error


def _run_together(documents: tuple[TrainerInput, ...]) -> str:
    """Train several children, a thread each, and return the termination message.

    Raises:
        Terminated: SIGTERM came, and a child has no result.
        Failure: that of the first child without a result, after the others have theirs.
    """
    shared = Shared()
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
        raise Failure(code, f"{what}; sample {document.sample}: {first_line(error)}")
    return f"all {len(documents)} children have their results"


def _run_beside_others(document: TrainerInput, shared: Shared, defer: Defer) -> None:
    """Train one of several children; on a GPU in a stream of its own, so that they do not wait for each other."""
    gpu = torch.cuda.is_available()
    with torch.cuda.stream(torch.cuda.Stream()) if gpu else nullcontext():  # type: ignore[no-untyped-call]
        train_child(document, shared, defer)


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


@contextmanager
def _terminated_by_sigterm() -> Iterator[Defer]:
    """Turn SIGTERM into ``Terminated`` within the block; yields a function that ignores it from then on."""

    def defer() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        defer()
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield defer
    finally:
        signal.signal(signal.SIGTERM, before)
