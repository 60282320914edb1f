"""What must hold in every history, whatever happens: seen from outside, by the log, the Jobs and the status."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulation.api_server import Object, launch_of, ours
from simulation.nodes import Training

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_controller import snapshots
from nas_controller.controller import ControllerExit
from nas_controller.policies.factory import make_policy
from nas_controller.state import SearchState, fold
from nas_controller.status import search_status
from nas_kube.reading import finished
from nas_kube.resources import EXPERIMENTS
from nas_log.log import decode
from nas_log.records import (
    FinalProposed,
    Finished,
    Inherited,
    Launched,
    Lost,
    Observed,
    Proposed,
    Record,
    WarmStarted,
)

if TYPE_CHECKING:
    from simulation.history import History

LOOK_SECONDS = 60.0
STALL_SECONDS = 600.0
"""When nothing has moved for so long, it must be told ..."""
TELL_SECONDS = 300.0
"""... within this."""
SUSPENDED_SECONDS = 900.0
"""So long after a suspension, with all well, no child is left."""
IN_FLIGHT_SECONDS = 0.03
"""So long a call is on its way before it has its effect."""
MOST_LAUNCHES = 20
STORM_SECONDS = 600.0
"""So many launches of one sample within this are a storm."""


@dataclass(frozen=True)
class Violation:
    """A promise that was broken."""

    rule: str
    words: str


class Checker:
    """Looks at everything as it happens, and at the whole at the end."""

    def __init__(self, history: "History") -> None:
        self._history = history
        self._bucket = history.bucket
        self.foreign: set[str] = set()
        """Uids of Jobs that are none of ours, as long as nobody but us could take them away."""
        self._launched: dict[int, Launched] = {}
        self._architectures: dict[int, Architecture] = {}
        """By sample of the search."""
        self._settled: dict[int, float] = {}
        """When the log said of a sample how it ended."""
        self._launches: dict[int, list[float]] = defaultdict(list)
        """When each sample was launched."""
        self._writers: dict[str, str] = {}
        """Who has written as whom."""
        self._wrote: dict[str, float] = defaultdict(float)
        """When each controller wrote the log last."""
        self._started: dict[str, float] = {}
        self._moved = 0.0
        self._untold: float | None = None
        self._suspended: float | None = None
        self._parallelism = 0
        self._finished = False
        history.server.listeners.append(self._object_changed)
        history.bucket.listeners.append(self._written)

    # ------------------------------------------------------------ as it happens

    def _violate(self, rule: str, words: str) -> None:
        self._history.violate(rule, words)

    @property
    def _now(self) -> float:
        return self._history.scheduler.now

    @property
    def experiment(self) -> Object:
        """The experiment as it is."""
        (found,) = self._history.server.items(EXPERIMENTS.plural)
        return found

    @property
    def status(self) -> Object:
        """Its status."""
        return self.experiment.get("status") or {}

    @property
    def over(self) -> bool:
        """Whether the experiment's conditions say that its search has ended."""
        return self.status.get("state") in ("Complete", "Failed")

    def _written(self, who: str, key: str, data: bytes, before: bytes | None) -> None:
        if not key.startswith(names.LOG_PREFIX):
            return
        if before is not None:
            self._violate("one writer", f"{who} writes over {key}")
            return
        self._moved = self._wrote[who] = self._now
        document = json.loads(data)
        writer = self._writers.setdefault(document["writer"], who)
        if writer != who:
            self._violate("one writer", f"{who} writes {key} as {writer}")
        for record in decode(document["sequence"], data).records:
            self._recorded(record)

    def _recorded(self, record: Record) -> None:
        match record:
            case Launched():
                self._launched[record.launch] = record
                for sample in record.samples:
                    times = self._launches[sample]
                    times.append(self._now)
                    if len(times) > MOST_LAUNCHES and self._now - times[-MOST_LAUNCHES - 1] < STORM_SECONDS:
                        self._violate("storm", f"sample {sample} is launched for the {len(times)}th time")
            case Observed() | Lost():
                if record.sample in self._settled:
                    self._violate("exactly once", f"sample {record.sample} has a second end")
                self._settled[record.sample] = self._now
            case Proposed():
                self._architectures[record.sample] = record.architecture
            case Finished():
                self._finished = True

    def _object_changed(self, kind: str, item: Object) -> None:
        if item.get("kind") != "Job":
            if item.get("kind") == names.KIND:
                self._experiment_changed(item)
            return
        uid = item["metadata"]["uid"]
        if kind == "DELETED" and uid in self.foreign:
            self._violate("foreign Jobs", f"Job {item['metadata']['name']} is not ours, and is deleted")
        if not ours(item, self.experiment["metadata"]["uid"]):
            return
        self._moved = self._now
        if kind == "ADDED":
            self._job_created(item)

    def _experiment_changed(self, item: Object) -> None:
        spec = item["spec"]
        self._parallelism = max(self._parallelism, spec["parallelism"])
        if spec.get("suspend") and self._suspended is None:
            self._suspended = self._now
        elif not spec.get("suspend"):
            self._suspended, self._moved = None, max(self._moved, self._now if self._suspended else 0.0)

    def _job_created(self, job: Object) -> None:
        launch = launch_of(job)
        if launch not in self._launched:
            self._violate("record before launch", f"launch {launch} is not in the log, and its Job is created")
            return
        maker = self._history.scheduler.current().process
        if self._now - self._history.woken.get(maker, -IN_FLIGHT_SECONDS) < IN_FLIGHT_SECONDS:
            # Its POST was on its way when it was stopped: whoever goes on deletes the Job.
            return
        if self._finished:
            self._violate("nothing after the end", f"the Job of launch {launch} is created after Finished")
        unfinished = [each for each in self._history.jobs() if not finished(each)]
        samples = sum(len(self._launched[launch_of(each)].samples) for each in unfinished)
        if samples > self._parallelism:
            self._violate("parallelism", f"{samples} samples are out at once, and {self._parallelism} may be")

    def training_begins(self, training: Training) -> None:
        """Look at a trainer that begins to run: beside it only the other ranks of its own Job may train its samples."""
        for each in self._history.nodes.trainings:
            twins = set(each.samples) & set(training.samples)
            rank = each.job == training.job and each.rank != training.rank and not each.uncounted
            if each.running and not each.hangs and twins and not rank:
                self._violate("no twins", f"sample {min(twins)} is trained in two pods at once")

    def controller_started(self, name: str) -> None:
        """Take note of a controller."""
        self._started[name] = self._moved = self._now

    def controller_ended(self, name: str, code: int) -> None:
        """Look at how a controller's process ends by itself."""
        others = any(at > self._started[name] for who, at in self._wrote.items() if who != name)
        if code == ControllerExit.FENCED and not others:
            self._violate("fencing", f"{name} says that another controller goes on, and there is none")
        self._moved = self._now

    def look(self) -> None:
        """Look at what is told; comes again."""
        if self._moves():
            self._moved, self._untold = self._now, None
        elif self._now - self._moved > STALL_SECONDS and not self._told():
            if self._untold is None:
                self._untold = self._now
            elif self._now - self._untold >= TELL_SECONDS:
                self._violate(
                    "stalls are told", f"nothing has moved since {self._moved:.0f} s, and the status is silent"
                )
        else:
            self._untold = None
        if (
            self._suspended is not None
            and self._now - max(self._suspended, self._history.script.clears) > SUSPENDED_SECONDS
        ):
            left = [each["metadata"]["name"] for each in self._history.jobs() if not finished(each)]
            if left:
                self._violate("suspension", f"{left[0]} is not ended although the search is suspended")
        self._history.scheduler.at(LOOK_SECONDS, self.look)

    def _moves(self) -> bool:
        """Return whether there is nothing to tell: a child trains, the search is over, or nobody could write it."""
        living = {job["metadata"]["uid"] for job in self._history.jobs() if not finished(job)}
        trains = any(each.running and not each.hangs and each.job in living for each in self._history.nodes.trainings)
        mute = self._history.weather.is_wrong("api-away", "api-500", "api-429", "api-watch", "api-lost", "api-cut")
        still = any(process.frozen for _, process in self._history.living())
        return trains or mute or still or self.over or self._suspended is not None

    def _told(self) -> bool:
        return self.status.get("problem") is not None or self.status.get("state") == "Waiting"

    # ------------------------------------------------------------ the whole

    def at_the_end(self) -> None:
        """Look at what is left."""
        if not self.over:
            trainings = [each for each in self._history.nodes.trainings if each.running]
            self._violate("end", f"the search has not ended; {len(trainings)} trainers run")
            return
        for job in self._history.jobs():
            if not finished(job):
                self._violate("nothing after the end", f"{job['metadata']['name']} is left unfinished")
        records, states = self._replay()
        if not records:
            self._violate("no gap", "there is no log")
            return
        state = fold(records, make_policy)
        assert state is not None
        first = self._check_warm_start(records)
        self._check_samples(records, state, first)
        self._check_status(state)
        self._check_snapshots(states)
        self._check_best(state, _final_winner(records))

    def _replay(self) -> tuple[list[Record], dict[str, list[Record]]]:
        """Return the log's records, and those before each object by the name of a snapshot of them."""
        keys = sorted(key for key in self._bucket.objects if key.startswith(names.LOG_PREFIX))
        records: list[Record] = []
        until: dict[str, list[Record]] = {}
        previous = ""
        for sequence, key in enumerate(keys):
            if key != names.log_key(sequence):
                self._violate("no gap", f"{names.log_key(sequence)} is missing")
                return [], {}
            current = decode(sequence, self._bucket.objects[key])
            if current.previous != previous:
                self._violate("no gap", f"{key} does not follow the object before it")
            previous = current.digest
            records += current.records
            until[names.snapshot_key(sequence)] = list(records)
        return records, until

    def _check_warm_start(self, records: list[Record]) -> int:
        """Look at what was inherited; return the number of the search's first sample."""
        begun = next((record for record in records if isinstance(record, WarmStarted)), None)
        inherited = [record.sample for record in records if isinstance(record, Inherited)]
        if begun is None:
            return 0
        if sorted(inherited) != list(range(begun.samples)):
            self._violate("exactly once", f"samples are inherited as {inherited}")
        return begun.first_sample

    def _check_samples(self, records: list[Record], state: SearchState, first: int) -> None:
        nodes, trainer = self._history.nodes, self.experiment["spec"]["trainer"]
        proposed = [record.sample for record in records if isinstance(record, Proposed | FinalProposed)]
        if proposed != list(range(first, first + len(proposed))):
            self._violate("exactly once", f"samples are proposed as {proposed}")
        if state.core.outcome is None or state.core.outcome.type == "Complete":
            searched = range(first, first + self.experiment["spec"]["budget"]["samples"])
            missing = {*searched, *proposed} - set(self._settled)
            if missing:
                self._violate("exactly once", f"samples {sorted(missing)} have no end")
        for record in records:
            if isinstance(record, Observed):
                result = nodes.results.get(record.sample)
                if result is None or (result.metrics, result.status == "Diverged") != (record.metrics, record.diverged):
                    self._violate("exactly once", f"sample {record.sample} is observed with what nobody has trained")
            elif isinstance(record, Lost):
                self._check_lost(record, trainer.get("attempts", 3))

    def _check_lost(self, record: Lost, attempts: int) -> None:
        nodes = self._history.nodes
        written = nodes.written.get(record.sample)
        if written is not None and written < self._settled[record.sample] - 60.0:
            self._violate("nothing paid is lost", f"sample {record.sample} has a result, and is lost: {record.message}")
        failures = nodes.failures[record.sample]
        if record.reason == "TrainerFailed" and failures < attempts and not self._history.script.namesakes:
            self._violate(
                "what counts", f"sample {record.sample} is lost after {failures} failures of its own: {record.message}"
            )

    def _check_status(self, state: SearchState) -> None:
        wanted = search_status(state, running=0, best_uri="", problem=None).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
        for field in ("epoch", "samples", "progress", "policy", "outcome"):
            if self.status.get(field) != wanted.get(field):
                self._violate(
                    "replay", f"the status says {field} {self.status.get(field)}, and the log {wanted.get(field)}"
                )

    def _check_snapshots(self, states: dict[str, list[Record]]) -> None:
        for key, data in self._bucket.objects.items():
            if key.startswith(names.SNAPSHOT_PREFIX):
                state, _ = snapshots.decode(data, make_policy)
                replayed = fold(states[key], make_policy)
                if replayed is None or replayed.core != state.core:
                    self._violate("replay", f"{key} is not what the log says")

    def _check_best(self, state: SearchState, winner: tuple[int, int | None] | None) -> None:
        """Look at what is handed over.

        Args:
            state: the log's.
            winner: of the final training, see ``_final_winner``.
        """
        best = state.core.best
        if best is None:
            return
        found = self._bucket.objects.get(names.BEST_ARCHITECTURE), self._bucket.objects.get(names.BEST_PROVENANCE)
        if found[0] is None or found[1] is None:
            self._violate("best/", "it is not there")
            return
        sample, tested = (best.sample, None) if winner is None else winner
        provenance: Any = json.loads(found[1])
        digest = ARCHITECTURE.validate_json(found[0]).digest
        wanted = self._architectures[sample].digest
        if digest != wanted or provenance["digest"] != digest or provenance["sample"] != sample:
            self._violate(
                "best/",
                f"it has {digest[:8]} of sample {provenance['sample']}, and the log's best is"
                f" {wanted[:8]} of sample {sample}",
            )
        network = self._bucket.objects.get(names.BEST_WEIGHTS)
        if network != (None if tested is None else self._bucket.objects[names.weights_key(tested)]):
            self._violate("best/", f"its weights are not those of the test, sample {tested}")


def _final_winner(records: list[Record]) -> tuple[int, int | None] | None:
    """Return which sample of the search has won the final training, and that of a test that has left a network.

    None: no final training has a result.
    """
    runs = {record.sample: record.run for record in records if isinstance(record, FinalProposed)}
    trials: dict[str, list[Observed]] = defaultdict(list)
    tested = None
    for record in records:
        if isinstance(record, Observed) and (run := runs.get(record.sample)) is not None:
            if not run.settings.test:
                trials[run.model_dump_json()].append(record)
            elif not record.diverged:
                tested = record.sample
    rewards = {
        runs[trained[0].sample].of: sum(each.reward for each in trained) / len(trained)
        for trained in sorted(trials.values(), key=lambda each: sum(one.reward for one in each) / len(each))
        if not all(each.diverged for each in trained)
    }
    return (max(rewards, key=lambda sample: rewards[sample]), tested) if rewards else None
