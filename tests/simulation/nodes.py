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
from nas_kube.reading import finished, status, suspended
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
}
NO_IMAGE = "nowhere/trainer:1"
"""No node can pull it."""
_NOT_PULLED = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
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
    begins: Callable[[tuple[int, ...]], None] = lambda samples: None
    """Told of the samples of each trainer that is about to run."""
    trainings: list[Training] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    """The first result that was written of each sample."""
    written: dict[int, float] = field(default_factory=dict)
    """When that was."""
    failures: Counter[int] = field(default_factory=Counter)
    """By sample, ends that count against it."""
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
        """Give a Job the pod that it is to have, once the one before is gone, or take it away while it is suspended."""
        found = self._job(job)
        if found is None or finished(found):
            return
        own = [each for each in self.trainings if each.job == job["metadata"]["uid"] and not each.uncounted]
        if suspended(found):
            self.server.change(JOBS, self.namespace, job["metadata"]["name"], status={"active": 0, "ready": 0})
            for training in own:
                training.uncounted = self._is_left(training)
                if training.uncounted:
                    self.server.delete(PODS, self.namespace, training.pod)
        elif any(
            self._is_left(each) for each in self.trainings if each.job == job["metadata"]["uid"] and each.uncounted
        ):
            self._later(1.0, 1.0, lambda: self._sync(job))
        elif not own:
            self._make_pod(found)

    def _is_left(self, training: Training) -> bool:
        """Return whether a pod is there and has not ended."""
        found = self.server.find(PODS, self.namespace, training.pod)
        return found is not None and status(found).get("phase") not in ("Succeeded", "Failed")

    def _make_pod(self, job: Object) -> None:
        meta, template = job["metadata"], job["spec"]["template"]
        owner = {"kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = self.server.create(
            PODS,
            self.namespace,
            {
                "kind": "Pod",
                "metadata": {
                    "generateName": meta["name"] + "-",
                    "labels": template["metadata"]["labels"],
                    "annotations": template["metadata"]["annotations"],
                    "ownerReferences": [owner],
                },
                "spec": template["spec"],
                "status": {"phase": "Pending"},
            },
        )
        samples = tuple(int(each) for each in meta["annotations"][names.ANNOTATION_SAMPLES].split(","))
        training = Training(meta["uid"], pod["metadata"]["name"], samples, self.fates())
        self.trainings.append(training)
        self.server.change(JOBS, self.namespace, meta["name"], status={"active": 1, "ready": 0})
        self._later(0.2, 8.0, lambda: self._begin(job, training))

    def _begin(self, job: Object, training: Training) -> None:
        if self._pod(training) is None:
            return
        name = training.pod
        if training.fate == "refused" or self.weather.is_wrong("node-refuses"):
            status = {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}
            self.server.change(PODS, self.namespace, name, status=status)
            self._later(0.1, 2.0, lambda: self._fail(job, "BackoffLimitExceeded", "Job has reached the limit"))
        elif job["spec"]["template"]["spec"]["containers"][0]["image"] == NO_IMAGE:
            self._status(training, "Pending", {"waiting": _NOT_PULLED})
        elif training.fate == "no-image":
            self._status(training, "Pending", {"waiting": _NOT_PULLED})
            training.fate = "trained"
            self._later(30.0, 600.0, lambda: self._begin(job, training))
        else:
            self.begins(training.samples)
            training.running = True
            self._status(training, "Running", {"running": {"startedAt": self.server.timestamp()}})
            if self._job(job) is not None:
                self.server.change(JOBS, self.namespace, job["metadata"]["name"], status={"ready": 1})
            self._later(5.0, 90.0, lambda: self._end(job, training))

    def _end(self, job: Object, training: Training) -> None:
        """Let a trainer come to its end."""
        if not training.running:
            return
        fate = training.fate
        if fate == "node-dies":
            training.hangs = True
            self.tell(f"node of {training.pod} dies")
            if self.scheduler.chance.random() < 0.5:
                # Where its node's silence is noticed; elsewhere the pod counts as ready for ever.
                self._later(40.0, 60.0, lambda: self._unready(job))
            return
        if fate in ("trained", "diverged", "killed-after-result"):
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
                self._status(training, "Failed", _terminated(143), conditions=[disrupted])
                words = f"Pod default/{training.pod} has condition DisruptionTarget matching FailJob rule at index 0"
                self._later(0.1, 2.0, lambda: self._fail(job, "PodFailurePolicy", words))
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

    def _unready(self, job: Object) -> None:
        if self._job(job) is not None:
            self.server.change(JOBS, self.namespace, job["metadata"]["name"], status={"ready": 0})

    def _count(self, training: Training) -> None:
        if training.fate in COUNTS and not training.uncounted:
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
        self._status(training, phase, _terminated(code, reason))
        if training.uncounted and code != ExitCode.STORAGE_UNREACHABLE:
            # The failure policy looks at those of a suspended Job, too; nothing else does.
            return
        if code == 0:
            self._later(0.1, 2.0, lambda: self._complete(job))
        elif code == ExitCode.STORAGE_UNREACHABLE:
            words = (
                f"Container trainer for pod default/{training.pod} failed with exit code {code} matching FailJob rule"
            )
            self._later(0.1, 2.0, lambda: self._fail(job, "PodFailurePolicy", words))
        else:
            words = "Job has reached the specified backoff limit"
            self._later(0.1, 2.0, lambda: self._fail(job, "BackoffLimitExceeded", words))

    def _complete(self, job: Object) -> None:
        self._finish(job, {"type": "Complete", "status": "True"})

    def _fail(self, job: Object, reason: str, message: str) -> None:
        self._finish(job, {"type": "Failed", "status": "True", "reason": reason, "message": message})

    def _finish(self, job: Object, condition: Object) -> None:
        if self._job(job) is None:
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
        status = {"phase": phase, "containerStatuses": [container], **more}
        self.server.change(PODS, self.namespace, training.pod, status=status)


def _terminated(code: int, reason: str = "") -> Object:
    return {"terminated": {"exitCode": int(code), "reason": reason or ("Completed" if code == 0 else "Error")}}


def _asked(job: Object, sample: int) -> TrainerInput:
    """Return what a Job's trainer is told of a sample."""
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    document = next(each["value"] for each in environment if each["name"] == names.ENV_TRAINER_INPUT)
    return next(each for each in read_trainer_document(document) if each.sample == sample)
