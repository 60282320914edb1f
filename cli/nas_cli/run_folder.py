"""What the folder of a local run says of its experiment: ``experiment.json``, the manifest with the run's uid."""

from pathlib import Path

from pydantic import ValidationError

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment
from nas_cli.errors import Refusal, first_fault
from nas_store import open_store
from nas_store.errors import StoreError


def read_run(folder: Path) -> NASExperiment:
    """Return a run's experiment; fields of a newer version are left out, as of an experiment on a cluster.

    Raises:
        Refusal: the folder cannot be read.
    """
    path = folder / names.RUN_MANIFEST
    try:
        return NASExperiment.model_validate_json(path.read_bytes(), extra="ignore")
    except OSError as error:
        raise Refusal(f"{folder} is not a readable run: {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise Refusal(
            f"{folder} is not a readable run: {path} does not fit this program ({first_fault(error)}): use the version"
            " of nas that has written it"
        ) from error


def write_run(folder: Path, experiment: NASExperiment) -> None:
    """Keep a run's experiment in its folder.

    Raises:
        Refusal: the folder cannot be written to.
    """
    document = experiment.model_dump_json(by_alias=True).encode()
    try:
        open_store(StoreLocation(folder=str(folder))).put(names.RUN_MANIFEST, document)
    except StoreError as error:
        raise Refusal(f"{folder} cannot be used: {error}") from error
