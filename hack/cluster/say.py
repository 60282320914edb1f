"""Progress for people: short lines on standard error with the time since the command began."""

import sys
import time
from pathlib import Path

_began = time.monotonic()


def say(message: str) -> None:
    """Print one progress line. Standard output stays free for what a script reads (paths, export lines)."""
    print(f"[{time.monotonic() - _began:6.1f}s] {message}", file=sys.stderr, flush=True)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, indented, for an error message."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty log)"
