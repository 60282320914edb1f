"""Which folders hold local runs. Apart from ``local_run``, because that loads torch."""

from pathlib import Path

EXPERIMENT = "experiment.json"
RUNS = Path("nas-runs")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a local run."""
    return (folder / EXPERIMENT).is_file()


def local_hint(name: str) -> str:
    """Return a hint at what is on this machine under this name: a local run, or a folder that is none; or nothing."""
    if is_run(RUNS / name):
        return f"; there is a local run of that name: give its folder, {RUNS / name}"
    return f"; the folder {name} holds no local run (no {EXPERIMENT})" if Path(name).is_dir() else ""
