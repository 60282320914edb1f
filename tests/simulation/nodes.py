"""A model of what brings pods about and ends them: the Job controller, kubelets, nodes, and trainers of many fates."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulation.api_server import ApiServer, Object
from simulation.bucket import Bucket
from simulation.scheduler import Scheduler
from simulation.weather import Weather

from nas_api import names
from nas_api.child import ExitCode, Result, TrainerInput, read_trainer_document
from nas_kube.reading import finished, parallelism, status, suspended
from nas_kube.resources import JOBS, PODS
from nas_store.errors import StoreUnreachable

FATES = {
    "trained": "writes its result and ends",
    "diverged": "writes that it diverged",
    "crashes": "ends with code 1 and no result",
    "killed-after-result": "writes its result and is killed at once",
    "out-of-memory": "is killed for its memory",
    "no-result": "ends with code 0 and no result",
    "disrupted": "is preempted: DisruptionTarget",
    "terminated": "ends with SIGTERM, as when its node is drained by force",
    "terminated-and-gone": "ends with SIGTERM, and its pod is gone before anybody looks",
    "refused": "is refused by its node before any container runs",
    "no-image": "waits for an image that comes late",
    "node-dies": "stands still on a dead node: nothing says so",
    "node-is-away": "stands still on a dead node: its pod is evicted, and stays until the node is back",
}
NO_IMAGE = "nowhere/trainer:1"
"""No node can pull it."""
_SUSPENDED = {"active": 0, "ready": 0, "conditions": [{"type": "Suspended", "status": "True"}]}
_NOT_READY = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}]
"""Of a pod whose node does not answer."""
_NOT_PULLED = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
ENDS_WELL = frozenset({"trained", "diverged", "killed-after-result", "no-result"})
"""Fates of a trainer that comes to its end."""
COUNTS = frozenset({"crashes", "no-result"})
"""Fates that count against ``trainer.attempts``."""


@dataclass(eq=False)
class Training:
    """One pod's trainer."""

    job: str
    """Its Job's uid."""
    pod: str
    samples: tuple[int, ...]
    fate: str
    rank: int = 0
    """Which of its Job's pods it is; the first one writes the result."""
    begun: bool = False
    running: bool = False
    """Whether a container runs, whatever anybody knows of it."""
    hangs: bool = False
    uncounted: bool = False
    """It was ended because its Job was suspended: the Job is none the worse."""


