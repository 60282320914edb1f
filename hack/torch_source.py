"""Where torch comes from: a folder of wheels, PyTorch's index of CPU builds, or PyPI, whichever is there first.

    python3 hack/torch_source.py uv pip install --require-hashes

says in one line what was chosen and why, and runs the command with its arguments. Both the Makefile and the Dockerfile
install torch so. Two variables of the environment change the search; set to nothing, each leaves its place out:

- WHEELS: the folder (default: ``wheels`` in the repository or in a folder beside it).
- TORCH_INDEX: the index (default: PyTorch's own).

Standard library only, so that it runs before anything is installed.
"""

import os
import platform
import re
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU = ROOT / "requirements" / "torch-cpu.txt"
PYPI = ROOT / "requirements" / "torch-pypi.txt"
INDEX = "https://download.pytorch.org/whl/cpu"
# The one file of the CPU builds whose hash requirements/torch-cpu.txt has. PyPI's file has those of every platform.
HASHED = "cp311 on Linux x86_64"
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """What was chosen: a sentence that says why, and the words that make uv take it."""

    why: str
    words: tuple[str, ...]


def wheel() -> str:
    """Return the pattern of the pinned CPU build's file name."""
    pinned = re.search(r"^torch==(\S+)", CPU.read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None:
        raise ValueError(f"{CPU} pins no torch")
    return f"torch-{pinned[1]}-cp311-*_x86_64.whl"


def wheels_folder() -> Path | None:
    """Return the first folder that holds the pinned CPU build, None if there is none."""
    if "WHEELS" in os.environ:
        folders = [Path(os.environ["WHEELS"])] if os.environ["WHEELS"] else []
    else:
        folders = [ROOT / "wheels", *sorted(ROOT.parent.glob("*/wheels"))]
    return next((folder for folder in folders if any(folder.glob(wheel()))), None)


def here() -> str:
    """Return this Python and machine in the words of HASHED."""
    return f"cp{sys.version_info.major}{sys.version_info.minor} on {platform.system()} {platform.machine()}"


def complaint(url: str) -> str:
    """Return why a URL does not answer within PATIENCE_SECONDS, empty if it does.

    A name that is looked up and each of its addresses have a patience of their own: only a thread can be left waiting.
    """
    said = [f"does not answer within {PATIENCE_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS):
                said[0] = ""
        except (OSError, HTTPException) as error:
            said[0] = f"does not answer ({getattr(error, 'reason', error)})"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return said[0]


def choose(machine: str, folder: Path | None, index: str, complaint: Callable[[str], str]) -> Source:
    """Return where torch is to come from.

    Args:
        machine: this Python and machine, in the words of HASHED.
        folder: one that holds the pinned CPU build.
        index: the address of an index of CPU builds, empty for none.
        complaint: says why a URL does not answer, nothing if it does.
    """
    pypi = ("--requirements", str(PYPI))
    if machine != HASHED:
        return Source(f"PyPI's build, since the CPU build's hash is known for {HASHED} only, not for {machine}", pypi)
    if folder is not None:
        words = ("--find-links", str(folder), "--requirements", str(CPU))
        return Source(f"the CPU build of {folder}, which has the wheel that requirements/torch-cpu.txt pins", words)
    missing = "no folder has the wheel that requirements/torch-cpu.txt pins"
    if not index:
        return Source(f"PyPI's build, since {missing} and no index was named", pypi)
    # A list of links, not an index: nothing but torch is looked for there.
    page = f"{index.rstrip('/')}/torch/"
    if problem := complaint(page):
        return Source(f"PyPI's build, 5 GB with CUDA, since {missing} and {page} {problem}", pypi)
    words = ("--find-links", page, "--requirements", str(CPU))
    return Source(f"the CPU build of {page}, which answers; {missing}", words)


def main() -> None:
    """Run the command that was given, with what makes it take torch from the chosen place."""
    source = choose(here(), wheels_folder(), os.environ.get("TORCH_INDEX", INDEX), complaint)
    print(f"torch: {source.why}", file=sys.stderr, flush=True)
    os.execvp(sys.argv[1], [*sys.argv[1:], *source.words])


if __name__ == "__main__":
    main()
