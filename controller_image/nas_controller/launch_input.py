"""What a trainer is told about one attempt at one sample. Pure."""

from hashlib import blake2b

from nas_api.architecture import Architecture
from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import NASExperiment
from nas_api.stopping import StopRule
from nas_log.records import FinalRun


def training_seed(seed: int, sample: int) -> int:
    """Return the seed of a sample's training: the same for each attempt, so that a retry repeats it."""
    return int.from_bytes(blake2b(f"{seed}/{sample}/train".encode(), digest_size=4).digest(), "little") >> 1


def trainer_input(
    experiment: NASExperiment,
    location: StoreLocation,
    sample: int,
    attempt: int,
    architecture: Architecture,
    run: FinalRun | None = None,
    stop: StopRule | None = None,
) -> TrainerInput:
    """Return the input document of an attempt; ``run`` makes it a final training, ``stop`` may end it early."""
    spec = experiment.spec
    trainer = spec.trainer
    return TrainerInput(
        experiment=experiment.metadata.name,
        sample=sample,
        attempt=attempt,
        seed=training_seed(spec.searcher.seed, sample),
        metric=spec.objective.metric,
        architecture=architecture,
        dataset=trainer.dataset,
        epochs=trainer.epochs if run is None else run.epochs,
        reward_epochs=trainer.reward_epochs,
        batch_size=trainer.batch_size,
        optimizer=trainer.optimizer if run is None else run.optimizer,
        threads=trainer.threads,
        language=trainer.language,
        gpu=trainer.gpu,
        dataset_cache=trainer.dataset_cache,
        final=None if run is None else run.settings,
        stop=stop,
        store=location,
    )
