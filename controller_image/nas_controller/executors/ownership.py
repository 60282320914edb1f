"""Which Jobs and pods are an experiment's children: labels find them, names and owners prove them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nas_api import names
from nas_kube import reading
from nas_kube.reading import Object, belongs


@dataclass(frozen=True)
class Ownership:
    """Of one experiment, whose namespace, name and uid never change."""

    namespace: str
    experiment: str
    """Its name."""
    uid: str

    def job_name(self, launch: int) -> str:
        """Return the name of a launch's Job."""
        return names.child_job(self.experiment, self.uid, launch)

    def trainers(self) -> str:
        """Return the labels that all children have."""
        return f"{self.labels()},{names.LABEL_ROLE}={names.ROLE_TRAINER}"

    def labels(self) -> str:
        """Return the labels of whatever belongs to the experiment."""
        return f"{names.LABEL_EXPERIMENT_UID}={self.uid}"

    def pods_of(self, launches: Iterable[int]) -> str:
        """Return the labels of some launches' pods."""
        return f"{self.labels()},{names.LABEL_LAUNCH} in ({','.join(map(str, launches))})"

    def is_ours(self, job: Object, launch: int) -> bool:
        """Return whether a Job is our experiment's and has the name of a launch's: its labels alone say nothing."""
        return belongs(job, self.uid) and job["metadata"]["name"] == self.job_name(launch)

    def is_of_a_child(self, pod: Object) -> bool:
        """Return whether a Job with the name of a launch's controls a pod; the Job itself need not be known."""
        return reading.is_of_a_child(pod, self.experiment, self.uid)
