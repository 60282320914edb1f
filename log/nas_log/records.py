"""What the log says: one model for each kind of record. Old kinds and fields stay readable for ever.

A record is written once and never changed. ``format`` counts the meaning of a kind: when the meaning
changes, the number grows, and the fold and the reader keep a branch for the old one.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from nas_api.architecture import Architecture
from nas_api.base import MetricName, Model
from nas_api.child import FinalSettings
from nas_api.experiment import BudgetSpec, FinalTrainingSpec, ObjectiveSpec, OptimizerSpec, SearcherSpec
from nas_api.reasons import LostReason, Reason
from nas_api.search_space import SearchSpaceSpec
from nas_api.stopping import Rung, Stopped, StopRule
from nas_log.errors import LogDamaged

Arm = Literal["policy", "random"]
"""Who drew a sample: the policy, or the control arm, uniformly at random and unknown to the policy."""


class FinalRun(Model):
    """What tells a final training from a child of the search."""

    of: int
    """The search's sample whose architecture it trains."""
    settings: FinalSettings
    """What the grid says of the network; ``test`` where it is the winner's last training, measured on the test set."""
    optimizer: OptimizerSpec
    """The trainer's, with the grid's learning rate and weight decay."""
    epochs: int


class Platform(Model):
    """What a controller runs on, as far as the last bits of a policy's state depend on it."""

    image: str
    """The controller's, as its pod names it; empty where nobody has said."""
    torch: str
    """The version of PyTorch."""
    cpu: str
    """The instructions that PyTorch's kernels use, as it names them: ``DEFAULT``, ``AVX2``, ``AVX512``."""


class Started(Model):
    """A controller begins to write this log, or goes on with it; the controllers before it are fenced."""

    type: Literal["Started"] = "Started"
    format: Literal[1] = 1
    epoch: Annotated[int, Field(ge=1)]
    """Counts the controllers of this log from 1."""
    moment: AwareDatetime
    """Wall-clock time; the first one's is the search's beginning, from which its duration counts."""
    search_space: SearchSpaceSpec
    searcher: SearcherSpec
    objective: ObjectiveSpec
    architecture: Architecture | None = None
    """What ``searchSpace.fixed`` stands for, as read from the other experiment once; None for other spaces."""
    platform: Platform | None = None
    """What the controller runs on; None where it was not told."""
    policy: str | None = None
    """SHA-256 in hex of the policy's state at this record, there: on another platform a replay may have other bits."""


class WarmStarted(Model):
    """The search begins with what an earlier experiment has learnt: so many ``Inherited`` records follow."""

    type: Literal["WarmStarted"] = "WarmStarted"
    format: Literal[1] = 1
    experiment: str
    """The earlier experiment's name."""
    uid: str | None = None
    """Its uid; None for a folder that says nothing of it."""
    uri: str
    """Where its log begins."""
    samples: int
    """How many samples are inherited."""
    first_sample: int
    """The number of this search's own first sample: the numbers of the earlier one go on, and so does a schedule."""


class Inherited(Model):
    """A sample of the earlier experiment, which the policy learns as if it had proposed it; no budget is spent."""

    type: Literal["Inherited"] = "Inherited"
    format: Literal[1] = 1
    sample: int
    """Its number in the earlier experiment, and here."""
    architecture: Architecture
    log_probability: float
    """Under whoever drew it there."""
    metrics: dict[MetricName, float]
    """What was reported there, ``parameters`` among it where known."""
    diverged: bool = False
    reward: float
    """Under this search's objective."""
    stopped: Stopped | None = None
    """Where its training was stopped early there: the reward is an underestimate. None: it was not."""


class Reconfigured(Model):
    """Parallelism and budget from here on."""

    type: Literal["Reconfigured"] = "Reconfigured"
    format: Literal[1] = 1
    parallelism: int
    budget: BudgetSpec


class Proposed(Model):
    """A sample has been drawn; ``Launched`` follows, or at once ``Observed`` where its result is known already.

    Where duplicates are reused, one whose architecture an open sample has waits for that one: it is observed with it,
    or launched when that one is lost.
    """

    type: Literal["Proposed"] = "Proposed"
    format: Literal[1] = 1
    sample: int
    architecture: Architecture
    log_probability: float
    """Sum over all decisions, under whoever drew it."""
    version: int
    """Updates that the policy had made when it drew; 0 in the random arm."""
    arm: Arm = "policy"
    """Who drew it: the policy, or the control arm, uniformly at random. The policy is told nothing of the latter."""


