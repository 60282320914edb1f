"""What a user may write in a NASExperiment, and what its status says.

The CustomResourceDefinition is generated from these models (``crd.py``): attribute docstrings become
``kubectl explain``, constraints become the schema, and ``cel`` rules become x-kubernetes-validations,
so that the API server itself refuses a bad manifest.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from nas_api.base import Decimal, DnsLabel, Duration, Model, PositiveDecimal
from nas_api.cel import at_most_one, cel, exactly_one
from nas_api.names import MAX_EXPERIMENT_NAME
from nas_api.search_space import SearchSpaceSpec


class Empty(Model):
    """A choice without settings: written as ``{}``."""


# ---------------------------------------------------------------- objective


class InverseSquareReward(Model):
    """Reward c / metric^2, the paper's for perplexity (section 4.2)."""

    constant: PositiveDecimal = "80"
    """The constant c."""


class RewardSpec(Model):
    """How the metric becomes the reward; the cube when nothing is set."""

    model_config = {"json_schema_extra": cel(at_most_one("identity", "cube", "inverseSquare"))}

    identity: Empty | None = None
    """The metric itself, negated when the goal is Minimize."""
    cube: Empty | None = None
    """The metric's third power (paper section 4.1): stresses the differences between good networks."""
    inverse_square: InverseSquareReward | None = None
    """A constant over the metric's square, for perplexities."""


class PenaltySpec(Model):
    """A second aim: the reward is multiplied by (value / target) ^ -exponent, or divided by it where it is negative.

    This is the soft constraint of MnasNet. A sample whose trainer does not report the metric is lost (InvalidResult).
    """

    metric: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$", max_length=63)]
    """A metric that the trainer reports and that should be small: parameters, flops, latencySeconds or your own."""
    target: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) > 0.0", "must be above 0")))]
    """The value that changes nothing."""
    exponent: PositiveDecimal = "0.07"
    """How much it counts; with 0.07 a network of twice the target must be 5 % better."""
    only_above: bool = False
    """Whether values below the target gain nothing."""


Goal = Literal["Maximize", "Minimize"]


class ObjectiveSpec(Model):
    """What is optimised."""

    model_config = {
        "json_schema_extra": cel(
            (
                "self.goal == 'Maximize' || !has(self.reward) || has(self.reward.identity)"
                " || has(self.reward.inverseSquare)",
                "a metric to Minimize needs reward: {identity: {}} or {inverseSquare: {}}",
            )
        )
    }

    metric: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$", max_length=63)] = "accuracy"
    """Name of the metric that the trainer reports."""
    goal: Goal = "Maximize"
    """Whether more or less of the metric is better."""
    reward: RewardSpec = RewardSpec()
    """How the metric becomes the reward."""
    penalties: Annotated[tuple[PenaltySpec, ...], Field(max_length=4)] = ()
    """Further aims, such as few parameters; the report draws the Pareto front of the metric and the first of them."""


# ---------------------------------------------------------------- searcher


class PpoSpec(Model):
    """The LSTM policy improved by proximal policy optimisation on ranked rewards."""

    learning_rate: PositiveDecimal = "0.0035"
    """Adam's learning rate."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Observed samples that make one update."""
    epochs: Annotated[int, Field(ge=1, le=64)] = 8
    """Optimisation steps on each batch."""
    clip: PositiveDecimal = "1"
    """How far the probability ratio may leave 1."""
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
    baseline_decay: Annotated[
        PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))
    ] = "0.95"
    """Decay of the exponential moving average of past rewards; the paper gives none."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Controller replicas, each with its own, possibly stale, parameters and batch: the paper's K (100 and 400)."""
    gradients_per_update: Annotated[int, Field(ge=1, le=1000)] = 1
    """Gradients of replicas that are gathered for one update (the paper: 10 for cells)."""


