"""What a user may write in a NASExperiment, and what its status says.

The CustomResourceDefinition is generated from these models (``crd.py``): attribute docstrings become
``kubectl explain``, constraints become the schema, and ``cel`` rules become x-kubernetes-validations,
so that the API server itself refuses a bad manifest.
"""

import operator
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from nas_api.base import (
    Decimal,
    DnsLabel,
    DnsLabelValue,
    Duration,
    MetricName,
    Model,
    PositiveDecimal,
    duration,
    is_none,
)
from nas_api.cel import UNIQUE, at_most_one, cel, exactly_one
from nas_api.names import MAX_EXPERIMENT_NAME
from nas_api.search_space import SearchSpaceSpec

UNSEEN = -1
"""``status.observedGeneration`` of an experiment that no operator has looked at."""


class Empty(Model):
    """A choice without settings: written as ``{}``."""


Share = Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))]
"""A part of a whole, never all of it."""


def _is_zero(share: str) -> bool:
    return share == "0"


def _is_one(count: int) -> bool:
    return count == 1


# ---------------------------------------------------------------- objective


class InverseSquareReward(Model):
    """The reward c / metric^2, which the paper uses for perplexity (section 4.2)."""

    constant: PositiveDecimal = "80"
    """The constant c."""


class RewardSpec(Model):
    """How the metric becomes the reward; the cube when nothing is set."""

    model_config = {"json_schema_extra": cel(at_most_one("identity", "cube", "inverseSquare"))}

    identity: Empty | None = None
    """The metric itself, negated when the goal is Minimize."""
    cube: Empty | None = None
    """The metric cubed (paper section 4.1), which emphasises differences between good networks."""
    inverse_square: InverseSquareReward | None = None
    """A constant divided by the square of the metric, for perplexities."""


class PenaltySpec(Model):
    """A further objective: the reward is multiplied by (value / target) ^ -exponent, or divided by it if negative.

    This is the soft constraint of MnasNet. A sample whose trainer does not report the metric is lost (InvalidResult).
    """

    metric: Annotated[MetricName, Field(max_length=63)]
    """A metric that the trainer reports and that should be small: parameters, flops, latencySeconds or your own."""
    target: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) > 0.0", "must be above 0")))]
    """The value at which the reward stays as it is."""
    exponent: PositiveDecimal = "0.07"
    """How strongly it counts; with 0.07, a network at twice the target must earn a 5 % higher reward to draw level."""
    only_above: bool = False
    """Whether values below the target earn no bonus."""


Goal = Literal["Maximize", "Minimize"]


class ObjectiveSpec(Model):
    """What the search optimises."""

    model_config = {
        "json_schema_extra": cel(
            (
                "self.goal == 'Maximize' || !has(self.reward) || has(self.reward.identity)"
                " || has(self.reward.inverseSquare)",
                "goal: Minimize needs reward: {identity: {}} or {inverseSquare: {}}",
            )
        )
    }

    metric: Annotated[MetricName, Field(max_length=63)] = "accuracy"
    """Name of the metric that the trainer reports."""
    goal: Goal = "Maximize"
    """Whether higher or lower values of the metric are better."""
    reward: RewardSpec = RewardSpec()
    """How the metric becomes the reward."""
    penalties: Annotated[tuple[PenaltySpec, ...], Field(max_length=4)] = ()
    """Further objectives, such as a small network; the report draws the Pareto front of the metric and the first of
    them."""


# ---------------------------------------------------------------- searcher


class PpoSpec(Model):
    """The LSTM policy improved by proximal policy optimisation on ranked rewards."""

    learning_rate: PositiveDecimal = "0.0035"
    """Adam's learning rate."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Number of observed samples per update."""
    epochs: Annotated[int, Field(ge=1, le=64)] = 8
    """Optimisation steps on each batch."""
    clip: PositiveDecimal = "1"
    """How far the probability ratio may deviate from 1."""
    entropy_bonus: PositiveDecimal = "0.03"
    """Weight of the policy's entropy; keeps it from collapsing."""
    imitation: Annotated[int, Field(ge=0, le=1000)] = 10
    """How many of the best samples so far are imitated at each step; 0 for none."""
    imitation_weight: PositiveDecimal = "0.05"
    """Weight of the imitation loss."""


class ReinforceSpec(Model):
    """The paper's policy gradient (section 3.2) with a moving-average baseline."""

    learning_rate: PositiveDecimal = "0.0006"
    """Adam's learning rate (the paper: 0.0006 for images, 0.0005 for language)."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 8
    """Observed samples whose gradients are averaged into one update: the paper's m."""
    baseline_decay: Share = "0.95"
    """Decay of the exponential moving average of past rewards; the paper does not state one."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Controller replicas, each with its own, possibly stale, parameters and batch: the paper's K (100 and 400)."""
    gradients_per_update: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of replicas' gradients that are collected for one update (the paper: 10 for cells)."""


class GuidedSpec(Model):
    """The LSTM policy guided by a critic: a model of the reward, fitted to all samples, that imagines rewards."""

    learning_rate: PositiveDecimal = "0.0035"
    """Adam's learning rate for the policy."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Number of observed samples between two updates of the critic and the policy."""
    entropy_bonus: PositiveDecimal = "0.05"
    """Weight of the policy's entropy; keeps it from collapsing."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Number of draws from the policy from which, together with as many mutations of the best samples, the critic
    chooses the next sample."""


class EvolutionSpec(Model):
    """Regularised evolution (Real et al., 2018): the oldest of the population dies."""

    population: Annotated[int, Field(ge=2, le=10_000)] = 50
    """Number of samples that are alive."""
    tournament: Annotated[int, Field(ge=2, le=10_000)] = 10
    """Number of samples that compete to be the parent."""


