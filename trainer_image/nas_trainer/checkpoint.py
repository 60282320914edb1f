"""Checkpoints as safetensors: tensors and JSON, never pickle, so that reading one can run no code."""

import hashlib
import json
from typing import Annotated, Literal

import safetensors
import safetensors.torch
from pydantic import Field
from torch import Tensor

from nas_api.base import Model
from nas_api.child import TrainerInput
from nas_store import tensors
from nas_trainer.task import Progress

# What may differ between two attempts of one training, or between a training and a longer one.
_NOT_OF_THE_STATE = {
    "version",
    "experiment",
    "sample",
    "attempt",
    "epochs",
    "reward_epochs",
    "threads",
    "gpu",
    "dataset_cache",
    "checkpoint_every",
    "stop",
    "latency",
    "store",
}
# safetensors keeps metadata as text by name; ours is one JSON document.
_KEY = "nas"


class _Metadata(Model):
    version: Literal[1] = 1
    fingerprint: str
    metrics: Annotated[tuple[float, ...], Field(max_length=10_000)]
    losses: Annotated[tuple[float, ...], Field(max_length=10_000)]


def fingerprint(document: TrainerInput) -> str:
    """Return a digest of everything that a training's state depends on.

    The number of epochs is not among it, unless the learning rate depends on that.
    """
    final = document.final
    if final is not None and final.test and not final.on_validation:
        # What is tested has been trained like this, by the one that it repeats.
        trained = final.model_copy(update={"test": False, "repeats": None})
        document = document.model_copy(update={"final": trained})
    scheduled = {"epochs"} if document.optimizer.schedule != "Constant" else set()
    parts = document.model_dump(mode="json", by_alias=True, exclude=_NOT_OF_THE_STATE - scheduled)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode(document: TrainerInput, state: dict[str, Tensor], progress: Progress) -> bytes:
    """Return a checkpoint of a training's state after some epoch."""
    metadata = _Metadata(
        fingerprint=fingerprint(document), metrics=progress.metrics, losses=progress.losses
    ).model_dump_json(by_alias=True)
    plain = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(plain, {_KEY: metadata})


def decode(document: TrainerInput, data: bytes) -> tuple[dict[str, Tensor], Progress]:
    """Return the state in a checkpoint.

    Raises:
        ValueError: it is damaged, or of another training, or has gone further than is asked for.
    """
    try:
        metadata = _Metadata.model_validate_json(tensors.metadata(data)[_KEY])
        state = safetensors.torch.load(data)
    # ValueError: a ValidationError, too.
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    if metadata.fingerprint != fingerprint(document):
        raise ValueError("it belongs to a training run with another architecture, dataset, optimiser or seed")
    progress = Progress(metadata.metrics, metadata.losses)
    if not 0 < progress.epochs <= document.epochs or len(progress.metrics) not in (0, progress.epochs):
        raise ValueError(f"it has {progress.epochs} epochs out of {document.epochs}")
    return state, progress