class GuidedSpec(Model):
    """The LSTM policy guided by a critic: a model of the reward, fitted to all samples, that imagines rewards."""

    learning_rate: PositiveDecimal = "0.0035"
    """Adam's learning rate for the policy."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Observed samples after which the critic and the policy learn."""
    entropy_bonus: PositiveDecimal = "0.05"
    """Weight of the policy's entropy; keeps it from collapsing."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Draws of the policy, and as many mutations of the best samples, that the critic chooses the next sample from."""


class EvolutionSpec(Model):
    """Regularised evolution (Real et al., 2018): the oldest of the population dies."""

    population: Annotated[int, Field(ge=2, le=10_000)] = 50
    """Samples that are alive."""
    tournament: Annotated[int, Field(ge=2, le=10_000)] = 10
    """Samples that compete to be the parent."""


class TpeSpec(Model):
    """The tree-structured Parzen estimator, Optuna's."""

    startup: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Random samples at the start."""


class ControlSpec(Model):
    """A control experiment beside the policy."""

    random: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))] = "0.1"
    """Share of samples that are drawn uniformly at random, which the policy does not learn from."""


class WarmStartSpec(Model):
    """An earlier experiment, of the same namespace, store and search space, whose samples the policy learns first.

    Its samples' numbers go on, and with them a schedule of depths. They cost no budget, and none of them is the best.
    """

    experiment: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    """Its name; with `nas run` the name of its folder, beside this run's."""
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Its uid; needed where several experiments of that name have left their logs."""


SearcherKind = Literal["ppo", "reinforce", "guided", "evolution", "tpe", "random"]


class SearcherSpec(Model):
    """How the space is searched; ``guided`` when none is named."""

    model_config = {"json_schema_extra": cel(at_most_one("ppo", "reinforce", "guided", "evolution", "tpe", "random"))}

    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Every random draw of the search follows from it."""
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
    """A random arm beside the policy; the status tells the difference and how sure it is."""
    warm_start: WarmStartSpec | None = None
    """An earlier experiment whose samples the policy learns first."""
    duplicates: Literal["Reuse", "Train"] = "Reuse"
    """Whether an architecture that was sampled before takes that result, waiting for it where it is being trained, or
    is trained again to see the noise."""

    @property
    def kind(self) -> SearcherKind:
        """The searcher that is set, or the default."""
        kinds: tuple[SearcherKind, ...] = ("ppo", "reinforce", "guided", "evolution", "tpe", "random")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "guided")


# ---------------------------------------------------------------- budget


