"""What a trainer is told: by the controller for a child, by the operator for the launch that it tries first. Pure."""

from hashlib import blake2b
from typing import Protocol

from nas_api.architecture import Architecture
from nas_api.child import LATENCY, FinalSettings, StoreLocation, TrainerInput
from nas_api.decisions import longest
from nas_api.experiment import FinalTrainingSpec, LatencySpec, NASExperiment, OptimizerSpec, TrainingSpec
from nas_api.search_space import search_space
from nas_api.stopping import StopRule

# As long as any number of a sample or attempt: a budget may have 1,000,000 samples.
_LONGEST_NUMBER = 9_999_999
_LARGEST_SEED = 2**31 - 1
_LONGEST_BOUND = -1.2345678901234567e-300


class FinalTraining(Protocol):
    """What a final training has in the place of what the manifest says."""

    @property
    def settings(self) -> FinalSettings: ...

    @property
    def optimizer(self) -> OptimizerSpec: ...

    @property
    def epochs(self) -> int: ...


def training_seed(seed: int, sample: int) -> int:
    """Return the seed of a sample's training: the same for each attempt, so that a retry repeats it."""
    return int.from_bytes(blake2b(f"{seed}/{sample}/train".encode(), digest_size=4).digest(), "little") >> 1


def trainer_input(
    experiment: NASExperiment,
    location: StoreLocation,
    sample: int,
    attempt: int,
    architecture: Architecture,
    final: FinalTraining | None = None,
    stop: StopRule | None = None,
) -> TrainerInput:
    """Return the input document of an attempt.

    Args:
        experiment: the manifest.
        location: where the store is for the trainer.
        sample: the sample's number.
        attempt: counts the launches of this sample from 1.
        architecture: what is trained.
        final: makes it a final training.
        stop: what may end it early.
    """
    spec = experiment.spec
    # Whatever both know is handed on as it is: a new field of theirs needs nothing here.
    training = {name: getattr(spec.trainer, name) for name in TrainingSpec.model_fields}
    if final is not None:
        training |= {"optimizer": final.optimizer, "epochs": final.epochs}
        if spec.final_training is not None:
            training["checkpoint_every"] = spec.final_training.checkpoint_every
    repeats = None if final is None else final.settings.repeats
    return TrainerInput(
        experiment=experiment.metadata.name,
        sample=sample,
        attempt=attempt,
        seed=training_seed(spec.searcher.seed, sample if repeats is None else repeats),
        metric=spec.objective.metric,
        architecture=architecture,
        final=None if final is None else final.settings,
        stop=stop,
        latency=_latency(experiment),
        store=location,
        **training,
    )


def _latency(experiment: NASExperiment) -> LatencySpec | None:
    """Return how latency is measured, where a penalty asks the built-in trainer for it."""
    trainer = experiment.spec.trainer
    asked = any(penalty.metric == LATENCY for penalty in experiment.spec.objective.penalties)
    # A user's own trainer measures for itself.
    return (trainer.latency or LatencySpec()) if asked and trainer.dataset.custom is None else None


def largest_launches(experiment: NASExperiment, location: StoreLocation) -> tuple[tuple[TrainerInput, ...], ...]:
    """Return what the trainer is told in the launches of this experiment that take the most words.

    First of the search: as many children as share a pod, each with the longest architecture of the budget's last sample
    and with the longest numbers. Then a final training, where there is to be one. What an earlier experiment adds to a
    schedule of depths (warmStart), or has found (fixed), only the controller knows.
    """
    spec = experiment.spec
    space = search_space(spec.search_space)
    architecture = space.decode(longest(space.decisions(spec.budget.samples - 1)))
    plain = trainer_input(experiment, location, _LONGEST_NUMBER, _LONGEST_NUMBER, architecture)
    plain = plain.model_copy(update={"seed": _LARGEST_SEED})
    child = plain
    if (stopping := spec.trainer.early_stopping) is not None:
        stop = StopRule(epoch=stopping.epoch, bound=_LONGEST_BOUND, goal=spec.objective.goal)
        child = plain.model_copy(update={"stop": stop})
    search = (child,) * spec.trainer.children_per_pod
    return (search,) if spec.final_training is None else (search, (_longest_final(plain, spec.final_training),))


def _longest_final(plain: TrainerInput, spec: FinalTrainingSpec) -> TrainerInput:
    grid, optimizer = spec.grid, plain.optimizer
    return plain.model_copy(
        update={
            "epochs": spec.epochs,
            "checkpoint_every": spec.checkpoint_every,
            "final": FinalSettings(
                batch_norm_epsilon=max((FinalSettings().batch_norm_epsilon, *grid.batch_norm_epsilon), key=len),
                decay_epoch=max(grid.decay_epoch, default=None),
                dropout=max(grid.dropout, key=len, default=None),
                initial_scale=max(grid.initial_scale, key=len, default=None),
                on_validation=spec.train_on_validation,
                repeats=_LONGEST_NUMBER,
            ),
            "optimizer": optimizer.model_copy(
                update={
                    "learning_rate": max((optimizer.learning_rate, *grid.learning_rate), key=len),
                    "weight_decay": max((optimizer.weight_decay, *grid.weight_decay), key=len),
                }
            ),
        }
    )
