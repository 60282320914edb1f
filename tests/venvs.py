"""Environments for programs that nothing of ours may stand beside: made once in the cache, for what is pinned."""

import hashlib
import subprocess
import sys
from pathlib import Path

from hack.cluster.paths import cache_folder, locked


def python_with(name: str, requirements: str) -> Path:
    """Return the Python of an environment.

    Args:
        name: what its folder is called, beside a digest of the requirements.
        requirements: pins with hashes, of all that is needed.
    """
    digest = hashlib.sha256(requirements.encode()).hexdigest()[:12]
    folder = cache_folder() / "venvs" / f"{name}-{digest}"
    python, uv = folder / "bin" / "python", str(Path(sys.executable).with_name("uv"))
    with locked(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
            subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
            (folder / "requirements.txt").write_text(requirements)
            install = [uv, "pip", "install", "-q", "--python", str(python), "--require-hashes", "--no-deps"]
            subprocess.run([*install, "-r", str(folder / "requirements.txt")], check=True)
            (folder / "complete").touch()
    return python
