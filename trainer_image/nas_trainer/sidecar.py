"""What stands around a user's own trainer: it writes the trainer's input, and takes its result to the store.

``python -m nas_trainer.sidecar prepare`` runs before the trainer and has no keys; ``... upload`` runs once the
trainer has ended well, and is the only one of the three containers that has any. Needs no torch.
"""

import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from itertools import chain, repeat
from pathlib import Path

import structlog
from pydantic import ValidationError

from nas_api import custom_trainer, names
from nas_api.child import MAX_RESULT_BYTES, ExitCode, Result, TrainerInput
from nas_store import Store, open_store
from nas_store.errors import StoreError
from nas_trainer.process import configure_logging, leave_message

_log = structlog.get_logger()

_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class NoResult(Exception):
    """There is no result file that can be read; the message says what is there instead."""


def main(
    arguments: list[str], environment: Mapping[str, str] = os.environ, pause: Callable[[float], None] = time.sleep
) -> int:
    """Do what the one argument says, ``prepare`` or ``upload``, and return the exit code.

    A training may have taken days, so that an upload is tried until the store is well again: the pod's deadline
    is what ends it otherwise.
    """
    try:
        document = TrainerInput.model_validate_json(environment.get(names.ENV_TRAINER_INPUT, ""))
    except ValidationError as error:
        leave_message(environment, f"{names.ENV_TRAINER_INPUT} cannot be used: {error.errors()[0]['msg']}")
        return ExitCode.INVALID_INPUT
    folder = Path(environment["NAS_DIR"])
    if arguments == ["prepare"]:
        prepare(folder, document)
        return ExitCode.OK
    if arguments != ["upload"]:
        leave_message(environment, f"sidecar: prepare or upload, not {' '.join(arguments)}")
        return ExitCode.INVALID_INPUT
    look = f"kubectl logs -n {environment['NAS_NAMESPACE']} {environment['NAS_POD']} -c {names.TRAINER_CONTAINER}"
    result = collect(folder, document, look)
    store = open_store(document.store)
    try:
        _upload(store, result, pause)
    except StoreError as error:
        leave_message(environment, str(error))
        return ExitCode.STORAGE_REFUSED
    leave_message(environment, result.termination_message())
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
        data = _read(folder / custom_trainer.RESULT)
    except NoResult as error:
        return custom_trainer.invalid(document, str(error), look=look)
    return custom_trainer.result(document, data, seconds=max(0.0, time.time() - began), look=look)


def _upload(store: Store, result: Result, pause: Callable[[float], None]) -> None:
    """Store a result, however long the store is in trouble.

    Raises:
        StoreError: the store refuses us.
    """
    for seconds in chain(_PAUSES_SECONDS, repeat(_PAUSES_SECONDS[-1])):
        try:
            # An earlier attempt's result of this sample is as good: the first one counts.
            store.put_if_absent(names.result_key(result.sample), result.model_dump_json(by_alias=True).encode())
        except StoreError as error:
            if not error.retryable:
                raise
            _log.warning("the store is in trouble: tried again", error=str(error))
            pause(seconds)
        else:
            _log.info("result", sample=result.sample, status=result.status, **result.metrics)
            return


def _read(path: Path) -> bytes:
    """Return a file's content; a link could lead to what only this container may read, and a pipe never ends.

    Raises:
        NoResult: there is no such file, or none that can be used.
    """
    try:
        with open(path, "rb", opener=_plainly) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NoResult("it is not a regular file")
            data = file.read(MAX_RESULT_BYTES + 1)
    except FileNotFoundError:
        raise NoResult("the trainer ended with exit code 0 and did not write it") from None
    except OSError as error:
        raise NoResult(f"it cannot be read ({error.strerror})") from error
    if len(data) > MAX_RESULT_BYTES:
        raise NoResult(f"it is larger than {MAX_RESULT_BYTES} bytes")
    return data


def _plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


if __name__ == "__main__":
    configure_logging()
    sys.exit(main(sys.argv[1:]))
