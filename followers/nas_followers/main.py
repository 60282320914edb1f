"""A follower's process: reads one document, follows one search to its end, and ends.

It ends with code 0 once the search has ended and everything is handed over. Whatever is expected to go wrong ends in
one sentence with its cure, on the log and as the container's termination message, and code 1; to try again is the
kubelet's.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import ValidationError

from nas_api import names
from nas_api.follower import FollowerInput
from nas_followers.errors import FollowerError
from nas_followers.following import follow
from nas_store import open_store
from nas_store.errors import StoreError

_log = structlog.get_logger()

_TERMINATION_LOG = Path("/dev/termination-log")
_MESSAGE_BYTES = 4096
_TERMINATED = 143
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Variables of MLflow's client, unless the template says otherwise. By itself it would try for minutes and say nothing,
tell its makers of its use, ask for each run once more to print its address, and look for git, which is not there."""


class _Clock:
    """The process's own."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Follow what ``NAS_FOLLOWER_INPUT`` says and return the exit code. Must be called from the main thread.

    Unexpected errors are raised: their traceback is what their finder needs.
    """
    signal.signal(signal.SIGTERM, _terminate)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    try:
        words = _follow(environment)
    except (FollowerError, StoreError) as error:
        _log.error("ended before it was done", reason=str(error))
        _leave(str(error))
        return 1
    _log.info("done", words=words)
    _leave(words)
    return 0


def _follow(environment: Mapping[str, str]) -> str:
    try:
        asked = FollowerInput.model_validate_json(environment.get(names.ENV_FOLLOWER_INPUT, ""), extra="ignore")
    except ValidationError as error:
        raise FollowerError(f"{names.ENV_FOLLOWER_INPUT} cannot be used, which the operator sets: {error}") from error
    for variable, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Its import takes seconds, and it reads the variables.
    from nas_followers.mlflow import Mlflow

    samples = follow(open_store(asked.store), "mlflow", Mlflow(asked), _Clock(), asked.dataset)
    return f"MLflow at {asked.mlflow.uri} has all {samples} samples."


def _leave(words: str) -> None:
    """Write the container's termination message, where the kubelet looks for one."""
    if _TERMINATION_LOG.exists():
        _TERMINATION_LOG.write_bytes(words.encode()[:_MESSAGE_BYTES])


def _terminate(*_: object) -> None:
    # Dying is always safe: what was not noted is looked up by the next one.
    os._exit(_TERMINATED)
