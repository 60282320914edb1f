"""Children that are there although no process that lives has made them: what earlier controllers have left."""

from collections.abc import Iterable

import structlog

from nas_api import names
from nas_api.child_job import made_from
from nas_api.experiment import NASExperiment
from nas_controller.executors.diagnosis import trains
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.reading import Object, belongs, controller, finished, parallelism, status
from nas_kube.resources import JOBS, PODS, Resource
from nas_log.errors import Fenced

_log = structlog.get_logger()


def end_unfinished(client: KubeClient, experiment: NASExperiment, tenure: Tenure | None) -> int:
    """Delete every child of an experiment that has not ended; return how many those were.

    Needs neither log nor search: for one that is over, and for one that is to rest while its log is out of reach.

    Args:
        client: the API.
        experiment: the manifest.
        tenure: says whether children still are ours to delete; None: nobody has read the log so far.

    Raises:
        Fenced: another process writes the log, so that what is there is its own; nothing is deleted.
        KubeError: not all are deleted; it may be called again.
    """
    jobs = _unfinished(client, experiment)
    # After the list: what is made later has another uid. Where nobody can tell, a suspension must free nodes.
    if jobs and tenure is not None and tenure.holds(surely=True) is False:
        raise Fenced("another controller has written the log's next object")
    for job in jobs.values():
        client.delete(JOBS, experiment.metadata.namespace, job["metadata"]["name"], uid=job["metadata"]["uid"])
    if jobs:
        _log.info("children ended that no search waits for", launches=sorted(jobs))
    return len(jobs)


def outdated(client: KubeClient, experiment: NASExperiment, image: str) -> list[int]:
    """Return the launches of children that do not train yet and were made from another manifest than this.

    Args:
        client: the API.
        experiment: the manifest.
        image: the trainer's, for manifests that name none.

    Raises:
        KubeError: it cannot be found out.
    """
    wanted = made_from(experiment.spec, image)
    jobs = {
        launch: job
        for launch, job in _unfinished(client, experiment).items()
        # Of a Job that an older version has made it is not known what from.
        if (job["metadata"].get("annotations") or {}).get(names.ANNOTATION_INPUTS, wanted) != wanted
        and status(job).get("ready", 0) < parallelism(job)
    }
    if not jobs:
        return []
    # A user's own trainer is an init container, so that its Job is not ready before the end.
    training = {controller(pod).get("uid") for pod in _listed(client, experiment, PODS) if trains(pod)}
    return sorted(launch for launch, job in jobs.items() if job["metadata"]["uid"] not in training)


def _unfinished(client: KubeClient, experiment: NASExperiment) -> dict[int, Object]:
    """Return an experiment's Jobs that have not ended, by launch: those that have the name and the owner of one."""
    meta = experiment.metadata
    found = {}
    for job in _listed(client, experiment, JOBS):
        number = (job["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH, "")
        if not number.isdecimal() or job["metadata"]["name"] != names.child_job(meta.name, meta.uid, int(number)):
            continue
        if belongs(job, meta.uid) and not finished(job) and "deletionTimestamp" not in job["metadata"]:
            found[int(number)] = job
    return found


def _listed(client: KubeClient, experiment: NASExperiment, resource: Resource) -> Iterable[Object]:
    meta = experiment.metadata
    selector = f"{names.LABEL_EXPERIMENT_UID}={meta.uid},{names.LABEL_ROLE}={names.ROLE_TRAINER}"
    return client.list(resource, meta.namespace, label_selector=selector).items
