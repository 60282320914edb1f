"""What a search has left under ``best/``, read as one network: for whoever hands it over or registers it.

Whoever may write to the bucket may write there, so nothing is taken from it that the search's log does not vouch for:
the architecture is one that the log has a result of, the trained network's files have the digests that its test found,
and the code that builds it is made here.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from pydantic import ValidationError

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_api.base import Model
from nas_api.child import MAX_MODEL_BYTES
from nas_api.experiment import DatasetSpec
from nas_api.handover import Preprocessing, Provenance, Vocabulary
from nas_api.search_space import SearchSpaceSpec, arranged, search_space
from nas_api.source import architecture_source
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_log.reader import Sample
from nas_store import Store
from nas_store.errors import TooLarge

TRAINED = (
    (names.vocabulary_key, names.BEST_VOCABULARY),
    (names.preprocessing_key, names.BEST_PREPROCESSING),
    (names.onnx_key, names.BEST_ONNX),
    (names.weights_key, names.BEST_WEIGHTS),
)
"""What the test of the final training leaves: where it is, by its sample, and where it goes."""

KEYS = (
    names.BEST_ARCHITECTURE,
    names.BEST_MODULE,
    *(key for _, key in TRAINED),
    names.BEST_PROVENANCE,
)
"""All that may be there, in the order in which the controller writes it."""

_MAX_DOCUMENT_BYTES = 2**28
_DOCUMENTS: dict[str, type[Model]] = {
    names.BEST_VOCABULARY: Vocabulary,
    names.BEST_PREPROCESSING: Preprocessing,
    names.BEST_PROVENANCE: Provenance,
}


class BestIsReplaced(Exception):
    """The best network is just being replaced by a better one: what is there is of both. Read again."""


class BestTampered(Exception):
    """What is there is not what the search has left; the message names the object and what to do."""


@dataclass
class Evidence:
    """What a log says of the network that its search hands over; ``add`` takes its samples, in any order."""

    finished: bool = False
    """Whether the search has ended: what is best now, is it for ever."""
    tested: Sample | None = None
    """The test of the final training, once it has a result."""
    _searched: set[str] = field(default_factory=set)
    """Digests of the architectures that the search has a result of."""
    _finals: dict[str, Sample] = field(default_factory=dict)
    """By digest, those that were trained finally, with the training of highest reward."""
    _highest: float = -inf
    _best: set[str] = field(default_factory=set)
    """Digests of the architectures that the search has given its highest reward; those stopped early have none."""

    def add(self, sample: Sample) -> None:
        """Take a sample that has ended."""
        if sample.state != "Observed" or sample.reward is None or sample.arm == "inherited":
            return
        digest = sample.architecture.digest
        if sample.final is None:
            self._searched.add(digest)
            if sample.stopped is None and sample.reward >= self._highest:
                self._best = {digest} if sample.reward > self._highest else {*self._best, digest}
                self._highest = sample.reward
        elif sample.final.settings.test:
            self.tested = sample
        elif (before := self._finals.get(digest)) is None or sample.reward > (before.reward or 0.0):
            self._finals[digest] = sample

    def check(self, digest: str) -> None:
        """Refuse an architecture that the search does not hand over.

        Raises:
            BestTampered: the log has no result of it.
            BestIsReplaced: the log has a better one, which is not there yet, or not any more.
        """
        if digest not in self._searched:
            raise BestTampered(
                f"{names.BEST_ARCHITECTURE} is no architecture that the search's log has a result of:"
                " restore it from the bucket's versions"
            )
        expected = {self.tested.architecture.digest} if self.tested is not None else set(self._finals)
        if expected and digest not in expected:
            raise BestIsReplaced("the best network is just being replaced by the final training's winner")
        if self.finished and not expected and digest not in self._best:
            raise BestIsReplaced(
                f"{names.BEST_ARCHITECTURE} is not the best of the search, which has ended: it is just being replaced,"
                " or has to be restored from the bucket's versions"
            )

    def epsilon(self, digest: str) -> dict[str, float]:
        """Return what batch normalisation was trained with, as an argument; empty where it was the usual."""
        final = self.tested or self._finals.get(digest)
        return (
            {} if final is None or final.final is None else {"epsilon": float(final.final.settings.batch_norm_epsilon)}
        )


@dataclass(frozen=True)
class Best:
    """The best network so far."""

    architecture: Architecture
    """A user's own decisions are in the manifest's order."""
    files: dict[str, bytes]
    """All that there is of it, by file name, in the order of ``KEYS``."""
    digests: dict[str, str]
    """SHA-256 in hex of the trained network's files, by name, as the log has them."""
    unverified: tuple[str, ...]
    """Files of a trained network whose digests the log does not have, because an older version has written it."""