class TpeSpec(Model):
    """Optuna's implementation of the tree-structured Parzen estimator."""

    startup: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Number of random samples at the start."""


class ControlSpec(Model):
    """A control experiment beside the policy."""

    random: Share = "0.1"
    """Share of samples that are drawn uniformly at random; the policy does not learn from them."""


class WarmStartSpec(Model):
    """An earlier experiment, in the same namespace, store and search space, whose samples the policy learns from first.

    Numbering continues after its samples, and so does a depth schedule. Its samples cost no budget, and none of them
    can become the best.
    """

    experiment: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    """Name of that experiment; with `nas run`, the name of its folder, next to this run's."""
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Its uid; needed if several experiments of that name have left logs."""


SearcherKind = Literal["ppo", "reinforce", "guided", "evolution", "tpe", "random"]


class SearcherSpec(Model):
    """How the space is searched; ``guided`` when none is named."""

    model_config = {"json_schema_extra": cel(at_most_one("ppo", "reinforce", "guided", "evolution", "tpe", "random"))}

    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed from which every random draw of the search follows."""
    ppo: PpoSpec | None = None
    """Proximal policy optimisation of the LSTM policy, without a critic."""
    reinforce: ReinforceSpec | None = None
    """The paper's REINFORCE."""
    guided: GuidedSpec | None = None
    """The LSTM policy guided by a critic (the default)."""
    evolution: EvolutionSpec | None = None
    """Regularised evolution."""
    tpe: TpeSpec | None = None
    """Optuna's tree-structured Parzen estimator."""
    random: Empty | None = None
    """Uniform random search: the control that a policy must beat."""
    control: ControlSpec | None = None
    """A random arm alongside the policy; the status reports the difference and its standard error."""
    warm_start: WarmStartSpec | None = None
    """An earlier experiment whose samples the policy learns from first."""
    duplicates: Literal["Reuse", "Train"] = "Reuse"
    """What to do with an architecture that has been sampled before: Reuse takes its result, waiting for it if it is
    still being trained; Train trains it again, which shows the noise."""

    @property
    def kind(self) -> SearcherKind:
        """The searcher that is set, or the default."""
        kinds: tuple[SearcherKind, ...] = ("ppo", "reinforce", "guided", "evolution", "tpe", "random")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "guided")


# ---------------------------------------------------------------- budget


