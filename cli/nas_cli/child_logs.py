"""What the children of a local run have said: the files ``children/<launch>.log``, found by the sample."""

from collections.abc import Sequence
from pathlib import Path

from nas_cli.errors import Refusal
from nas_log.reader import Sample


def child_logs(folder: Path, samples: Sequence[Sample], number: int) -> list[Path]:
    """Return the logs of a sample's attempts, the newest last; a launch's number is not its sample's after a retry.

    Args:
        folder: of the run.
        samples: its own.
        number: the sample's.

    Raises:
        Refusal: nothing was started for this sample.
    """
    found = next((sample for sample in samples if sample.number == number), None)
    if found is not None and found.launches:
        return [folder / "children" / f"{each.launch}.log" for each in found.launches]
    if found is not None and found.reused is not None:
        raise Refusal(
            f"sample {number} has taken the result of sample {found.reused}, which has the same architecture:"
            f" nas logs {folder} --sample {found.reused}"
        )
    drawn = sum(sample.final is None for sample in samples)
    raise Refusal(f"no child of sample {number} was started in {folder}: the search has drawn {drawn} samples so far")


def read(log: Path, tail: int | None) -> list[str]:
    """Return the lines of a log.

    Args:
        log: its file.
        tail: only so many of the last ones; all when None.

    Raises:
        Refusal: the file cannot be read.
    """
    try:
        # Only at newlines: a progress bar is one line.
        lines = log.read_text(errors="replace").removesuffix("\n").split("\n")
    except OSError as error:
        raise Refusal(f"{log} cannot be read: {error.strerror}") from error
    return lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
