"""What the children of a local run have said: the files ``children/<launch>.log``, found by the sample."""

from collections.abc import Sequence
from pathlib import Path

from nas_cli.errors import Refusal
from nas_log.records import Launched, Observed, Proposed, Record


def child_logs(folder: Path, records: Sequence[Record], sample: int) -> list[Path]:
    """Return the logs of a sample's attempts, the newest last; a launch's number is not its sample's after a retry.

    Args:
        folder: of the run.
        records: its log's.
        sample: the sample's number.

    Raises:
        Refusal: nothing was started for this sample.
    """
    launches = [record.launch for record in records if isinstance(record, Launched) and sample in record.samples]
    if launches:
        return [folder / "children" / f"{launch}.log" for launch in launches]
    for record in records:
        if isinstance(record, Observed) and record.sample == sample and record.reused is not None:
            raise Refusal(
                f"sample {sample} has taken the result of sample {record.reused}, which has the same architecture:"
                f" nas logs {folder} --sample {record.reused}"
            )
    known = sum(isinstance(record, Proposed) for record in records)
    raise Refusal(f"no child of sample {sample} was started in {folder}: the search has drawn {known} samples so far")


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
