"""What goes into each image, read from the Dockerfile; its tag follows from it, so that no node runs a stale one."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from demo.steps import ROOT

COMPONENTS = ("operator", "controller", "trainer", "follower")
CUDA = "trainer-cuda"
"""The trainer on a build of torch with CUDA: five times as large, and built when it is asked for."""


def wanted(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return which images to build: the chart's four, and with ``CUDA=1`` the trainer for GPUs as well."""
    return (*COMPONENTS, CUDA) if environment.get("CUDA", "0") not in ("", "0") else COMPONENTS


def sources(dockerfile: str, target: str) -> set[str]:
    """Return the paths that a target takes from the repository, in its own stage and in those that it is built on."""
    copied: dict[str, set[str]] = {}
    stage = ""
    for line in dockerfile.splitlines():
        match line.split():
            case ["FROM", base, "AS", stage]:
                copied[stage] = set(copied.get(base, ()))
            case ["COPY", word, _, _] if word.startswith("--from="):
                copied[stage] |= copied[word.removeprefix("--from=")]
            case ["COPY", *places, _]:
                copied[stage] |= set(places)
    return copied[target]


@cache
def image_tag(component: str, root: Path = ROOT) -> str:
    """Return twelve hex digits of everything that goes into an image, taken from a folder of sources."""
    digest = hashlib.sha256()
    for place in ("Dockerfile", *sorted(sources((root / "Dockerfile").read_text(encoding="utf-8"), component))):
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
