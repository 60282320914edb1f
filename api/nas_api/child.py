"""What a trainer is told, what it answers, and with which exit code it ends."""

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from nas_api.architecture import Architecture
from nas_api.base import Duration, MetricName, Model, PositiveDecimal, is_none
from nas_api.bounds import LARGEST_COUNT, Count, Name, Place, Seconds, Sentence, usable
from nas_api.experiment import LatencySpec, Share, TrainingSpec
from nas_api.stopping import Stopped, StopRule


class ExitCode(IntEnum):
    """How a trainer ends. Codes 10 to 19 are ours; what others mean is in the name."""

    OK = 0
    """A result object exists (ours or an earlier attempt's); a diverged training is a result too."""
    INVALID_INPUT = 10
    """The input document or the architecture cannot be used: never retried."""
    OUT_OF_MEMORY = 11
    """The network does not fit: never retried."""
    DATASET_UNAVAILABLE = 12
    """The dataset is missing or broken: the search waits for the cure, then tries again."""
    STORAGE_REFUSED = 13
    """Bucket, endpoint or credentials refused us: the search waits for the cure, then tries again."""
    NO_CUDA = 14
    """A GPU was asked for, and torch cannot use one: the search waits for the cure, then tries again."""
    STORAGE_UNREACHABLE = 15
    """The S3 server does not answer, or is in trouble: the search waits for the cure, then tries again."""
    OUT_OF_MEMORY_KILL = 137
    """SIGKILL; with reason OOMKilled it is the kernel's out-of-memory killer."""
    TERMINATED = 143
    """SIGTERM: pre-empted or deleted; the next attempt goes on from the checkpoint."""


class S3Location(Model):
    """Where an S3 store is; credentials come from the environment, never from here."""

    bucket: str
    prefix: str
    """Key prefix of the experiment, ending in a slash."""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = True


class StoreLocation(Model):
    """Exactly one of a folder and an S3 location."""

    folder: str | None = None
    s3: S3Location | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StoreLocation":
        if (self.folder is None) == (self.s3 is None):
            raise ValueError("exactly one of folder and s3 must be set")
        return self


class FinalSettings(Model):
    """What a final training has that a search's child has not (paper section 4.1)."""

    batch_norm_epsilon: PositiveDecimal = "0.00001"
    decay_epoch: Annotated[int, Field(ge=1)] | None = None
    """The learning rate is divided by 10 after this epoch; None: never."""
    dropout: Annotated[Share | None, Field(exclude_if=is_none)] = None
    """Of a language model, instead of ``language.dropout``; None: that."""
    initial_scale: Annotated[PositiveDecimal | None, Field(exclude_if=is_none)] = None
    """Bound of a language model's initial weights; None: one over the square root of its width."""
    test: bool = False
    """Train on everything but the test set, measure the metric on the test set once at the end, and leave the weights
    and the ONNX model beside the result. Otherwise the metric is the validation set's, as in a search."""
    on_validation: Annotated[bool, Field(exclude_if=bool)] = True
    """Whether the test trains on the validation set as well. If not, it is the test of a network that another final
    training has left: each of those leaves its last checkpoint then."""
    repeats: Annotated[int | None, Field(exclude_if=is_none)] = None
    """Of a test: the sample whose seed it has, and whose last checkpoint it takes over unless ``on_validation`` adds
    images or text; None: the test has a seed of its own."""


class _Attempt(Model):
    """Which attempt at which sample this is. Apart, so that in the document it comes before the manifest's fields."""

    version: Literal[1] = 1
    experiment: str
    sample: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    seed: int
    metric: str
    architecture: Architecture


class TrainerInput(TrainingSpec, _Attempt):
    """What one child is told: the JSON document in ``NAS_INPUT`` where it has a process of its own."""

    final: FinalSettings | None = None
    """None: a child of the search."""
    checkpoint_every: Annotated[Duration | None, Field(exclude_if=is_none)] = None
    """The least time between two checkpoints; None: the trainer's own."""
    stop: StopRule | None = None
    """What ends it early; None: nothing."""
    latency: Annotated[LatencySpec | None, Field(exclude_if=is_none)] = None
    """How the trained network's latency is measured; None: not at all."""
    store: StoreLocation


def of_final_training(inputs: Sequence[TrainerInput]) -> bool:
    """Return whether the children of one launch are of the final training; all are or none."""
    return inputs[0].final is not None


class TrainerPack(Model):
    """The JSON document in ``NAS_INPUT`` of a process that trains several children (``trainer.childrenPerPod``)."""

    version: Literal[1] = 1
    children: Annotated[tuple[TrainerInput, ...], Field(min_length=2)]


def trainer_document(inputs: tuple[TrainerInput, ...]) -> str:
    """Return what ``NAS_INPUT`` is for these children: for one its own document, as for every program that reads it."""
    document = inputs[0] if len(inputs) == 1 else TrainerPack(children=inputs)
    return document.model_dump_json(by_alias=True)