@dataclass
class Nodes:
    """Makes pods for Jobs, and lets them run and end."""

    scheduler: Scheduler
    server: ApiServer
    bucket: Bucket
    weather: Weather
    namespace: str
    tell: Callable[[str], None]
    fates: Callable[[], str]
    begins: Callable[[Training], None] = lambda training: None
    """Told of each trainer that is about to run."""
    trainings: list[Training] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    """The first result that was written of each sample."""
    written: dict[int, float] = field(default_factory=dict)
    """When that was."""
    failures: Counter[int] = field(default_factory=Counter)
    """By sample, ends that count against it."""
    _failing: set[str] = field(default_factory=set)
    """Uids of Jobs of which a pod has failed."""
    _held: set[str] = field(default_factory=set)
    """Uids of Jobs that are suspended."""

    def __post_init__(self) -> None:
        """Begin to look."""
        self.server.listeners.append(self._changed)

    def _changed(self, kind: str, item: Object) -> None:
        if item.get("kind") == "Job" and "template" in item["spec"]:
            was_held = item["metadata"]["uid"] in self._held
            if suspended(item):
                self._held.add(item["metadata"]["uid"])
            else:
                self._held.discard(item["metadata"]["uid"])
            if kind == "ADDED" or (kind == "MODIFIED" and was_held != suspended(item)):
                self._later(0.2, 4.0, lambda: self._sync(item))
        elif item.get("kind") == "Pod" and "deletionTimestamp" in item["metadata"] and kind == "MODIFIED":
            self._terminate(item["metadata"]["name"])

    def _later(self, low: float, high: float, call: Callable[[], None]) -> None:
        self.scheduler.at(self.scheduler.chance.uniform(low, high), call)

    def _job(self, job: Object) -> Object | None:
        found = self.server.find(JOBS, self.namespace, job["metadata"]["name"])
        return found if found is not None and found["metadata"]["uid"] == job["metadata"]["uid"] else None

    def _sync(self, job: Object) -> None:
        """Give a Job its pods, once those before are gone, or take them away while it is suspended."""
        found = self._job(job)
        if found is None or finished(found):
            return
        own = [each for each in self.trainings if each.job == job["metadata"]["uid"] and not each.uncounted]
        if suspended(found):
            self.server.change(JOBS, self.namespace, job["metadata"]["name"], status=_SUSPENDED)
            for training in own:
                training.uncounted = self._is_left(training)
                if training.uncounted:
                    self.server.delete(PODS, self.namespace, training.pod)
        elif any(
            self._is_left(each) for each in self.trainings if each.job == job["metadata"]["uid"] and each.uncounted
        ):
            self._later(1.0, 1.0, lambda: self._sync(job))
        elif ranks := set(range(parallelism(found))) - {each.rank for each in own}:
            self._make_pods(found, sorted(ranks))

    def _is_left(self, training: Training) -> bool:
        """Return whether a pod is there and has not ended."""
        found = self.server.find(PODS, self.namespace, training.pod)
        return found is not None and status(found).get("phase") not in ("Succeeded", "Failed")

    def _make_pods(self, job: Object, ranks: list[int]) -> None:
        meta, template = job["metadata"], job["spec"]["template"]
        owner = {"kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        samples = tuple(int(each) for each in meta["annotations"][names.ANNOTATION_SAMPLES].split(","))
        made = []
        for rank in ranks:
            number = {names.COMPLETION_INDEX: str(rank)} if "completionMode" in job["spec"] else {}
            pod = self.server.create(
                PODS,
                self.namespace,
                {
                    "kind": "Pod",
                    "metadata": {
                        "generateName": f"{meta['name']}-{rank}-" if number else f"{meta['name']}-",
                        "labels": {**template["metadata"]["labels"], **number},
                        "annotations": {**template["metadata"]["annotations"], **number},
                        "ownerReferences": [owner],
                    },
                    "spec": template["spec"],
                    "status": {"phase": "Pending"},
                },
            )
            fate = self.fates()
            if rank and fate in ENDS_WELL:
                fate = "trained"
            made.append(Training(meta["uid"], pod["metadata"]["name"], samples, fate, rank))
        self.trainings += made
        self.server.change(JOBS, self.namespace, meta["name"], status={"active": len(made), "ready": 0})
        for training in made:
            self._begin_later(job, training)

    def _begin_later(self, job: Object, training: Training) -> None:
        self._later(0.2, 8.0, lambda: self._begin(job, training))

    def _peers(self, training: Training) -> list[Training]:
        """Return the other trainers that its Job has at the same time."""
        return [
            each
            for each in self.trainings
            if each.job == training.job and each is not training and not each.uncounted and not training.uncounted
        ]

    def _begin(self, job: Object, training: Training) -> None:
        if self._pod(training) is None:
            return
        name = training.pod
        if training.fate == "refused" or self.weather.is_wrong("node-refuses"):
            status = {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}
            self.server.change(PODS, self.namespace, name, status=status)
            self._let_fail(job, training, "BackoffLimitExceeded", "Job has reached the limit")
        elif _trainer(job["spec"]["template"]["spec"])[0]["image"] == NO_IMAGE:
            self._status(training, "Pending", {"waiting": _NOT_PULLED})
        elif training.fate == "no-image":
            self._status(training, "Pending", {"waiting": _NOT_PULLED})
            training.fate = "trained"
            self._later(30.0, 600.0, lambda: self._begin(job, training))
        else:
            self.begins(training)
            training.running = training.begun = True
            self._status(training, "Running", {"running": {"startedAt": self.server.timestamp()}})
            self._tell_ready(job)
            self._later(5.0, 90.0, lambda: self._end(job, training))

    def _end(self, job: Object, training: Training) -> None:
        """Let a trainer come to its end."""
        if not training.running:
            return
        fate = training.fate
        peers = self._peers(training)
        if fate in ENDS_WELL and any(each.hangs or not each.begun for each in peers):
            # They take each step together.
            self._later(5.0, 5.0, lambda: self._end(job, training))
            return
        if fate == "node-is-away":
            training.hangs = True
            self.tell(f"node of {training.pod} is away")
            self._later(40.0, 60.0, lambda: self._tell_ready(job))
            self._later(340.0, 360.0, lambda: self._evict(training))
            self._later(100.0, 3000.0, lambda: self._come_back(job, training))
            return
        if fate == "node-dies":
            training.hangs = True
            self.tell(f"node of {training.pod} dies")
            if self.scheduler.chance.random() < 0.5:
                # Where its node's silence is noticed; elsewhere the pod counts as ready for ever.
                self._later(40.0, 60.0, lambda: self._tell_ready(job))
            return
        if training.rank == 0 and fate in ("trained", "diverged", "killed-after-result"):
            try:
                for sample in training.samples:
                    self._write_result(job, sample, diverged=fate == "diverged")
            except StoreUnreachable:
                # Its patience is the trainer's own affair and tested there.
                self._exit(job, training, ExitCode.STORAGE_UNREACHABLE)
                return
        match fate:
            case "trained" | "diverged" | "no-result":
                self._count(training)
                self._exit(job, training, 0)
            case "disrupted":
                training.running = False
                disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
                ended = _terminated(143, "", self.server.timestamp())
                self._status(training, "Failed", ended, conditions=[disrupted])
                words = f"Pod default/{training.pod} has condition DisruptionTarget matching FailJob rule at index 0"
                self._let_fail(job, training, "PodFailurePolicy", words)
            case "out-of-memory":
                self._exit(job, training, 137, reason="OOMKilled")
            case "crashes":
                self._count(training)
                self._exit(job, training, 1)
            case "killed-after-result":
                self._exit(job, training, 137)
            case "terminated":
                self._exit(job, training, 143)
            case "terminated-and-gone":
                self._exit(job, training, 143)
                self.server.remove(PODS, self.namespace, training.pod)

    def _evict(self, training: Training) -> None:
        """Let the node's lifecycle controller delete a pod, which stays: its kubelet does not answer."""
        if training.running and self._pod(training) is not None:
            disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
            self.server.change(PODS, self.namespace, training.pod, status={"conditions": [*_NOT_READY, disrupted]})
            self.server.delete(PODS, self.namespace, training.pod)

    def _come_back(self, job: Object, training: Training) -> None:
        """Let a node come back: it ends what was deleted meanwhile, and goes on with the rest."""
        self.tell(f"node of {training.pod} is back")
        found = self.server.find(PODS, self.namespace, training.pod)
        if found is None:
            training.running = False
        elif "deletionTimestamp" in found["metadata"]:
            self._gone(training)
            if training.job not in self._failing and not training.uncounted:
                words = f"Pod default/{training.pod} has condition DisruptionTarget matching FailJob rule at index 0"
                self._let_fail(job, training, "PodFailurePolicy", words)
        else:
            training.hangs, training.fate = False, "trained"
            self._tell_ready(job)
            self._later(1.0, 30.0, lambda: self._end(job, training))

    def _tell_ready(self, job: Object) -> None:
        """Let a Job say how many pods are ready: none, where the trainer is an init container."""
        if self._job(job) is not None:
            of_job = [each for each in self.trainings if each.job == job["metadata"]["uid"]]
            ready = (
                0
                if _trainer(job["spec"]["template"]["spec"])[1]
                else sum(each.running and not each.hangs for each in of_job)
            )
            self.server.change(JOBS, self.namespace, job["metadata"]["name"], status={"ready": ready})
            for each in of_job:
                if each.hangs:
                    self.server.change(PODS, self.namespace, each.pod, status={"conditions": _NOT_READY})

    def _count(self, training: Training) -> None:
        if training.fate in COUNTS and not training.uncounted and training.job not in self._failing:
            self.failures.update(training.samples)

    def _write_result(self, job: Object, sample: int, *, diverged: bool) -> None:
        self.weather.store("trainers")
        asked = _asked(job, sample)
        if asked.final is not None and asked.final.test and not diverged:
            self.bucket.put("trainer", names.weights_key(sample), f"weights of {sample}".encode())
        result = Result(
            sample=sample,
            attempt=asked.attempt,
            architecture=asked.architecture.digest,
            status="Diverged" if diverged else "Trained",
            metrics={} if diverged else {asked.metric: self.scheduler.chance.uniform(0.1, 0.9)},
        )
        if self.bucket.put_if_absent(
            "trainer", names.result_key(sample), result.model_dump_json(by_alias=True).encode()
        ):
            self.results[sample], self.written[sample] = result, self.scheduler.now

    def _exit(self, job: Object, training: Training, code: int, reason: str = "") -> None:
        training.running = False
        phase = "Succeeded" if code == 0 else "Failed"
        self._status(training, phase, _terminated(code, reason, self.server.timestamp()))
        if training.uncounted and code != ExitCode.STORAGE_UNREACHABLE:
            # The failure policy looks at those of a suspended Job, too; nothing else does.
            return
        if code == 0:
            if not any(self._is_left(each) for each in self._peers(training)):
                self._later(0.1, 2.0, lambda: self._complete(job))
        elif code == ExitCode.STORAGE_UNREACHABLE:
            words = (
                f"Container trainer for pod default/{training.pod} failed with exit code {code} matching FailJob rule"
            )
            self._let_fail(job, training, "PodFailurePolicy", words)
        else:
            self._let_fail(job, training, "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _let_fail(self, job: Object, training: Training, reason: str, words: str) -> None:
        """Let a Job fail of its first pod that does; others fail for the lack of that one, or are told to end."""
        if training.job in self._failing:
            return
        self._failing.add(training.job)
        for peer in self._peers(training):
            if self.scheduler.chance.random() < 0.5:
                self._later(1.0, 20.0, lambda peer=peer: self._fall(job, peer))  # type: ignore[misc]
        self._later(0.1, 2.0, lambda: self._fail(job, reason, words))

    def _fall(self, job: Object, training: Training) -> None:
        if training.running and not training.hangs:
            self._exit(job, training, 1)

    def _complete(self, job: Object) -> None:
        if job["metadata"]["uid"] not in self._failing:
            self._finish(job, {"type": "Complete", "status": "True"})

    def _fail(self, job: Object, reason: str, message: str) -> None:
        """Let a Job fail once all of its pods have ended."""
        left = [each for each in self.trainings if each.job == job["metadata"]["uid"] and self._is_left(each)]
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        if not left:
            self._finish(job, condition)
        elif self._job(job) is not None:
            target = {"conditions": [{**condition, "type": "FailureTarget"}]}
            self.server.change(JOBS, self.namespace, job["metadata"]["name"], status=target)
            for training in left:
                self.server.delete(PODS, self.namespace, training.pod)
            self._later(1.0, 1.0, lambda: self._fail(job, reason, message))

    def _finish(self, job: Object, condition: Object) -> None:
        found = self._job(job)
        if found is None or finished(found):
            return
        status = {"active": 0, "ready": 0, "conditions": [condition]}
        self.server.change(JOBS, self.namespace, job["metadata"]["name"], status=status)
        ttl = float(job["spec"]["ttlSecondsAfterFinished"])
        self.scheduler.at(ttl, lambda: self._expire(job))

    def _expire(self, job: Object) -> None:
        found = self._job(job)
        if found is not None and finished(found):
            self.server.remove(JOBS, self.namespace, job["metadata"]["name"])

    def _terminate(self, pod: str) -> None:
        """End a pod that was deleted: SIGTERM, and SIGKILL after its grace; on a dead node nobody does either."""
        training = next((each for each in self.trainings if each.pod == pod), None)
        if training is None:
            return
        if training.fate == "node-is-away" and training.hangs:
            return
        if training.hangs:
            # Until the node is given up: its pods go by force.
            self._later(60.0, 400.0, lambda: self._gone(training))
        else:
            self._later(0.1, 30.0, lambda: self._gone(training))

    def _gone(self, training: Training) -> None:
        training.running = False
        self.server.remove(PODS, self.namespace, training.pod)

    def _pod(self, training: Training) -> Object | None:
        found = self.server.find(PODS, self.namespace, training.pod)
        return None if found is None or "deletionTimestamp" in found["metadata"] else found

    def _status(self, training: Training, phase: str, state: Object, **more: Any) -> None:
        container = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "sha256:1", "state": state}
        found = self.server.find(PODS, self.namespace, training.pod)
        own = found is not None and _trainer(found["spec"])[1]
        where = "initContainerStatuses" if own else "containerStatuses"
        status = {"phase": phase, where: [container], **more}
        self.server.change(PODS, self.namespace, training.pod, status=status)


def _terminated(code: int, reason: str, finished_at: str) -> Object:
    reason = reason or ("Completed" if code == 0 else "Error")
    return {"terminated": {"exitCode": int(code), "reason": reason, "finishedAt": finished_at}}


def _trainer(pod: Object) -> tuple[Object, bool]:
    """Return the trainer's container of a pod spec, and whether it is a user's own: an init container."""
    own = {each["name"]: each for each in pod.get("initContainers") or ()}.get(names.TRAINER_CONTAINER)
    return (pod["containers"][0], False) if own is None else (own, True)


def _asked(job: Object, sample: int) -> TrainerInput:
    """Return what a Job's trainer is told of a sample."""
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    document = next(each["value"] for each in environment if each["name"] == names.ENV_TRAINER_INPUT)
    return next(each for each in read_trainer_document(document) if each.sample == sample)
