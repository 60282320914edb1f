"""Waiting in tests: for what is promised, never for how long it may take.

No test may depend on the machine's pace. A test waits for a condition, and its bound is so wide that only a hang comes
to the end of it. How quick something is, is measured in ``bench/``.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

HANG_SECONDS = 300.0
"""After so long a test takes something for hung. Shorter than pytest's timeout, which cannot say what is missing."""


def eventually(
    check: Callable[[], Any], *, message: str | Callable[[], object] = "", seconds: float = HANG_SECONDS
) -> Any:
    """Return the first true value of ``check``; fail the test when none comes.

    Args:
        message: what was waited for, or a function that tells how things stand when none has come.
        seconds: for what is itself long, such as a whole search.
    """
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {message() if callable(message) else message or check}")
        time.sleep(0.1)
    return value
