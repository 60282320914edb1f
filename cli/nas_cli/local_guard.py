"""Ends what a killed ``nas run`` leaves behind. Run as a script, with nothing but Python's own modules.

Reads numbers of process groups, one a line: ``+N`` when a group begins, ``-N`` when it has ended. When nothing
more can come, because whoever wrote is gone, the groups that have not ended are killed.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Read until the end, then kill what is left."""
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        number = int(line)
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
