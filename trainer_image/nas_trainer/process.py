"""What every process in a child's pod does alike: its log, and its last words. Needs no torch."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

ENV_TERMINATION_LOG = "NAS_TERMINATION_LOG"
ENV_LOG_LEVEL = "NAS_LOG_LEVEL"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_KUBELET_TERMINATION_LOG = Path("/dev/termination-log")
_MESSAGE_BYTES = 4096

_log = structlog.get_logger()


def leave_message(environment: Mapping[str, str], message: str) -> None:
    """Write the container's termination message, where the kubelet or our caller looks for one."""
    named = environment.get(ENV_TERMINATION_LOG)
    path = Path(named) if named else _KUBELET_TERMINATION_LOG
    if not named and not path.exists():
        return
    try:
        path.write_bytes(message.encode()[:_MESSAGE_BYTES])
    except OSError as error:
        _log.warning("no termination message", reason=str(error))


def configure_logging(environment: Mapping[str, str] = os.environ) -> None:
    """Log JSON, or lines for people when standard error is a terminal; ``NAS_LOG_LEVEL=debug`` tells more."""
    level = environment.get(ENV_LOG_LEVEL, "info")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                # Without the values of variables, which are its default.
                [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
                if sys.stderr.isatty()
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level if level in _LOG_LEVELS else "info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
