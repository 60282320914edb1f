"""What a search has left under ``best/``, read as one network: for whoever hands it over or registers it."""

from dataclasses import dataclass

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_api.handover import Provenance
from nas_api.search_space import SearchSpaceSpec, arranged, search_space
from nas_store import Store

KEYS = (
    names.BEST_ARCHITECTURE,
    names.BEST_MODULE,
    names.BEST_VOCABULARY,
    names.BEST_PREPROCESSING,
    names.BEST_ONNX,
    names.BEST_WEIGHTS,
    names.BEST_PROVENANCE,
)
"""All that may be there, in the order in which the controller writes it."""


class BestIsReplaced(Exception):
    """The best network is just being replaced by a better one: what is there is of both. Read again."""


@dataclass(frozen=True)
class Best:
    """The best network so far."""

    architecture: Architecture
    """A user's own decisions are in the manifest's order."""
    files: dict[str, bytes]
    """All that there is of it, by file name, in the order of ``KEYS``."""


def read_best(store: Store, space: SearchSpaceSpec) -> Best | None:
    """Return what lies under ``best/``, all of it of one network; None as long as there is none.

    Raises:
        BestIsReplaced: it is not all of one network.
        StoreError: the store cannot be read.
    """
    # In the order that is the reverse of the controller's: what is here is complete, or of another architecture.
    objects = {key: store.get(key) for key in reversed(KEYS)}
    found = {names.file(key): data for key in KEYS if (data := objects[key]) is not None}
    document = found.get(names.file(names.BEST_ARCHITECTURE))
    if document is None:
        return None
    architecture = ARCHITECTURE.validate_json(document)
    architecture = arranged(search_space(space, architecture), architecture)
    provenance = found.get(names.file(names.BEST_PROVENANCE))
    if provenance is not None and Provenance.model_validate_json(provenance).digest != architecture.digest:
        raise BestIsReplaced("the best network is just being replaced by a better one")
    return Best(architecture, found)
