"""``nas report``: one HTML page of a search, from the folder of a local run or from an experiment's bucket."""

from datetime import UTC, datetime
from pathlib import Path

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_cli.errors import Refusal
from nas_cli.experiment_store import follower, reading
from nas_report import History, render
from nas_store import Store


def write_report(experiment: NASExperiment, store: Store, output: Path) -> None:
    """Write the report of the search whose log is in a store.

    Raises:
        Refusal: the log cannot be read or has no record yet, or the file cannot be written.
    """
    name = experiment.metadata.name
    log = follower(experiment, store)
    history = History(log)
    with reading(experiment):
        history.add(log.read())
    if log.facts is None:
        raise Refusal(f"{name} has no record yet at {store.uri(names.log_key(0))}: `nas status {name}` says why")
    with reading(experiment):
        page = render(history, experiment, datetime.now(UTC))
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise Refusal(f"{output} cannot be written: {error.strerror}") from error