class Launched(Model):
    """A child is about to be created: the record comes before its Job, always."""

    type: Literal["Launched"] = "Launched"
    format: Literal[1] = 1
    launch: int
    """Counts all launches from 0."""
    samples: tuple[int, ...]
    """More than one where they share a pod."""
    attempt: int
    """Counts the launches of these samples from 1."""
    failures: int = 0
    """How many of the earlier attempts count against ``trainer.attempts``."""
    stop: StopRule | None = None
    """What ends its children early, but for those of the random arm; None: nothing."""
    moment: AwareDatetime | None = None
    """Wall-clock time of the record; None in logs of older writers. For reports: nothing is decided by it."""


class Observed(Model):
    """A sample has its result; the policy learns it when this record is folded, once."""

    type: Literal["Observed"] = "Observed"
    format: Literal[1] = 1
    sample: int
    metrics: dict[MetricName, float]
    """What the trainer reported; of a reused result only the objective's metric, the rest is in that record."""
    diverged: bool = False
    """The training gave no finite metric; the reward is the lowest so far."""
    reward: float
    """After the objective's penalties."""
    seconds: float = 0.0
    """Wall-clock time of the training; 0 where nothing was trained."""
    parameters: int = 0
    """Weights of the network; 0 where the trainer did not count them."""
    reused: int | None = None
    """The sample whose result this is: it had the same architecture, so nothing was trained. None: its own."""
    stopped: Stopped | None = None
    """Where the training was stopped early: metrics and reward are underestimates. None: it was not."""
    rung: Rung | None = None
    """What it had at the epoch of early stopping, for the rules of later children; None without early stopping."""
    files: dict[str, str] | None = None
    """Of the final training's test: SHA-256 in hex of what it has left to hand over, by file name. None: nothing."""
    moment: AwareDatetime | None = None
    """Wall-clock time of the record; None in logs of older writers. For reports: nothing is decided by it."""


class Lost(Model):
    """A sample is given up; a result that comes later is ignored."""

    type: Literal["Lost"] = "Lost"
    format: Literal[1] = 1
    sample: int
    reason: LostReason
    message: str = ""
    moment: AwareDatetime | None = None
    """Wall-clock time of the record; None in logs of older writers. For reports: nothing is decided by it."""


class SearchEnded(Model):
    """The search's last sample is observed or lost, and its best architectures are trained finally from here on."""

    type: Literal["SearchEnded"] = "SearchEnded"
    format: Literal[1] = 1
    reason: Reason
    """Why the search has ended; the reason of ``Finished`` too."""
    message: str
    final_training: FinalTrainingSpec
    """What is trained; later changes of the manifest count no more."""
    moment: AwareDatetime | None = None
    """Wall-clock time of the record."""


class FinalProposed(Model):
    """A final training begins; ``Launched`` follows, then ``Observed`` or ``Lost`` as for any sample.

    The policy is told nothing of it, and its ``Observed.metrics`` are of the validation set, or, where
    ``run.settings.test`` is set, of the test set.
    """

    type: Literal["FinalProposed"] = "FinalProposed"
    format: Literal[1] = 1
    sample: int
    """Its number: those of the search go on."""
    architecture: Architecture
    run: FinalRun
    """Which sample of the search it comes from, and with which settings it is trained."""


class Finished(Model):
    """The experiment has ended: nothing follows."""

    type: Literal["Finished"] = "Finished"
    format: Literal[1] = 1
    outcome: Literal["Complete", "Failed"]
    reason: Reason
    message: str
    moment: AwareDatetime | None = None
    """Wall-clock time of the record; None in logs of older writers. For reports: nothing is decided by it."""


Record = Annotated[
    Started
    | WarmStarted
    | Inherited
    | Reconfigured
    | Proposed
    | Launched
    | Observed
    | Lost
    | SearchEnded
    | FinalProposed
    | Finished,
    Field(discriminator="type"),
]

RECORDS: TypeAdapter[list[Record]] = TypeAdapter(list[Record])


def misfit(record: Record) -> LogDamaged:
    """Return the error for a record that cannot be where it is."""
    return LogDamaged(f"a record cannot follow those before it: {ascii(record)[:300]}")
