"""What lies in ``best/``: an architecture, its code, the trained network if there is one, and where they come from.

When it is written is for the search to decide. Before each object it is asked whether that may still be done: a
controller that was paused and overtaken must not put its older best over the newer one.
"""

from collections.abc import Callable
from typing import Any

import structlog
from pydantic import JsonValue, TypeAdapter, ValidationError

import nas_api
from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import MAX_MODEL_BYTES, MAX_TRAINING_BYTES
from nas_api.experiment import NASExperiment
from nas_api.handover import Provenance
from nas_api.harmless import harmless
from nas_api.source import architecture_source
from nas_controller.final_stage import FinalStage
from nas_controller.state import BestSample
from nas_log.best import TRAINED
from nas_log.errors import Fenced
from nas_store import Store
from nas_store.errors import TooLarge

_log = structlog.get_logger()

_TRAINING: TypeAdapter[tuple[dict[str, JsonValue]]] = TypeAdapter(tuple[dict[str, JsonValue]])
_MAX_PROVENANCE_BYTES = 2**22


class BestWriter:
    """Writes ``best/``, what says where it comes from last; both methods may be called again, and do no harm then."""

    def __init__(self, store: Store, holds: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            store: where it lies, and the samples.
            holds: returns whether this process still is the one that writes the log.
        """
        self._store = store
        self._holds = holds

    def leader(self, experiment: NASExperiment, best: BestSample) -> None:
        """Write the search's best, which nobody has trained for longer.

        Raises:
            Fenced: another process writes the log.
            StoreError: not all of it is written.
        """
        self._write_architecture(experiment, best.architecture)
        self._write_provenance(experiment, best.sample, best.architecture, best.reward, best.metric)

    def winner(self, experiment: NASExperiment, stage: FinalStage, images: dict[str, str]) -> None:
        """Write the final training's winner with what its test has left: the network, and how to feed it.

        Args:
            experiment: whose best it is.
            stage: one that has a winner.
            images: see :class:`nas_api.handover.Provenance`; those that are known no more, as what was written before
                has them, stay.

        Raises:
            Fenced: another process writes the log.
            StoreError: not all of it is written.
        """
        winner = stage.winner
        assert winner is not None and winner.run is not None and winner.metric is not None
        known = self._images(winner.architecture, stage.test_sample)
        self._write_architecture(experiment, winner.architecture, winner.run.settings.batch_norm_epsilon)
        trial = stage.winning
        tested: dict[str, Any] = {
            "validation_spread": None if trial is None else trial.spread,
            "images": {**known, **images},
        }
        if stage.test_sample is not None and stage.test_metric is not None:
            for source, target in TRAINED:
                self._check(target)
                try:
                    # A text has no pixels, an image no words; and a user's own trainer leaves what it wants.
                    self._store.copy(source(stage.test_sample), target, limit=MAX_MODEL_BYTES)
                except TooLarge as error:
                    _log.warning("not handed over", key=target, error=str(error))
            tested |= {
                "test_metric": stage.test_metric,
                "test_sample": stage.test_sample,
                "files": stage.test_files,
                "training": self._training(stage.test_sample),
            }
        self._write_provenance(experiment, winner.sample, winner.architecture, winner.reward, winner.metric, **tested)

    def _training(self, sample: int) -> dict[str, JsonValue] | None:
        """Return what the trainer says it was told; None where it says nothing, or nothing that can be read."""
        key = names.training_key(sample)
        try:
            data = self._store.get(key, limit=MAX_TRAINING_BYTES)
            # Within something, as in provenance.json: what is nested too deeply there is refused here.
            return None if data is None else _TRAINING.validate_json(b"[" + data + b"]")[0]
        except (TooLarge, ValidationError) as error:
            _log.warning("not handed over", key=key, error=harmless(str(error))[:500])
            return None

    def _images(self, architecture: Architecture, test_sample: int | None) -> dict[str, str]:
        """Return which images have made this network, as what was written before says: their pods may be gone now."""
        try:
            data = self._store.get(names.BEST_PROVENANCE, limit=_MAX_PROVENANCE_BYTES)
            before = None if data is None else Provenance.model_validate_json(data, extra="ignore")
        except (TooLarge, ValidationError):
            # Nothing of ours: it is replaced.
            return {}
        same = before is not None and (before.digest, before.test_sample) == (architecture.digest, test_sample)
        return dict(before.images) if before is not None and same else {}

    def _write_architecture(
        self, experiment: NASExperiment, architecture: Architecture, epsilon: str | None = None
    ) -> None:
        """Write an architecture and its code; ``epsilon`` is batch normalisation's, where it was not the usual."""
        dataset = experiment.spec.trainer.dataset
        changed = {} if epsilon is None else {"epsilon": float(epsilon)}
        module = architecture_source(architecture, in_channels=dataset.channels, classes=dataset.classes, **changed)
        self._put(names.BEST_ARCHITECTURE, architecture.canonical().encode())
        if module is not None:
            self._put(names.BEST_MODULE, module.encode())

    def _write_provenance(
        self,
        experiment: NASExperiment,
        sample: int,
        architecture: Architecture,
        reward: float,
        metric: float,
        **tested: Any,
    ) -> None:
        """Write where all of ``best/`` comes from; it must be the last to be written."""
        metadata, spec = experiment.metadata, experiment.spec
        provenance = Provenance(
            experiment=metadata.name,
            namespace=metadata.namespace,
            uid=metadata.uid,
            sample=sample,
            digest=architecture.digest,
            metric_name=spec.objective.metric,
            goal=spec.objective.goal,
            reward=reward,
            validation_metric=metric,
            trainer_image=spec.trainer.image,
            software=nas_api.__version__,
            **tested,
        )
        self._put(names.BEST_PROVENANCE, provenance.model_dump_json(by_alias=True).encode())

    def _put(self, key: str, data: bytes) -> None:
        if not self._store.replace(key, data, self._holds):
            raise _overtaken(key)

    def _check(self, key: str) -> None:
        if not self._holds():
            raise _overtaken(key)


def _overtaken(key: str) -> Fenced:
    return Fenced(f"{key} is not this process's to write any more: the log goes on beyond what it knows")