class BudgetSpec(Model):
    """When the search ends. May be changed during a run."""

    samples: Annotated[int, Field(ge=1, le=1_000_000)]
    """Architectures to sample; the paper used 12,800. One that takes an earlier result counts too."""
    duration: Duration | None = None
    """Longest time from the first start, for example 72h; children in flight are still awaited."""
    consecutive_failures: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Lost samples in a row after which the experiment is Failed."""


# ---------------------------------------------------------------- trainer

Uri = Annotated[str, StringConstraints(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,62}(/.*)?|/.*)$", max_length=1024)]


class DigitsDataset(Model):
    """scikit-learn's digits: 1,797 real 8x8 images that ship with the trainer's image."""

    training_images: Annotated[int, Field(ge=50, le=1400)] = 1000
    """Images to train on; the next 397 validate, and the rest are the test set, which no child sees."""


class CifarDataset(Model):
    """CIFAR images: the binary files, parquet files, or a folder of images for each class."""

    uri: Uri
    """Where the files are: s3://bucket/prefix, or an absolute path on a volume of the pod. Binary files, train*.parquet
    and test*.parquet, or train/<class>/*.png and test/<class>/*.png are told apart by their names."""
    validation_images: Annotated[int, Field(ge=100, le=25_000)] = 5000
    """Training images held out to validate (paper section 4.1: 45,000 and 5,000)."""


class TextDataset(Model):
    """Text for a language model, in the layout of Penn Treebank: ptb.train.txt, ptb.valid.txt and ptb.test.txt."""

    uri: Uri | None = None
    """Where the files are: s3://bucket/prefix, or a path on a volume; the text that Python ships in pydoc_data.topics
    when not set, so that there is nothing to download."""
    level: Literal["word", "character"] = "word"
    """What one step of the network reads; a line's end is one, too. Words are measured by perplexity, characters by
    bitsPerCharacter or perplexity."""
    vocabulary: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """The most frequent words (or characters) of the training text that are told apart; all others are <unk>."""


class CustomDataset(Model):
    """Your own trainer sees to its own data."""


class DatasetSpec(Model):
    """What children train on; exactly one dataset."""

    model_config = {"json_schema_extra": cel(exactly_one("digits", "cifar10", "cifar100", "text", "custom"))}

    digits: DigitsDataset | None = None
    """scikit-learn's digits; nothing to download."""
    cifar10: CifarDataset | None = None
    """CIFAR-10 from S3 or a volume."""
    cifar100: CifarDataset | None = None
    """CIFAR-100 from S3 or a volume."""
    text: TextDataset | None = None
    """Text, for recurrent cells."""
    custom: CustomDataset | None = None
    """None of ours: trainer.image is your own trainer."""

    @model_validator(mode="after")
    def _one(self) -> "DatasetSpec":
        datasets = (self.digits, self.cifar10, self.cifar100, self.text, self.custom)
        if sum(dataset is not None for dataset in datasets) != 1:
            raise ValueError("set exactly one of digits, cifar10, cifar100, text, custom")
        return self

    @property
    def channels(self) -> int:
        """Channels of an image, where the dataset has images."""
        return 1 if self.digits is not None else 3

    @property
    def classes(self) -> int:
        """Classes to tell apart, where the dataset has images."""
        return 100 if self.cifar100 is not None else 10


class OptimizerSpec(Model):
    """Stochastic gradient descent with Nesterov momentum (paper section 4.1)."""

    learning_rate: PositiveDecimal = "0.1"
    """Learning rate."""
    momentum: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))] = (
        "0.9"
    )
    """Nesterov momentum."""
    weight_decay: PositiveDecimal = "0.0001"
    """Weight decay."""


class LanguageSpec(Model):
    """How a recurrent cell is made a language model and trained (paper section 4.2).

    The paper's children have 35 epochs, and like the LSTM that they are compared with (Zaremba et al., 2014, medium)
    batches of 20 and plain gradient descent: epochs 35, batchSize 20, optimizer {learningRate: "1", momentum: "0",
    weightDecay: "0"}. With Nesterov momentum of 0.9 a learningRate of "0.1" takes steps as large.
    """

    layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Layers of the cell, one upon another."""
    parameters: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 20_000_000
    """Parameters of the whole network, embedding and softmax included: the layers are as wide as this allows, so that
    all cells are compared at equal size (the paper: a medium LSTM's)."""
    shared_embeddings: bool = False
    """Whether the softmax has the embedding's weights, which leaves more parameters to the cells."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 35
    """Steps of a window: gradients go back so far, the state is carried on."""
    dropout: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))] = "0.5"
    """Share of values that are dropped on the way into each layer and into the softmax."""
    gradient_clip: PositiveDecimal = "5"
    """Largest norm of a window's gradient (of the loss summed over steps, mean over the batch)."""
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
    """How our trainer uses a GPU; without one nothing of this applies."""

    autocast: bool = True
    """Whether layers are computed in bfloat16; weights, statistics and the optimiser stay in float32."""
    compile: bool = False
    """Whether each network is compiled by torch.compile first: that takes a minute or more, so it pays only in long
    trainings, and needs a C compiler in trainer.image."""
    cuda_graphs: bool = False
    """Whether a step is recorded once and then replayed as a whole, which spares small networks most of their time."""


class EarlyStoppingSpec(Model):
    """Ends children of the search whose learning curve is hopeless, after one look at it.

    The best metric that a child had up to ``epoch`` is compared with what the newest 100 children had there, stopped
    ones among them; penalties do not count. Its reward comes from the metric that it had, an underestimate that the
    policy learns; it is never the best sample, nor trained finally. Samples of the random arm are compared with, and
    never stopped, so that the arm stays what the policy is measured against. Changes count for what is launched from
    then on; with another epoch, children are gathered anew.
    """

    epoch: Annotated[int, Field(ge=1, le=10_000)]
    """The epoch after which a child may be stopped."""
    worst: Annotated[PositiveDecimal, Field(json_schema_extra=cel(("double(self) < 1.0", "must be below 1")))] = "0.25"
    """Share of children, the worst ones, that are stopped."""
    startup: Annotated[int, Field(ge=1, le=100)] = 20
    """Children that must have come to that epoch before the first is stopped."""


class TrainerSpec(Model):
    """How one child is trained."""

    model_config = {
        "json_schema_extra": cel(
            (
                "self.childrenPerPod == 1 || !has(self.dataset.custom)",
                "childrenPerPod must be 1 with dataset.custom: your own trainer trains one child in a pod",
            ),
            (
                "self.childrenPerPod == 1 || !self.gpu.compile",
                "childrenPerPod must be 1 with gpu.compile: torch.compile is not made for children in one process",
            ),
            (
                "!has(self.earlyStopping) || self.earlyStopping.epoch < self.epochs",
                "earlyStopping.epoch must be below epochs: after the last one there is nothing left to stop",
            ),
            (
                "!has(self.earlyStopping) || !has(self.dataset.custom)",
                "earlyStopping must be left out with dataset.custom: your own trainer may end a training by itself",
            ),
        )
    }

    dataset: DatasetSpec
    """What children train on."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Passes over the training set."""
    reward_epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """The metric is the best of this many last epochs (paper section 4.1: 5)."""
    early_stopping: EarlyStoppingSpec | None = None
    """Ends hopeless children of the search early, whose rewards, as the policy learns them, are then underestimates.
    All are trained to their end when not set."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Images a step (batch normalisation needs two), or streams of text side by side."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimiser."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads of a child."""
    language: LanguageSpec = LanguageSpec()
    """How a recurrent cell learns trainer.dataset.text."""
    gpu: GpuSpec = GpuSpec()
    """How a GPU is used; that there is one says trainer.template."""
    children_per_pod: Annotated[int, Field(ge=1, le=16)] = 1
    """Children of a search that share a pod, and with it a process and a GPU: small networks leave most of one unused.
    The pod ends with the last of them; a sample of it that has no result then is tried again alone. Each child has
    trainer.threads; memory is the template's for all of them together. Final trainings have a pod each."""
    dataset_cache: Annotated[str, StringConstraints(pattern=r"^/.+$", max_length=1024)] | None = None
    """A folder of the node, on a volume that trainer.template mounts: a dataset in S3 is downloaded into it once and
    then shared by all children of the node. Without it every child downloads it."""
    deadline: Duration = "6h"
    """Longest run of one child's pod; one that takes longer is lost, not tried again. A pod of several children has
    as many times as long."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """How often a child that fails without a known reason is tried in all; pre-emptions are not counted."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=604_800)] = 600
    """How long a finished child Job is kept for its logs, in seconds."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """The trainer's image; the chart's when not set."""
    command: (
        Annotated[tuple[Annotated[str, StringConstraints(max_length=4096)], ...], Field(min_length=1, max_length=64)]
        | None
    ) = None
    """Your own trainer's command: it reads $NAS_DIR/architecture.json and writes $NAS_DIR/result.json. `nas run` runs
    it too, in the folder of the manifest."""
    service_account_name: DnsLabel | None = None
    """An existing ServiceAccount for children, for example one with an IAM role; no token is mounted for the API."""
    template: PodTemplate | None = None
    """A pod template laid over ours: GPU count, nodeSelector, tolerations, volumes. Lists merge by name."""


class GridSpec(Model):
    """What the final training tries: every combination of these (paper section 4.1)."""

    learning_rate: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Learning rates; the trainer's own when empty."""
    weight_decay: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Weight decays; the trainer's own when empty."""
    batch_norm_epsilon: Annotated[tuple[PositiveDecimal, ...], Field(max_length=8)] = ()
    """Epsilons of batch normalisation; 0.00001 when empty."""
    decay_epoch: Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(max_length=8)] = ()
    """Epochs after which the learning rate is divided by 10; never when empty."""


MOST_FINAL_TRAININGS = 1000
"""Of one experiment: top times the combinations of the grid. The axes' own bounds would allow 204,800."""
_AXES = tuple(f"size(self.grid.{axis})" for axis in ("learningRate", "weightDecay", "batchNormEpsilon", "decayEpoch"))
# An empty axis is one setting: the trainer's own.
_FINAL_TRAININGS = " * ".join(["self.top", *(f"({axis} > 0 ? {axis} : 1)" for axis in _AXES)])


class FinalTrainingSpec(Model):
    """What follows the search: the best architectures are trained longer, and the winner is tested once.

    These are children like any other, but no samples: budget and duration are the search's.
    """

    model_config = {
        "json_schema_extra": cel(
            (
                f"{_FINAL_TRAININGS} <= {MOST_FINAL_TRAININGS}",
                f"top times the combinations of grid must be at most {MOST_FINAL_TRAININGS:,} trainings:"
                " lower top, or give grid fewer values",
            )
        )
    }

    top: Annotated[int, Field(ge=1, le=50)] = 5
    """Architectures of highest reward that are trained again."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Epochs of the final training."""
    grid: GridSpec = GridSpec()
    """Settings that are tried for each of them."""


class ControllerSpec(Model):
    """The controller's pod."""

    service_account_name: DnsLabel | None = None
    """An existing ServiceAccount, for example one with an IAM role; one is made when not set."""
    template: PodTemplate | None = None
    """A pod template laid over ours. Lists merge by name; the container is called controller."""


# ---------------------------------------------------------------- storage


class SecretReference(Model):
    """A Secret in the experiment's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""

    name: DnsLabel
    """Name of the Secret."""


class CaBundle(Model):
    """A ConfigMap key with PEM certificates that sign the endpoint's."""

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
    """URL of the S3 server; AWS when not set."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=63)] | None = None
    """Region; us-east-1 when not set."""
    path_style: bool = True
    """Whether the bucket is in the path (works everywhere) or in the host name."""
    ca_bundle: CaBundle | None = None
    """Certificates for an endpoint with a private authority."""
    credentials_secret: SecretReference | None = None
    """Keys of the controller, and of the trainers unless they have their own; not needed with an IAM role."""
    trainer_credentials_secret: SecretReference | None = None
    """Keys of the trainers."""


class StorageSpec(Model):
    """Where the log, the results and the best architecture are kept; exactly one store."""

    s3: S3Spec
    """An S3 bucket."""


# ---------------------------------------------------------------- the resource


class NASExperimentSpec(Model):
    """The search that is asked for."""

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
                "self.trainer.childrenPerPod == 1 || self.parallelism >= self.trainer.childrenPerPod",
                "parallelism must be at least trainer.childrenPerPod: it counts children, not pods",
            ),
        )
    }

    suspend: bool = False
    """Stops the search and ends its children, which frees their nodes; false goes on from there."""
    objective: Annotated[
        ObjectiveSpec,
        Field(json_schema_extra=cel(("self == oldSelf", "objective is immutable: create a new experiment"))),
    ] = ObjectiveSpec()
    """What is optimised. Immutable."""
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
    """What follows the search; the best sample's architecture is all that is handed over when not set. May be changed
    until the search ends."""
    controller: ControllerSpec = ControllerSpec()
    """The controller's pod."""
    storage: StorageSpec
    """Where everything is kept; `nas run` does without it. Immutable once the first record is written."""


# ---------------------------------------------------------------- status


class Condition(Model):
    """A condition as metav1 has it."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """Progressing, Suspended, Complete or Failed."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=32_768)] = ""
    """A sentence for people: the cause and the cure."""
    observed_generation: int = 0
    """The generation of the spec that this was decided on."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""


class SampleCounts(Model):
    """Samples by what has become of them."""

    budget: int = 0
    """Samples asked for."""
    proposed: int = 0
    """Samples drawn from the policy."""
    running: int = 0
    """Samples in flight."""
    observed: int = 0
    """Samples with a result, learnt by the policy."""
    lost: int = 0
    """Samples given up."""
    diverged: int = 0
    """Observed samples whose training diverged."""
    stopped: int = 0
    """Observed samples whose training was stopped early (trainer.earlyStopping): their rewards are underestimates."""
    retried: int = 0
    """Launches beyond the first of their samples."""
    reused: int = 0
    """Observed samples whose architecture had been observed before: they took that result, nothing was trained."""
    inherited: int = 0
    """Samples of an earlier experiment that the policy learnt first (searcher.warmStart)."""


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
    """Mean reward of the first 20 observed samples that the policy drew: it had hardly learnt then."""


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
    """Pairs of one observed sample of each arm, neighbours in time, so that counts are equal."""
    difference: Decimal | None = None
    """Mean over the pairs of the policy's reward minus the random one's."""
    standard_error: Decimal | None = None
    """Standard error of the difference."""


class FinalStatus(Model):
    """The final training of the search's best architectures."""

    trained: int = 0
    """Trainings with a result, the test's not counted."""
    lost: int = 0
    """Trainings given up."""
    total: int = 0
    """Trainings that the grid asks for: architectures times combinations of settings."""
    sample: int | None = None
    """The search's sample whose architecture is the best so far; at the end it is the one in best/."""
    best_metric: Decimal | None = None
    """The metric of the training with the highest reward so far, on the validation set."""
    test_metric: Decimal | None = None
    """The winner's metric on the test set, which is used once, at the end."""
    kendall_tau: Decimal | None = None
    """Kendall's tau-b between the search's rewards and the final ones: 1 if the search ranked just as they do."""
    kendall_low: Decimal | None = None
    """Lower end of tau's 95 % interval; from five architectures on."""
    kendall_high: Decimal | None = None
    """Upper end of tau's 95 % interval."""


class Outcome(Model):
    """How the search ended, as its log says."""

    type: Literal["Complete", "Failed"]
    """Complete or Failed."""
    reason: Annotated[str, StringConstraints(max_length=128)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=4096)]
    """A sentence for people."""


class Problem(Model):
    """What keeps the search from going on, seen by the controller; gone once it is cured."""

    reason: Annotated[str, StringConstraints(max_length=128)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=4096)]
    """A sentence for people: the cause and the cure."""


class ControllerStatus(Model):
    """The controller pod, as the operator sees it."""

    pod: Annotated[str, StringConstraints(max_length=253)]
    """Name of the newest controller pod."""


class NASExperimentStatus(Model):
    """What has become of the experiment. The operator writes the conditions, the controller the search."""

    model_config = {
        "json_schema_extra": cel(
            (
                "!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",
                "a controller with a lower epoch has been replaced and may not write",
            )
        )
    }

    observed_generation: int = 0
    """The generation of the spec that the operator has seen."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Progressing, Suspended, Complete and Failed, as batch/v1 names them."""
    state: Literal["Pending", "Searching", "Waiting", "Suspended", "Complete", "Failed"] | None = None
    """One word for the listing."""
    controller: ControllerStatus | None = None
    """The controller pod."""
    epoch: int | None = None
    """Which controller wrote the search's part, counted from 1; never falls."""
    samples: SampleCounts | None = None
    """Samples by what has become of them."""
    progress: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Samples done of the budget, for the listing."""
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
    """The search that is asked for."""
    status: NASExperimentStatus | None = None
    """What has become of it."""
