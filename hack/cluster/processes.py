"""Processes by identity: a pid alone may be reused, a pid with its start time may not.

Nothing here ends a process by its name. What a cluster started is known three ways, each exact: the recorded pid and
start time, the cluster's token in the process's environment, and membership of the cluster's own cgroup.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKEN_VARIABLE = "NAS_CLUSTER_TOKEN"
_PROC = Path("/proc")
# The daemons that this very command started: it has to collect them if they end while it runs.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Process:
    """A process that was started: its pid, and when it started in clock ticks since boot."""

    name: str
    pid: int
    started: int


def parse_stat(text: str) -> tuple[str, int]:
    """State letter and start time out of /proc/PID/stat, whose second field may itself hold blanks and brackets."""
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def start_time(pid: int) -> int | None:
    """When a live process started; None if there is none, or only its zombie."""
    try:
        state, started = parse_stat((_PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else started


def is_alive(process: Process) -> bool:
    return start_time(process.pid) == process.started


def spawn(name: str, command: Sequence[str], token: str, log: Path) -> Process:
    """Start a daemon in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, TOKEN_VARIABLE: token},
            cwd="/",
            start_new_session=True,
        )
    _children.append(child)
    started = start_time(child.pid)
    return Process(name, child.pid, -1 if started is None else started)


def all_pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def find_by_token(token: str) -> list[Process]:
    """Every live process that carries the token in its environment: ours, and the container shims of our containerd."""
    marker = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for pid in all_pids():
        if pid == os.getpid():
            continue
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        started = start_time(pid)
        if started is not None and marker in environment.split(b"\0"):
            found.append(Process("marked", pid, started))
    return found


def find_by_arguments(program_prefix: str, argument: str) -> list[Process]:
    """Live processes whose program's name begins so and that were given exactly this argument."""
    found = []
    for pid in all_pids():
        try:
            words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        started = start_time(pid)
        if started is not None and Path(words[0]).name.startswith(program_prefix) and argument in words[1:]:
            found.append(Process(words[0], pid, started))
    return found


def _kill(process: Process) -> None:
    """Kill exactly this process: the descriptor pins it, the start time proves that it is the one meant."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def end(processes: Iterable[Process], patience_seconds: float = 60.0) -> list[Process]:
    """Kill them, wait until they are gone, and return those that even then live.

    No grace is given: all that they could still write is about to be removed, and so the orderly end of a cluster is
    the same as that of one whose processes were killed, and as well tested.
    """
    remaining = [process for process in processes if is_alive(process)]
    for process in remaining:
        _kill(process)
    deadline = time.monotonic() + patience_seconds
    while remaining and time.monotonic() < deadline:
        time.sleep(0.02)
        for child in _children:
            child.poll()
        remaining = [process for process in remaining if is_alive(process)]
    return remaining
