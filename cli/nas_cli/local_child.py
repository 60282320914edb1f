"""One child as a local process: what runs in it between the fork and the trainer's own ``main``."""

import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

from nas_trainer.main import main
from nas_trainer.process import configure_logging


def run(environment: dict[str, str], log: str) -> None:
    """Train, and end the process with the trainer's exit code; everything that it says goes into a file."""
    # Ctrl-C reaches the whole terminal; what it means is for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    configure_logging(environment)
    sys.exit(main(environment))


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed run leaves no child that trains for nobody."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