def read_trainer_document(text: str) -> tuple[TrainerInput, ...]:
    """Return the children that ``NAS_INPUT`` tells of, in their order.

    Raises:
        ValidationError: it is neither document.
    """
    try:
        document = json.loads(text)
    except ValueError:
        # The model says what is wrong with it.
        document = None
    if isinstance(document, dict) and "children" in document:
        return TrainerPack.model_validate_json(text).children
    return (TrainerInput.model_validate_json(text),)


LATENCY = "latencySeconds"
"""The metric that the built-in trainer measures where a penalty names it."""

MAX_RESULT_BYTES = 2**20
"""The largest result object, or result.json of a user's own trainer, that is read; a larger one loses its sample
(InvalidResult)."""

MAX_TRAINING_BYTES = 2**20
"""The largest training.json that is read; a larger one is not handed over."""

MAX_MODEL_BYTES = 2**32
"""The largest file of a trained network that is handed over: weights, ONNX model, vocabulary or preprocessing."""

MAX_CHECKPOINT_BYTES = 2**31
"""The largest checkpoint of a user's own trainer that is kept."""


def counted(metrics: dict[str, float], parameters: int) -> dict[str, float]:
    """Return metrics with ``parameters`` among them, where the trainer counted those (not 0) apart."""
    # A log of an older version may have a number that no float holds.
    return {"parameters": float(min(parameters, LARGEST_COUNT)), **metrics} if parameters else metrics


class UsedGpu(Model):
    """On which GPU a network was trained, and how."""

    name: Name
    """As its driver calls it."""
    capability: Name
    """What it can do, in CUDA's versions: 8.0."""
    precision: Literal["bfloat16", "float16", "tf32", "float32"]
    """In which matrices are multiplied and convolved; sums, weights and the optimiser have float32 in any case."""


def _of_a_training(stopped: Stopped | None) -> Stopped | None:
    """Refuse what no training can have come to."""
    if stopped is not None and not stopped.epoch <= stopped.of <= LARGEST_COUNT:
        raise ValueError("stopped.epoch must be at most stopped.of, and that no more than a 64-bit number")
    return stopped


class Result(Model):
    """What a trainer writes once to ``samples/<id>/result.json``. Its bounds are those of ``nas_api.bounds``."""

    version: Literal[1] = 1
    sample: Count
    attempt: Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
    architecture: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the architecture that was trained."""
    status: Literal["Trained", "Diverged", "Invalid"] = "Trained"
    """Invalid: a user's own trainer ended well and left no result that can be used."""
    metrics: Annotated[dict[MetricName, float], Field(max_length=64)]
    """Numbers by name; empty when diverged. The objective's metric must be among them when trained."""
    history: Annotated[tuple[float, ...], Field(max_length=10_000)] = ()
    """The objective's metric after each epoch."""
    stopped: Annotated[Stopped | None, AfterValidator(_of_a_training)] = None
    """Where early stopping has ended it; the metrics are of what it had there. None: it came to its end."""
    seconds: Seconds = 0.0
    """Wall-clock time of the training."""
    parameters: Count = 0
    """Weights of the network; 0 where the trainer does not count them."""
    gpu: Annotated[UsedGpu | None, Field(exclude_if=is_none)] = None
    """Where the built-in trainer has trained it; None: on a CPU."""
    message: Sentence = ""
    """What is wrong with an invalid one and where to look, for people."""
    look: Place = ""
    """Where the output of a user's own trainer is, for people; empty for the built-in one."""

    @classmethod
    def parse(cls, data: bytes, *, sample: int, digest: str, metric: str) -> "Result":
        """Read a result object and check that it answers the question that was asked.

        Raises:
            ValueError: not JSON, not a result, another sample or architecture, or the metric is missing; or a
                trainer says itself that its result is invalid.
        """
        result = cls.model_validate(json.loads(data), extra="ignore")
        if result.sample != sample:
            raise ValueError(f"the result is of sample {result.sample}, not {sample}")
        if result.architecture != digest:
            raise ValueError("the result is of another architecture")
        if result.status == "Invalid":
            raise ValueError(result.message)
        if result.status == "Trained" and metric not in result.metrics:
            raise ValueError(f"metrics has no {metric!r}, only {sorted(result.metrics)}")
        return result

    @property
    def values(self) -> dict[str, float]:
        """The metrics, with ``parameters`` among them where the trainer counted those apart."""
        return counted(self.metrics, self.parameters)

    def diverged(self, metric: str) -> bool:
        """Return whether the training diverged: said so, or its metric is no usable number."""
        return self.status == "Diverged" or not usable(self.metrics[metric])

    def termination_message(self) -> str:
        """Return the result as JSON of at most 4,096 bytes, what a kubelet keeps; the history goes first."""
        document: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        text = json.dumps(document, separators=(",", ":"))
        if len(text) > 4096:
            text = json.dumps({**document, "history": []}, separators=(",", ":"))
        return text[:4096]