def read_best(
    store: Store, space: SearchSpaceSpec, dataset: DatasetSpec | None, evidence: Callable[[], Evidence]
) -> Best | None:
    """Return what lies under ``best/``, all of it of one network; None as long as there is none.

    Args:
        store: where it is.
        space: what was searched.
        dataset: what the network was trained on, which the code of one for images depends on; None: it is not known.
        evidence: reads the log; called after the objects have been read, so that it cannot know less than they.

    Raises:
        BestIsReplaced: it is not all of one network.
        BestTampered: it is not what the search has left.
        StoreError: the store cannot be read.
    """
    # In the order that is the reverse of the controller's: what is here is complete, or of another architecture.
    objects = {key: _get(store, key) for key in reversed(KEYS) if key != names.BEST_MODULE}
    document = objects[names.BEST_ARCHITECTURE]
    if document is None:
        return None
    known = evidence()
    try:
        architecture = ARCHITECTURE.validate_json(document)
        architecture = arranged(search_space(space, architecture), architecture)
    except ValueError as error:
        raise BestTampered(f"{names.BEST_ARCHITECTURE} is no architecture of this search: {_cure(error)}") from error
    provenance = _provenance(objects)
    if provenance is not None and provenance.digest != architecture.digest:
        raise BestIsReplaced("the best network is just being replaced by a better one")
    known.check(architecture.digest)
    digests = {} if known.tested is None else known.tested.files or {}
    unverified = _verify(objects, known, digests)
    if provenance is not None and provenance.files is not None and provenance.files != digests:
        raise BestTampered(
            f"{names.BEST_PROVENANCE} has other digests than the search's log: restore it from the bucket's versions"
        )
    objects[names.BEST_MODULE] = _module(architecture, dataset, known.epsilon(architecture.digest))
    found = {names.file(key): data for key in KEYS if (data := objects.get(key)) is not None}
    return Best(architecture, found, digests, unverified)


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, limit=MAX_MODEL_BYTES if key.endswith((".onnx", ".safetensors")) else _MAX_DOCUMENT_BYTES)
    except TooLarge as error:
        raise BestTampered(f"{error}, which the search does not hand over") from error


def _provenance(objects: dict[str, bytes | None]) -> Provenance | None:
    """Return where it comes from, once all documents are what they should be."""
    read = {}
    for key, model in _DOCUMENTS.items():
        data = objects[key]
        try:
            read[key] = None if data is None else model.model_validate_json(data, extra="ignore")
        except ValidationError as error:
            raise BestTampered(f"{key} cannot be read: {_cure(error)}") from error
    provenance = read[names.BEST_PROVENANCE]
    assert provenance is None or isinstance(provenance, Provenance)
    return provenance


def _verify(objects: dict[str, bytes | None], known: Evidence, digests: dict[str, str]) -> tuple[str, ...]:
    """Hold the trained network's files against the log; return those that it does not know the digest of."""
    unverified = []
    for _, key in TRAINED:
        data, digest = objects[key], digests.get(names.file(key))
        if data is None and digest is not None:
            raise BestIsReplaced(f"{key} is missing: it is just being written, or has to be restored")
        if data is None:
            continue
        if digest is None:
            if known.tested is None or known.tested.files is not None:
                raise BestTampered(f"{key} is there, and no test in the search's log has left it: remove it")
            unverified.append(names.file(key))
        elif (found := hashlib.sha256(data).hexdigest()) != digest:
            raise BestTampered(
                f"{key} is not the file that was tested: its SHA-256 is {found}, the search's log has {digest}; restore"
                " it from the bucket's versions"
            )
    return tuple(unverified)


def _module(architecture: Architecture, dataset: DatasetSpec | None, epsilon: dict[str, float]) -> bytes | None:
    if dataset is None:
        source = architecture_source(architecture) if isinstance(architecture, RecurrentCellArchitecture) else None
    else:
        source = architecture_source(architecture, in_channels=dataset.channels, classes=dataset.classes, **epsilon)
    return None if source is None else source.encode()


def _cure(error: ValueError) -> str:
    first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return f"{first}; restore it from the bucket's versions"
