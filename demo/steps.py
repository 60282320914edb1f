"""Named steps with their times, and commands whose output is shown: what the demonstration is made of."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class DemoError(Exception):
    """A step failed; the message says which and shows its last words."""


class SearchFailedError(DemoError):
    """An experiment has ended as Failed; the message is its condition's."""


@dataclass
class Steps:
    """Runs named steps and prints how long each took."""

    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def step(self, title: str, action: Callable[[], object]) -> None:
        """Run a step; what it raises passes."""
        self.say(f"==> {title}")
        start = time.monotonic()
        action()
        self.say(f"    {title}: {time.monotonic() - start:.1f} s")


def run(*words: str, environment: Mapping[str, str] | None = None, quiet: bool = False) -> str:
    """Run a command from the repository's root and return its standard output, which is shown too unless quiet.

    Raises:
        DemoError: it ended with another status than 0, or does not exist.
    """
    everything = {**os.environ, **(environment or {})}
    lines = []
    try:
        if quiet:
            done = subprocess.run(words, cwd=ROOT, env=everything, capture_output=True, text=True, check=False)
            out, errors, status = done.stdout, done.stderr, done.returncode
        else:
            with subprocess.Popen(
                words, cwd=ROOT, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line)
                    print("    " + line, end="", flush=True)
            out, errors, status = "".join(lines), "", process.returncode
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]} is not installed or not on PATH") from error
    if status != 0:
        raise DemoError(f"`{' '.join(words)}` ended with {status}\n{errors or (out if quiet else '')}".strip())
    return out
