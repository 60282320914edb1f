"""Another experiment's log, for those that begin where it ended: a warm start, and the transfer of what it found.

It is read when a search begins, and what is taken from it goes into that search's own log, so that nothing ever
depends on the other one again.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_api.bounds import usable
from nas_api.child import StoreLocation
from nas_api.experiment import DatasetSpec, ObjectiveSpec
from nas_api.reward import reward
from nas_api.search_space import SearchSpaceSpec
from nas_api.spaces.fixed import FixedSpec, modified
from nas_controller.errors import EarlierMissing, EarlierUnsuitable
from nas_log.errors import LogDamaged
from nas_log.follower import Follower, end_of_log
from nas_log.reader import Sample
from nas_log.records import Inherited
from nas_store import Store, open_store

_FIRST_OBJECT = re.compile(r"([^/]+)/" + re.escape(names.log_key(0)))


@dataclass(frozen=True)
class Earlier:
    """Another experiment whose log exists."""

    name: str
    uid: str | None
    """None: a folder that says nothing of it."""
    store: Store


FindEarlier = Callable[[StoreLocation, str, str | None], Earlier]


def find(location: StoreLocation, name: str, uid: str | None) -> Earlier:
    """Return an experiment by its name.

    In a bucket it is of the same namespace; of a local run it is the folder of that name beside this run's.

    Args:
        location: this experiment's own place.
        name: the other one's name.
        uid: the other one's uid; None where the name is enough.

    Raises:
        EarlierMissing: there is no log of such an experiment.
        EarlierUnsuitable: there are several, and none is named by its uid.
        StoreError: the store cannot be read.
    """
    if location.s3 is None:
        return _beside(location, name, uid)
    namespace, _, own = location.s3.prefix.rstrip("/").rpartition("/")
    namespace = namespace.rpartition("/")[0]
    root = f"{namespace}/{name}/" if namespace else f"{name}/"

    def at(prefix: str) -> Store:
        return open_store(StoreLocation(s3=location.s3.model_copy(update={"prefix": prefix}) if location.s3 else None))

    if uid is None:
        # An experiment may follow up a deleted one of its own name.
        found = {match[1] for key in at(root).list("") if (match := _FIRST_OBJECT.fullmatch(key))} - {own}
        if len(found) > 1:
            raise EarlierUnsuitable(
                f"{len(found)} experiments with the name {name} have left logs: create a new experiment that names"
                f" one by its uid: {', '.join(sorted(found))}"
            )
        if not found:
            raise _missing(name, f"below {at(root).uri('x').removesuffix('x')}")
        (uid,) = found
    store = at(f"{root}{uid}/")
    if store.get(names.log_key(0)) is None:
        raise _missing(name, f"at {store.uri(names.log_key(0))}")
    return Earlier(name, uid, store)


def _beside(location: StoreLocation, name: str, uid: str | None) -> Earlier:
    assert location.folder is not None
    folder = Path(location.folder).absolute().parent / name
    store = open_store(StoreLocation(folder=str(folder)))
    if store.get(names.log_key(0)) is None:
        raise _missing(name, f"in {folder}")
    found = None
    manifest = store.get(names.RUN_MANIFEST)
    if manifest is not None:
        try:
            found = json.loads(manifest)["metadata"]["uid"]
        except (ValueError, KeyError, TypeError) as error:
            raise EarlierUnsuitable(f"{folder / names.RUN_MANIFEST} is not the manifest of a run: {error!r}") from error
    if uid is not None and uid != found:
        raise _missing(name, f"with the uid {uid} in {folder}, whose run has the uid {found}")
    return Earlier(name, found, store)


def _missing(name: str, where: str) -> EarlierMissing:
    return EarlierMissing(
        f"there is no log of an experiment {name} {where}: the search waits for it; if the name is wrong, create a new"
        " experiment with the right one"
    )


def found_architecture(earlier: Earlier, fixed: FixedSpec, dataset: DatasetSpec) -> Architecture:
    """Return the architecture that an experiment has found, once it has ended, modified as this one asks for.

    Args:
        earlier: the experiment.
        fixed: what is to be different.
        dataset: what it is to be trained on here.

    Raises:
        EarlierMissing: it has not ended.
        EarlierUnsuitable: it ended without an architecture, with one that cannot be read or cannot be modified so, or
            with one that this dataset cannot train.
        StoreError: the store cannot be read.
    """
    try:
        if end_of_log(earlier.store) is None:
            raise EarlierMissing(f"the experiment {earlier.name} has not ended: the search begins when it has")
        data = earlier.store.get(names.BEST_ARCHITECTURE)
        if data is None:
            raise EarlierUnsuitable(f"the experiment {earlier.name} has found no architecture")
        architecture = ARCHITECTURE.validate_json(data)
    except (LogDamaged, ValidationError) as error:
        raise EarlierUnsuitable(f"what the experiment {earlier.name} has left cannot be read: {error}") from error
    needed = {
        "convolutional": "images: digits, cifar10, cifar100, images or custom",
        "convolutionalCell": "images: digits, cifar10, cifar100, images or custom",
        "recurrentCell": "text or custom",
        "custom": "custom",
    }[architecture.space]
    if dataset.custom is None and (architecture.space == "custom" or _reads_text(architecture) != _is_text(dataset)):
        raise EarlierUnsuitable(
            f"the experiment {earlier.name} has found an architecture of the space {architecture.space}, which needs"
            f" trainer.dataset to be {needed}"
        )
    try:
        return modified(architecture, fixed)
    except ValueError as error:
        raise EarlierUnsuitable(str(error)) from error


def _reads_text(architecture: Architecture) -> bool:
    return architecture.space == "recurrentCell"


def _is_text(dataset: DatasetSpec) -> bool:
    return dataset.text is not None


@dataclass(frozen=True)
class Extent:
    """How much there is to inherit."""

    samples: int
    next_sample: int
    """One more than the highest number of a sample there."""


def extent(earlier: Earlier, space: SearchSpaceSpec, objective: ObjectiveSpec) -> Extent:
    """Read the whole log once and return how much there is to inherit; see ``inherited`` for the errors."""
    log = Follower(earlier.store)
    samples = sum(1 for _ in _inherited(earlier, log, space, objective))
    return Extent(samples, 0 if log.facts is None else log.facts.next_sample)


def inherited(earlier: Earlier, space: SearchSpaceSpec, objective: ObjectiveSpec) -> Iterator[Inherited]:
    """Yield the samples of a log in the order in which they were observed, with their rewards under our objective.

    Those that it inherited itself and those of a random arm are among them; final trainings are not.

    Args:
        earlier: whose log.
        space: ours, which must be its own.
        objective: ours; rewards are computed anew from the metrics.

    Raises:
        EarlierUnsuitable: the log is of another space, damaged, or has metrics that give no reward here.
        StoreError: the store cannot be read.
    """
    return _inherited(earlier, Follower(earlier.store), space, objective)


def _inherited(
    earlier: Earlier, log: Follower, space: SearchSpaceSpec, objective: ObjectiveSpec
) -> Iterator[Inherited]:
    lowest = 0.0
    for sample in _of_space(earlier, log, space):
        if sample.final is not None or sample.state == "Lost":
            continue
        # An older version took every finite metric.
        diverged = sample.state == "Diverged" or not usable(sample.metrics.get(objective.metric, 0.0))
        value = lowest if diverged else _reward(earlier, objective, sample)
        lowest = min(lowest, value)
        yield Inherited(
            sample=sample.number,
            architecture=sample.architecture,
            log_probability=sample.log_probability,
            metrics=sample.metrics,
            diverged=diverged,
            reward=value,
            stopped=sample.stopped,
        )


def _of_space(earlier: Earlier, log: Follower, space: SearchSpaceSpec) -> Iterator[Sample]:
    """Yield the samples of a log, once it is known to be of this space."""
    ended = log.read()
    try:
        # Whether there is one or not: the log's beginning has been read then.
        first = next(ended, None)
        if log.facts is not None and log.facts.space_spec != space:
            raise EarlierUnsuitable(
                f"the experiment {earlier.name} searched another space: a warm start needs the very same"
                " spec.searchSpace; create a new experiment"
            )
        if first is not None:
            yield first
            yield from ended
    except LogDamaged as error:
        raise EarlierUnsuitable(f"the log of the experiment {earlier.name} cannot be read: {error}") from error


def _reward(earlier: Earlier, objective: ObjectiveSpec, sample: Sample) -> float:
    metrics = sample.metrics
    try:
        return reward(objective, metrics[objective.metric], metrics)
    except KeyError:
        problem = f"it has no {objective.metric}, only {sorted(metrics)}"
    except (ValueError, ArithmeticError) as error:
        problem = str(error)
    raise EarlierUnsuitable(
        f"sample {sample.number} of the experiment {earlier.name} has no reward under spec.objective: {problem}"
    )