class BudgetSpec(Model):
    """When the search ends. May be changed during a run."""

    samples: Annotated[int, Field(ge=1, le=1_000_000)]
    """Number of architectures to sample; the paper used 12,800. One that reuses an earlier result counts too."""
    duration: Duration | None = None
    """Time limit counted from the first start, for example 72h; children in flight are still awaited."""
    consecutive_failures: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Number of samples lost in a row after which the experiment fails."""


# ---------------------------------------------------------------- trainer

Uri = Annotated[str, StringConstraints(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,62}(/.*)?|/.*)$", max_length=1024)]


class DigitsDataset(Model):
    """scikit-learn's digits: 1,797 real 8x8 images that ship with the trainer's image."""

    channels: ClassVar[int] = 1
    side: ClassVar[int] = 8

    training_images: Annotated[int, Field(ge=50, le=1400)] = 1000
    """Number of training images; the next 397 are for validation, and the rest are the test set, which no child of the
    search sees."""


class CifarDataset(Model):
    """CIFAR images: the binary files, parquet files, or a folder of images for each class."""

    channels: ClassVar[int] = 3
    side: ClassVar[int] = 32

    uri: Uri
    """Where the files are: s3://bucket/prefix, or an absolute path on a volume of the pod. The layout is recognised by
    the file names: binary files, train*.parquet and test*.parquet, or train/<class>/*.png and test/<class>/*.png."""
    validation_images: Annotated[int, Field(ge=100, le=25_000)] = 5000
    """Number of training images held out for validation (paper section 4.1: 5,000, which leaves 45,000)."""


Augmentation = Literal["Flip", "Crop", "Cutout"]


class ImageSize(Model):
    """Height and width of an image in pixels."""

    height: Annotated[int, Field(ge=1, le=1024)]
    """Height in pixels."""
    width: Annotated[int, Field(ge=1, le=1024)]
    """Width in pixels."""


class ImagesDataset(Model):
    """Images of your own: a folder for each class, or parquet files as Hugging Face's datasets have them.

    Channels and classes are checked against the data; they stand here because the code of the best network is written
    by the controller, which never reads data.
    """

    uri: Uri
    """Where the files are: s3://bucket/prefix, or an absolute path on a volume of the pod. The layout is recognised by
    the names: train/<class>/*.png, or <class>/*.png without parts; or train*.parquet, or any *.parquet, with the
    columns image and label. Parts named validation and test are used as such; where there is none, it is split off."""
    classes: Annotated[int, Field(ge=2, le=100_000)]
    """Number of classes: of folders, or labels from 0."""
    channels: Literal[1, 3] = 3
    """Channels of an image: 3 for red, green and blue, which grey images have as well; 1 for grey ones."""
    size: ImageSize | None = None
    """The size that every image is brought to, bilinearly and without regard to its proportions; that of the images
    themselves if not set, which must then all have the same."""
    validation: Share = "0.2"
    """Share of each class's training images that is held out for validation, where there is no part of that name."""
    test: Share = "0.2"
    """Share of each class's training images that is held out for the test after the final training, where there is no
    part of that name."""
    split_seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed of the split: the same for every child; another one is another split."""
    augmentation: Annotated[
        tuple[Augmentation, ...], Field(max_length=3, json_schema_extra=cel((UNIQUE, "options must differ")))
    ] = ()
    """What is done to each training image, in this order: Flip mirrors half of them; Crop moves an image by up to an
    eighth of its side, with the mean's colour at the edge; Cutout paints a square of half its side with that colour."""


class TextDataset(Model):
    """Text for a language model, in the layout of Penn Treebank: ptb.train.txt, ptb.valid.txt and ptb.test.txt."""

    uri: Uri | None = None
    """Where the files are: s3://bucket/prefix, or a path on a volume. If not set, the text is pydoc_data.topics, which
    ships with Python, so there is nothing to download."""
    level: Literal["word", "character"] = "word"
    """What the network reads in one step, a word or a character; the end of a line counts as one. Words are measured by
    perplexity, characters by bitsPerCharacter or perplexity."""
    vocabulary: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """How many of the most frequent words (or characters) of the training text are told apart; all others are <unk>."""


class CustomDataset(Model):
    """Your own trainer takes care of its data."""


class DatasetSpec(Model):
    """What children train on; exactly one dataset."""

    model_config = {"json_schema_extra": cel(exactly_one("digits", "cifar10", "cifar100", "images", "text", "custom"))}

    digits: DigitsDataset | None = None
    """scikit-learn's digits; nothing to download."""
    cifar10: CifarDataset | None = None
    """CIFAR-10 from S3 or a volume."""
    cifar100: CifarDataset | None = None
    """CIFAR-100 from S3 or a volume."""
    images: Annotated[ImagesDataset | None, Field(exclude_if=is_none)] = None
    """Images of your own, from S3 or a volume."""
    text: TextDataset | None = None
    """Text, for recurrent cells."""
    custom: CustomDataset | None = None
    """No built-in dataset: trainer.image is your own trainer, which takes care of its data."""

    @model_validator(mode="after")
    def _one(self) -> "DatasetSpec":
        datasets = (self.digits, self.cifar10, self.cifar100, self.images, self.text, self.custom)
        if sum(dataset is not None for dataset in datasets) != 1:
            raise ValueError("set exactly one of digits, cifar10, cifar100, images, text, custom")
        return self

    @property
    def channels(self) -> int:
        """Channels of an image, where the dataset has images; CIFAR's where only your own trainer knows."""
        if self.images is not None:
            return self.images.channels
        return DigitsDataset.channels if self.digits is not None else CifarDataset.channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels; as ``channels``, and where only the images know."""
        if self.images is not None and self.images.size is not None:
            return self.images.size.height, self.images.size.width
        side = DigitsDataset.side if self.digits is not None else CifarDataset.side
        return side, side

    @property
    def classes(self) -> int:
        """Classes to tell apart; as ``channels``, of CIFAR-10."""
        if self.images is not None:
            return self.images.classes
        return 100 if self.cifar100 is not None else 10


Method = Literal["SGD", "AdamW"]
Schedule = Literal["Constant", "Cosine", "Step"]
_METHOD: Method = "SGD"
_SCHEDULE: Schedule = "Constant"


class OptimizerSpec(Model):
    """Stochastic gradient descent with Nesterov momentum (paper section 4.1), or what else is named."""

    name: Annotated[Method, Field(exclude_if=_METHOD.__eq__)] = _METHOD
    """SGD, with Nesterov momentum, or AdamW, which wants a learningRate of about 0.001 and a weightDecay of about
    0.01."""
    learning_rate: PositiveDecimal = "0.1"
    """Learning rate; with a schedule, the highest."""
    momentum: Share = "0.9"
    """Nesterov momentum; AdamW's beta1 (its beta2 is 0.999)."""
    weight_decay: PositiveDecimal = "0.0001"
    """Weight decay; AdamW's is multiplied by the learning rate and not part of the gradient."""
    schedule: Annotated[Schedule, Field(exclude_if=_SCHEDULE.__eq__)] = _SCHEDULE
    """How the learning rate of images changes from epoch to epoch: not at all; along half a cosine to nearly 0 at the
    last epoch; or in steps, to a tenth after half of the epochs and to a hundredth after three quarters."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10_000, exclude_if=operator.not_)] = 0
    """Epochs over which the learning rate of images rises evenly, before the schedule begins."""
    label_smoothing: Annotated[Share, Field(exclude_if=_is_zero)] = "0"
    """Share of an image's label that is spread evenly over all classes."""
    ema: Annotated[Share, Field(exclude_if=_is_zero)] = "0"
    """Decay of an exponential moving average of the weights after each step, for images; the average is what is
    measured and handed over. It starts faster: at step t the decay is at most (1 + t) / (10 + t). 0 for none."""


class LanguageSpec(Model):
    """How a recurrent cell becomes a language model and is trained (paper section 4.2).

    The paper trains its children for 35 epochs and, like the LSTM that they are compared with (Zaremba et al., 2014,
    medium), with batches of 20 and plain gradient descent: epochs 35, batchSize 20, optimizer {learningRate: "1",
    momentum: "0", weightDecay: "0"}. With a Nesterov momentum of 0.9, a learningRate of "0.1" takes steps of that size.
    """

    layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Number of layers of the cell, stacked on one another."""
    parameters: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 20_000_000
    """Parameter budget of the whole network, including embedding and softmax: layers are as wide as it allows, so that
    all cells are compared at equal size (the paper: that of a medium LSTM)."""
    shared_embeddings: bool = False
    """Whether the softmax shares the embedding's weights, which leaves more parameters for the cells."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 35
    """Number of steps in a window: gradients go back no further than its start; the state is carried over."""
    dropout: Share = "0.5"
    """Share of values that are dropped at the input of each layer and of the softmax, at each step anew."""
    input_dropout: Annotated[Share, Field(exclude_if=_is_zero)] = "0"
    """Share of values that are dropped at the input of each layer, the same ones at all steps of a window."""
    recurrent_dropout: Annotated[Share, Field(exclude_if=_is_zero)] = "0"
    """Share of a layer's state that is dropped on its way to the next step, the same at all steps of a window."""
    embedding_dropout: Annotated[Share, Field(exclude_if=_is_zero)] = "0"
    """Share of words that are dropped wherever they are read in a window."""
    gradient_clip: PositiveDecimal = "5"
    """Maximum norm of a window's gradient (of the loss summed over steps and averaged over the batch)."""
    steady_epochs: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Epochs after which the learning rate starts to fall."""
    learning_rate_divisor: Annotated[
        PositiveDecimal, Field(json_schema_extra=cel(("double(self) >= 1.0", "must be 1 or more")))
    ] = "1.2"
    """What the learning rate is divided by after each epoch from then on."""


PodTemplate = Annotated[
    dict[str, Any], Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]


class GpuSpec(Model):
    """How the built-in trainer uses a GPU; without one, none of this applies."""

    autocast: bool = True
    """Whether layers are computed in bfloat16, or before compute capability 8 in float16 with a scaled loss; weights,
    statistics and the optimiser stay in float32."""
    compile: bool = False
    """Whether each network is first compiled with torch.compile. That takes a minute or more, so it pays off only in
    long training runs, and it needs a C compiler in trainer.image."""
    cuda_graphs: bool = False
    """Whether a training step, or a window of text, is recorded once and then replayed as a whole, which saves small
    networks and recurrent cells most of their time."""


class EarlyStoppingSpec(Model):
    """Ends children of the search whose learning curve is hopeless, after a single look at it.

    The best metric that a child reached by ``epoch`` is compared with what the newest 100 children had reached by then,
    stopped ones included; penalties do not count. The reward of a stopped child comes from the metric that it had
    reached, an underestimate, and the policy learns from it; such a sample is never the best and is left out of the
    final training. Children of the random arm count in the comparison but are never stopped, so that the arm remains
    the yardstick for the policy. Changes apply to children launched from then on; with another epoch, the comparison
    starts afresh.
    """

    epoch: Annotated[int, Field(ge=1, le=10_000)]
    """The epoch after which a child may be stopped."""
    worst: Share = "0.25"
    """Share of children that are stopped, the worst ones."""
    startup: Annotated[int, Field(ge=1, le=100)] = 20
    """Number of children that must have reached that epoch before any is stopped."""


class LatencySpec(Model):
    """How the built-in trainer measures latencySeconds, where objective.penalties names it: after the training, on the
    child's node, with the trained network's ONNX model in ONNX Runtime on the CPU; on a GPU, where the child has one.

    Whatever else runs on the node disturbs it: let trainer.template ask for whole CPUs.
    """

    batch: Annotated[int, Field(ge=1, le=1024)] = 1
    """Images, or streams of text that are read by a word each, that the network is given at once."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads that compute it; a GPU needs none."""
    runs: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Number of runs whose median counts, after a tenth as many, but at least three, that warm up."""


class TrainingSpec(Model):
    """What the manifest says of a training, and its trainer is told as it is written there."""

    dataset: DatasetSpec
    """What children train on."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Passes over the training set."""
    reward_epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Number of last epochs of which the best one gives the metric (paper section 4.1: 5)."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Images per step (batch normalisation needs at least two), or parallel streams of text."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimiser."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads per child."""
    language: LanguageSpec = LanguageSpec()
    """How a recurrent cell is trained on trainer.dataset.text."""
    gpu: GpuSpec = GpuSpec()
    """How a GPU is used; the GPU itself is requested in trainer.template."""
    dataset_cache: Annotated[str, StringConstraints(pattern=r"^/.+$", max_length=1024)] | None = None
    """A folder of the node, on a volume that trainer.template mounts: a dataset in S3 is downloaded into it once and
    then shared by all children on the node. If not set, every child downloads the dataset."""


MOST_PODS = 64
"""Of one child."""


class TrainerSpec(TrainingSpec):
    """How one child is trained."""

    model_config = {
        "json_schema_extra": cel(
            (
                "self.childrenPerPod == 1 || !has(self.dataset.custom)",
                "childrenPerPod must be 1 with dataset.custom: your own trainer trains one child per pod",
            ),
            (
                "self.childrenPerPod == 1 || !self.gpu.compile",
                "childrenPerPod must be 1 with gpu.compile: torch.compile does not support several children in one"
                " process",
            ),
            (
                "self.childrenPerPod == 1 || !self.gpu.cudaGraphs",
                "childrenPerPod must be 1 with gpu.cudaGraphs: while one child's step is recorded, no other may use the"
                " GPU",
            ),
            (
                "!has(self.dataset.text) || !self.gpu.compile",
                "gpu.compile must be false with dataset.text: cells have a backward pass of their own; set"
                " gpu.cudaGraphs instead",
            ),
            (
                "self.pods == 1 || has(self.dataset.custom)",
                "pods must be 1 with a built-in dataset: finalTraining.pods is for the built-in trainer",
            ),
            (
                "!has(self.earlyStopping) || self.earlyStopping.epoch < self.epochs",
                "earlyStopping.epoch must be below epochs: after the last one there is nothing left to stop",
            ),
            (
                "!has(self.earlyStopping) || !has(self.dataset.custom)",
                "earlyStopping must not be set with dataset.custom: your own trainer may stop training by itself",
            ),
            (
                "!has(self.dataset.text) || (self.optimizer.schedule == 'Constant' && self.optimizer.warmupEpochs == 0"
                " && double(self.optimizer.labelSmoothing) == 0.0 && double(self.optimizer.ema) == 0.0)",
                "optimizer.schedule, warmupEpochs, labelSmoothing and ema are for images: text has language",
            ),
            (
                "self.optimizer.warmupEpochs < self.epochs",
                "optimizer.warmupEpochs must be below epochs: nothing would be left to train at the full learning rate",
            ),
            (
                "!has(self.priorityClass) || has(self.queue)",
                "priorityClass needs queue: it is the priority in Kueue's queue, not that of the pod",
            ),
        )
    }

    early_stopping: EarlyStoppingSpec | None = None
    """Ends hopeless children of the search early; the rewards that the policy learns from them are underestimates. If
    not set, all children are trained to the end."""
    latency: Annotated[LatencySpec | None, Field(exclude_if=is_none)] = None
    """How latencySeconds is measured, where objective.penalties names it; as the defaults say if not set."""
    children_per_pod: Annotated[int, Field(ge=1, le=16)] = 1
    """How many children of the search share a pod, and with it a process and a GPU: small networks leave most of a GPU
    unused. The pod ends with its last child; a sample that has no result by then is tried again alone. Each child has
    trainer.threads; the template's memory is for all of them together. Final training runs have a pod each."""
    pods: Annotated[int, Field(ge=1, le=MOST_PODS)] = 1
    """How many pods train one child together, with dataset.custom: the ranks of torchrun, which finds all it needs in
    its environment, or of another program's own. The first one's result and checkpoint count; when one pod is lost, all
    are, and the child goes on from its checkpoint. Such a child counts as one in parallelism. `nas run` ignores it."""
    deadline: Duration = "6h"
    """Time limit of one child's pod; a child that exceeds it is lost and not tried again. A pod of several children has
    this time multiplied by their number."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """How many times a child that fails without a known reason is tried in total; pre-emptions do not count."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=604_800)] = 600
    """How long a finished child Job is kept for its logs, in seconds."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """The trainer's image; the chart's if not set."""
    command: (
        Annotated[tuple[Annotated[str, StringConstraints(max_length=4096)], ...], Field(min_length=1, max_length=64)]
        | None
    ) = None
    """Your own trainer's command: it reads $NAS_DIR/architecture.json and writes $NAS_DIR/result.json. `nas run` runs
    it too, in the manifest's folder."""
    service_account_name: DnsLabel | None = None
    """An existing ServiceAccount for children, for example one with an IAM role; no API token is mounted."""
    queue: DnsLabelValue | None = None
    """A LocalQueue of Kueue in the experiment's namespace: each child's Job waits there until there is room for it, and
    returns there without loss of an attempt when it is preempted. May be changed during a run: it applies to children
    launched from then on and to those that have not started yet. `nas run` ignores it."""
    priority_class: DnsLabelValue | None = None
    """A WorkloadPriorityClass of Kueue: which children the queue lets in first and which it preempts. As with queue,
    changes apply to children that have not started yet, and `nas run` ignores it."""
    template: PodTemplate | None = None
    """A pod template merged into ours: GPU count, nodeSelector, tolerations, volumes. Lists merge by name."""


class GridSpec(Model):
    """What the final training tries: every combination of these (paper section 4.1)."""

    learning_rate: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Learning rates; the trainer's own if empty."""
    weight_decay: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Weight decays; the trainer's own if empty."""
    batch_norm_epsilon: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Epsilons of batch normalisation, for images; 0.00001 if empty."""
    decay_epoch: Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(max_length=8)] = ()
    """Epochs after which the learning rate is divided by 10; never if empty."""
    dropout: Annotated[tuple[Share, ...], Field(max_length=8, exclude_if=operator.not_)] = ()
    """Dropouts, for text; trainer.language.dropout if empty."""
    initial_scale: Annotated[
        tuple[Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) > 0.0", "must be above 0")))], ...],
        Field(max_length=8, exclude_if=operator.not_),
    ] = ()
    """Bounds between which initial weights are drawn, for text; one over the square root of the width if empty."""

    @property
    def axes(self) -> tuple[tuple[str | int, ...], ...]:
        """All axes; an empty one is one setting."""
        return tuple(getattr(self, name) for name in type(self).model_fields)


MOST_FINAL_TRAININGS = 1000
"""Of one experiment: top times seeds times the combinations of the grid. Their own bounds would allow far more."""
_AXES = tuple(f"size(self.grid.{axis.alias})" for axis in GridSpec.model_fields.values())
# An empty axis is one setting: the trainer's own.
_FINAL_TRAININGS = " * ".join(["self.top", "self.seeds", *(f"({axis} > 0 ? {axis} : 1)" for axis in _AXES)])


class FinalTrainingSpec(Model):
    """What follows the search: the best architectures are trained longer, and the winner is tested once.

    These are children like any other but not samples: they do not count towards the search's budget and duration.
    """

    model_config = {
        "json_schema_extra": cel(
            (
                f"{_FINAL_TRAININGS} <= {MOST_FINAL_TRAININGS}",
                "top times seeds times the combinations of grid must be at most"
                f" {MOST_FINAL_TRAININGS:,} training runs: lower top or seeds, or give grid fewer values",
            )
        )
    }

    top: Annotated[int, Field(ge=1, le=50)] = 5
    """Number of architectures, those with the highest rewards, that are trained again."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Epochs of the final training."""
    grid: GridSpec = GridSpec()
    """Settings that are tried for each of them."""
    seeds: Annotated[int, Field(ge=1, le=20, exclude_if=_is_one)] = 1
    """How many times each of these is trained, from other initial weights each time. The architecture and settings with
    the highest mean reward win."""
    deadline: Duration | None = None
    """Time limit of one pod of a final training; trainer.deadline if not set. A training that exceeds it goes on in a
    new pod if it has saved a checkpoint in the one before, and is lost otherwise. May be changed at any time."""
    checkpoint_every: Duration | None = None
    """Least time between two checkpoints of a final training, which are taken after an epoch; a minute if not set. Your
    own trainer writes them when it wants. May be changed at any time."""
    pods: Annotated[int, Field(ge=1, le=MOST_PODS)] | None = None
    """How many pods train one of these networks together: each learns from its share of every batch, and gradients are
    averaged (DistributedDataParallel), so that batchSize means what it means in one pod. If not set, as many as
    trainer.pods says. `nas run` ignores it."""
    template: PodTemplate | None = None
    """A pod template merged into that of trainer.template for final trainings: more GPUs, other nodes. May be changed
    at any time; it applies to pods that have not started yet."""
    train_on_validation: Annotated[bool, Field(exclude_if=bool)] = True
    """Whether the winner is trained once more, on the validation set as well, and that network is tested (paper section
    4.1). Published figures for text leave that set out: for a comparison with them, say false, and the winner's network
    that was the best on the validation set is tested as it is."""


class ControllerSpec(Model):
    """The controller's pod."""

    service_account_name: DnsLabel | None = None
    """An existing ServiceAccount, for example one with an IAM role; one is created if not set."""
    template: PodTemplate | None = None
    """A pod template merged into ours. Lists merge by name; the container is called controller."""


# ---------------------------------------------------------------- storage


class SecretReference(Model):
    """A Secret in the experiment's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""

    name: DnsLabel
    """Name of the Secret."""


class CaBundle(Model):
    """A ConfigMap key with the PEM certificates of the authority that signed the endpoint's."""

    config_map: DnsLabel
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$", max_length=253)] = "ca.crt"
    """Key in the ConfigMap."""


class S3Spec(Model):
    """An S3 bucket that honours conditional writes (AWS, MinIO, Ceph, versitygw and others do)."""

    bucket: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", min_length=3, max_length=63)
    ]
    """An existing bucket."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.=/-]*$", max_length=512)] = "nas"
    """Everything is written below <prefix>/<namespace>/<experiment>/<uid>/."""
    endpoint: (
        Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+(/.*)?$", max_length=512)] | None
    ) = None
    """URL of the S3 server; AWS if not set."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=63)] | None = None
    """Region; us-east-1 if not set."""
    path_style: bool = True
    """Whether URLs name the bucket in the path (works everywhere) rather than in the host name."""
    ca_bundle: CaBundle | None = None
    """Certificates for an endpoint whose own is signed by a private authority."""
    credentials_secret: SecretReference | None = None
    """Access keys of the controller, and of the trainers unless they have their own; not needed with an IAM role."""
    trainer_credentials_secret: SecretReference | None = None
    """Access keys of the trainers."""


class StorageSpec(Model):
    """Where the log, the results and the best architecture are kept; exactly one store."""

    s3: S3Spec
    """An S3 bucket."""


# ---------------------------------------------------------------- tracking


class MlflowSpec(Model):
    """An MLflow server, which is told of every sample and gets the best model."""

    uri: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+(/.*)?$", max_length=512)]
    """URL of the server, as pods reach it."""
    experiment: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ._/@:+-]*[A-Za-z0-9]$", max_length=250)] | None
    ) = None
    """MLflow's experiment that the runs are put into, and the name of the registered model; this experiment's name if
    not set. Several searches may share one."""
    credentials_secret: SecretReference | None = None
    """A Secret in the experiment's namespace with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN; not needed if the server asks for none."""


class TrackingSpec(Model):
    """A tracker that follows the search, in a pod of its own: it can neither slow nor stop nor change the search."""

    mlflow: MlflowSpec
    """MLflow: a run for the experiment and one below it for each sample, and the best model registered."""
    template: PodTemplate | None = None
    """A pod template merged into ours, as for requests, tolerations or certificates. Lists merge by name; the container
    is called follower."""


# ---------------------------------------------------------------- the resource


class NASExperimentSpec(Model):
    """The search to run."""

    model_config = {
        "json_schema_extra": cel(
            (
                "!has(self.searchSpace.custom) || has(self.trainer.dataset.custom)",
                "searchSpace.custom needs trainer.dataset.custom: only your own trainer knows what its decisions mean",
            ),
            (
                "!has(self.searchSpace.recurrentCell) || has(self.trainer.dataset.text)"
                " || has(self.trainer.dataset.custom)",
                "searchSpace.recurrentCell needs trainer.dataset.text, or trainer.dataset.custom",
            ),
            (
                "!has(self.searchSpace.convolutional) || !has(self.trainer.dataset.text)",
                "searchSpace.convolutional needs images: trainer.dataset.text is for recurrentCell",
            ),
            (
                "!has(self.searchSpace.convolutionalCell) || !has(self.trainer.dataset.text)",
                "searchSpace.convolutionalCell needs images: trainer.dataset.text is for recurrentCell",
            ),
            (
                "!has(self.finalTraining) || size(self.finalTraining.grid.batchNormEpsilon) == 0"
                " || !has(self.trainer.dataset.text)",
                "finalTraining.grid.batchNormEpsilon is for images: cells are not normalised",
            ),
            (
                "!has(self.finalTraining) || size(self.finalTraining.grid.dropout)"
                " + size(self.finalTraining.grid.initialScale) == 0"
                " || has(self.trainer.dataset.text) || has(self.trainer.dataset.custom)",
                "finalTraining.grid.dropout and initialScale are for text",
            ),
            (
                "self.trainer.childrenPerPod == 1 || self.parallelism >= self.trainer.childrenPerPod",
                "parallelism must be at least trainer.childrenPerPod: it counts children, not pods",
            ),
            (
                "self.trainer.childrenPerPod == 1"
                " || !self.objective.penalties.exists(penalty, penalty.metric == 'latencySeconds')",
                "trainer.childrenPerPod must be 1 where objective.penalties names latencySeconds: children of one pod"
                " would disturb each other's measurement",
            ),
            (
                "has(self.trainer.dataset.custom) || !has(self.finalTraining) || !has(self.finalTraining.pods)"
                " || self.finalTraining.pods <= self.trainer.batchSize",
                "finalTraining.pods must be at most trainer.batchSize: each pod takes a share of every batch",
            ),
            (
                "!self.trainer.gpu.cudaGraphs || !has(self.finalTraining) || !has(self.finalTraining.pods)"
                " || self.finalTraining.pods == 1",
                "finalTraining.pods must be 1 with trainer.gpu.cudaGraphs: pods wait for each other within a step",
            ),
        )
    }

    suspend: bool = False
    """Stops the search and ends its children, which frees their nodes; set it to false to resume from there."""
    objective: Annotated[
        ObjectiveSpec,
        Field(json_schema_extra=cel(("self == oldSelf", "objective is immutable: create a new experiment"))),
    ] = ObjectiveSpec()
    """What the search optimises. Immutable."""
    search_space: Annotated[
        SearchSpaceSpec,
        Field(json_schema_extra=cel(("self == oldSelf", "searchSpace is immutable: create a new experiment"))),
    ]
    """The networks that may be sampled. Immutable."""
    searcher: Annotated[
        SearcherSpec,
        Field(json_schema_extra=cel(("self == oldSelf", "searcher is immutable: create a new experiment"))),
    ] = SearcherSpec()
    """How the space is searched. Immutable."""
    parallelism: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Children in flight, however many of them share a pod. May be changed during a run."""
    budget: BudgetSpec
    """When the search ends. May be changed during a run."""
    trainer: TrainerSpec
    """How one child is trained."""
    final_training: FinalTrainingSpec | None = None
    """What follows the search; if not set, the best sample's architecture is all that is handed over. May be changed
    until the search ends."""
    controller: ControllerSpec = ControllerSpec()
    """The controller's pod."""
    tracking: TrackingSpec | None = None
    """A tracker that is told of the search. May be set, changed or removed at any time, even after the end: it gets
    everything from the beginning."""
    storage: StorageSpec
    """Where everything is kept; `nas run` does not need it. Immutable once the first record is written."""

    def pods(self, *, final: bool) -> int:
        """Return how many pods a final training has, or a child of the search."""
        chosen = self.final_training.pods if final and self.final_training is not None else None
        return self.trainer.pods if chosen is None else chosen

    def deadline(self, *, final: bool) -> timedelta:
        """Return the time limit of a final training's pod, or for one child of the search."""
        chosen = self.final_training.deadline if final and self.final_training is not None else None
        return duration(self.trainer.deadline if chosen is None else chosen)


# ---------------------------------------------------------------- status


class Condition(Model):
    """A condition, as in metav1."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """Progressing, Suspended, Complete or Failed; Ready, Reconciling or Stalled; Tracking."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=32_768)] = ""
    """A sentence for people: the cause and the cure."""
    observed_generation: int = 0
    """The generation of the spec that the condition is based on."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""


class SampleCounts(Model):
    """Samples, counted by what has become of them."""

    budget: int = 0
    """Samples requested."""
    proposed: int = 0
    """Samples drawn from the policy."""
    running: int = 0
    """Samples in flight."""
    queued: int = 0
    """Of these, samples whose children wait in their queue (trainer.queue)."""
    observed: int = 0
    """Samples with a result, from which the policy has learnt."""
    lost: int = 0
    """Samples given up."""
    diverged: int = 0
    """Observed samples whose training diverged."""
    stopped: int = 0
    """Observed samples whose training was stopped early (trainer.earlyStopping): their rewards are underestimates."""
    retried: int = 0
    """Launches beyond the first one of each sample."""
    reused: int = 0
    """Observed samples whose architecture had been observed before: they reused that result without any training."""
    inherited: int = 0
    """Samples of an earlier experiment that the policy learnt from first (searcher.warmStart)."""


class Best(Model):
    """The best sample so far."""

    sample: int
    """Its number."""
    reward: Decimal
    """Its reward."""
    metric: Decimal
    """The objective's metric."""
    architecture: Annotated[str, StringConstraints(max_length=8192)]
    """Its architecture, in short form."""
    digest: Annotated[str, StringConstraints(max_length=64)]
    """SHA-256 of the architecture's canonical JSON."""
    uri: Annotated[str, StringConstraints(max_length=2048)]
    """Where best/architecture.json is; after a final training that is the architecture of status.final.sample."""


class PolicyVitals(Model):
    """Signs of the policy's health."""

    updates: int = 0
    """Optimiser updates so far."""
    entropy: Decimal | None = None
    """Mean entropy of a decision under the newest batch, in nats."""
    mean_reward: Decimal | None = None
    """Mean reward of the last 20 observed samples that the policy drew."""
    first_mean_reward: Decimal | None = None
    """Mean reward of the first 20 observed samples that the policy drew, when it had hardly learnt anything."""


class ArmStatus(Model):
    """What one arm of the comparison has earned."""

    observed: int = 0
    """Its observed samples."""
    mean_reward: Decimal | None = None
    """Mean reward of all of them."""


class ControlStatus(Model):
    """The policy against the random arm."""

    policy: ArmStatus
    """Samples that the policy drew."""
    random: ArmStatus
    """Samples drawn uniformly at random."""
    pairs: int = 0
    """Number of pairs of observed samples, one from each arm and close in time, so that both arms count equally."""
    difference: Decimal | None = None
    """Mean over the pairs of the policy's reward minus the random arm's."""
    standard_error: Decimal | None = None
    """Standard error of the difference."""


class FinalStatus(Model):
    """The final training of the search's best architectures."""

    trained: int = 0
    """Training runs with a result, not counting the one for the test."""
    lost: int = 0
    """Training runs given up."""
    total: int = 0
    """Training runs that are asked for: architectures times combinations of settings times seeds."""
    sample: int | None = None
    """The search's sample whose architecture is the best so far; at the end it is the one in best/."""
    best_metric: Decimal | None = None
    """The metric of the training run with the highest reward so far, on the validation set; with several seeds the mean
    of the architecture and settings with the highest mean reward."""
    best_spread: Decimal | None = None
    """Standard deviation of that metric over the seeds (finalTraining.seeds)."""
    test_metric: Decimal | None = None
    """The winner's metric on the test set, which is used once, at the end."""
    kendall_tau: Decimal | None = None
    """Kendall's tau-b between the search's rewards and the final ones: 1 if both rank the architectures alike."""
    kendall_low: Decimal | None = None
    """Lower end of tau's 95 % interval; needs at least five architectures."""
    kendall_high: Decimal | None = None
    """Upper end of tau's 95 % interval."""


LONGEST_MESSAGE = 4096
"""Characters that a status has room for in an outcome's or a problem's message."""


class Outcome(Model):
    """How the search ended, as its log says."""

    type: Literal["Complete", "Failed"]
    """Complete or Failed."""
    reason: Annotated[str, StringConstraints(max_length=128)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=LONGEST_MESSAGE)]
    """A sentence for people."""


class Problem(Model):
    """What keeps the search from going on, seen by the controller; gone once it is cured."""

    reason: Annotated[str, StringConstraints(max_length=128)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=LONGEST_MESSAGE)]
    """A sentence for people: the cause and the cure."""


class ControllerStatus(Model):
    """The controller pod, as the operator sees it."""

    pod: Annotated[str, StringConstraints(max_length=253)]
    """Name of the newest controller pod."""


class LogHead(Model):
    """The newest object of the search's log when the status was written: its anchor outside of the bucket."""

    sequence: Annotated[int, Field(ge=0)]
    """Its number, counted from 0."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its bytes in hex."""


class NASExperimentStatus(Model):
    """What has become of the experiment. The operator writes the conditions, the controller the search's part."""

    model_config = {
        "json_schema_extra": cel(
            (
                "!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",
                "a controller with a lower epoch has been replaced and may not write",
            )
        )
    }

    observed_generation: int = 0
    """The newest generation of the spec that the operator has seen; -1 before it has looked."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Progressing, Suspended, Complete and Failed, as batch/v1 names them; Ready, and while they are true Reconciling
    and Stalled, by which kstatus judges (Flux, kpt, Helm). Tracking, where spec.tracking is set, which nothing waits
    for."""
    state: Literal["Pending", "Searching", "Waiting", "Suspended", "Complete", "Failed"] | None = None
    """One word for the listing."""
    controller: ControllerStatus | None = None
    """The controller pod."""
    epoch: int | None = None
    """Number of the controller that wrote the search's part, counted from 1; never decreases."""
    samples: SampleCounts | None = None
    """Samples, counted by what has become of them."""
    progress: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Samples done out of the budget, for the listing."""
    best: Best | None = None
    """The best sample so far."""
    policy: PolicyVitals | None = None
    """Signs of the policy's health."""
    control: ControlStatus | None = None
    """The policy against the random arm, where searcher.control asks for one."""
    final: FinalStatus | None = None
    """The final training, once the search has ended."""
    problem: Problem | None = None
    """What keeps the search from going on."""
    outcome: Outcome | None = None
    """How the search ended."""
    log: LogHead | None = None
    """The newest object of the search's log, which a controller must find again when it starts; what follows it is
    trusted as the bucket is."""


class ObjectMeta(Model):
    """The metadata that we read; the rest of ObjectMeta is the API server's."""

    model_config = {"extra": "allow"}

    name: Annotated[str, StringConstraints(max_length=MAX_EXPERIMENT_NAME)]
    namespace: str = "default"
    uid: str = ""
    generation: int = 0


class NASExperiment(Model):
    """A neural architecture search with reinforcement learning (Zoph & Le, 2016)."""

    model_config = {
        "json_schema_extra": cel(
            (
                f"size(self.metadata.name) <= {MAX_EXPERIMENT_NAME}",
                f"metadata.name must have at most {MAX_EXPERIMENT_NAME} characters: names of children must fit a label",
            ),
            (
                "!self.metadata.name.contains('.')",
                "metadata.name must not contain a dot, so that pods' host names stay valid",
            ),
            (
                "!has(oldSelf.status) || !has(oldSelf.status.epoch) || self.spec.storage == oldSelf.spec.storage",
                "spec.storage is immutable once the search has written its first record",
            ),
        )
    }

    api_version: Literal["nas-operator.io/v1alpha1"]
    kind: Literal["NASExperiment"]
    metadata: ObjectMeta
    spec: NASExperimentSpec
    """The search to run."""
    status: NASExperimentStatus | None = None
    """What has become of the experiment."""
