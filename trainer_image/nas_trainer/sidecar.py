"""What stands around a user's own trainer: it writes the trainer's input, and takes its result to the store.

``python -m nas_trainer.sidecar prepare`` runs before the trainer, and ``... upload`` once the trainer has ended well,
the only one of the three containers that has keys. Where a child has several pods, the first one's ``prepare`` brings
the child's checkpoint as well, and ``... keep`` runs beside the trainer and takes newer ones to the store; the other
pods' do neither, so that one pod alone reads and writes for all. Needs no torch.
"""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from pydantic import ValidationError

from nas_api import custom_trainer, names
from nas_api.child import MAX_CHECKPOINT_BYTES, MAX_RESULT_BYTES, ExitCode, Result, TrainerInput
from nas_store import open_store
from nas_store.errors import StoreError
from nas_trainer.generations import Checkpoints
from nas_trainer.patience import patiently
from nas_trainer.process import configure_logging, leave_message

_log = structlog.get_logger()

# How often it is looked whether there is a newer checkpoint.
_LOOK_SECONDS = 5.0
# When a checkpoint that was brought was written, as its file says: one that the trainer writes is newer.
_BROUGHT = 0
# Of each pod of a Job of several, from Kubernetes: its number, from 0.
_ENV_POD_NUMBER = "JOB_COMPLETION_INDEX"


class Unusable(Exception):
    """A file of the trainer's cannot be used; the message says why."""


def wait_for_sigterm(seconds: float) -> bool:
    """Return whether SIGTERM came within some seconds; it must be blocked."""
    return signal.sigtimedwait({signal.SIGTERM}, seconds) is not None


def main(
    arguments: list[str],
    environment: Mapping[str, str] = os.environ,
    pause: Callable[[float], None] = time.sleep,
    wait_for_end: Callable[[float], bool] = wait_for_sigterm,
) -> int:
    """Do what the one argument says, ``prepare``, ``keep`` or ``upload``, and return the exit code.

    A training may have taken days, so that the store is tried until it is well again: the pod's deadline is what ends
    this otherwise.
    """
    try:
        document = TrainerInput.model_validate_json(environment.get(names.ENV_TRAINER_INPUT, ""))
    except ValidationError as error:
        leave_message(environment, f"{names.ENV_TRAINER_INPUT} cannot be used: {error.errors()[0]['msg']}")
        return ExitCode.INVALID_INPUT
    folder = Path(environment["NAS_DIR"])
    # None: the child's only pod, which has no checkpoint.
    pod = environment.get(_ENV_POD_NUMBER)
    try:
        match arguments:
            case ["prepare"]:
                prepare(folder, document)
                if pod == "0":
                    _bring_checkpoint(folder, document, pause)
            case ["keep"]:
                _keep_checkpoints(folder, document if pod == "0" else None, wait_for_end)
            case ["upload"] if pod in (None, "0"):
                _upload(folder, document, environment, pause)
            case ["upload"]:
                leave_message(environment, f"pod {pod} of this child has ended well; the first one's result counts")
            case _:
                leave_message(environment, f"sidecar: prepare, keep or upload, not {' '.join(arguments)}")
                return ExitCode.INVALID_INPUT
    except StoreError as error:
        leave_message(environment, str(error))
        return ExitCode.STORAGE_REFUSED
    return ExitCode.OK


def prepare(folder: Path, document: TrainerInput) -> None:
    """Write what a user's trainer reads."""
    (folder / custom_trainer.ARCHITECTURE).write_text(document.architecture.canonical() + "\n")
    (folder / custom_trainer.SETTINGS).write_text(custom_trainer.settings(document) + "\n")


def collect(folder: Path, document: TrainerInput, look: str) -> Result:
    """Return the result of a user's trainer that has ended well, or one that says what is wrong with it.

    Args:
        folder: its ``NAS_DIR``.
        document: what it was asked.
        look: where its output is, for people.
    """
    try:
        began = (folder / custom_trainer.ARCHITECTURE).lstat().st_mtime
    except FileNotFoundError:
        # The trainer has cleared its folder: it is free to, and only its own clock is left then.
        began = time.time()
    try:
        data = _read(folder / custom_trainer.RESULT, MAX_RESULT_BYTES)
    except FileNotFoundError:
        problem = "the trainer ended with exit code 0 and did not write it"
        return custom_trainer.invalid(document, problem, look=look)
    except Unusable as error:
        return custom_trainer.invalid(document, str(error), look=look)
    return custom_trainer.result(document, data, seconds=max(0.0, time.time() - began), look=look)


def _upload(
    folder: Path, document: TrainerInput, environment: Mapping[str, str], pause: Callable[[float], None]
) -> None:
    """Take the result to the store, and leave it as the message, too.

    Raises:
        StoreError: the store refuses us.
    """
    look = f"kubectl logs -n {environment['NAS_NAMESPACE']} {environment['NAS_POD']} -c {names.TRAINER_CONTAINER}"
    result = collect(folder, document, look)
    store, data = open_store(document.store), result.model_dump_json(by_alias=True).encode()
    # An earlier attempt's result of this sample is as good: the first one counts.
    patiently(lambda: store.put_if_absent(names.result_key(result.sample), data), pause)
    _log.info("result", sample=result.sample, status=result.status, **result.metrics)
    leave_message(environment, result.termination_message())


def _bring_checkpoint(folder: Path, document: TrainerInput, pause: Callable[[float], None]) -> None:
    """Write the checkpoint from which a user's trainer goes on, if there is one.

    Raises:
        StoreError: the store refuses us.
    """
    data = patiently(_checkpoints(document).take_over, pause)
    if data is not None:
        path = folder / custom_trainer.CHECKPOINT
        path.write_bytes(data)
        os.utime(path, ns=(_BROUGHT, _BROUGHT))
        _log.info("checkpoint", sample=document.sample, bytes=len(data))


def _keep_checkpoints(folder: Path, document: TrainerInput | None, wait_for_end: Callable[[float], bool]) -> None:
    """Take each checkpoint that a user's trainer writes to the store until SIGTERM comes; None: only wait for that."""
    # Else it ends this process at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    path, ended = folder / custom_trainer.CHECKPOINT, False
    kept: tuple[int, int, int] | None = None
    while not ended:
        ended = wait_for_end(_LOOK_SECONDS)
        version = _version(path)
        if document is None or version is None or version == kept:
            continue
        try:
            data = _read(path, MAX_CHECKPOINT_BYTES)
            _checkpoints(document).save(data)
        except (FileNotFoundError, Unusable, StoreError) as error:
            # A training that is not kept is slower to repeat, and right all the same; it is tried again.
            _log.warning("the checkpoint could not be kept", reason=str(error))
        else:
            kept = version
            _log.info("checkpoint kept", sample=document.sample, bytes=len(data))


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return what differs between two states of a file; None where there is none of the trainer's own."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if found.st_mtime_ns == _BROUGHT:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _checkpoints(document: TrainerInput) -> Checkpoints:
    return Checkpoints(open_store(document.store), document.sample, document.attempt)


def _read(path: Path, most: int) -> bytes:
    """Return a file's content; a link could lead to what only this container may read, and a pipe never ends.

    Raises:
        FileNotFoundError: there is none.
        Unusable: it cannot be read, or has more than ``most`` bytes.
    """
    try:
        with open(path, "rb", opener=_plainly) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unusable("it is not a regular file")
            data = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror})") from error
    if len(data) > most:
        raise Unusable(f"it is larger than {most} bytes")
    return data


def _plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


if __name__ == "__main__":
    configure_logging()
    sys.exit(main(sys.argv[1:]))
