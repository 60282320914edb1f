"""What the commands read from a cluster."""

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from pydantic import ValidationError

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_api.harmless import harmless
from nas_cli.errors import NoAnswer, NotThere, Refusal, first_fault
from nas_cli.folders import local_hint
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, ApiUnavailable, KubeConfigError
from nas_kube.reading import is_of_a_child
from nas_kube.resources import EXPERIMENTS, PODS

# A controller may have nothing to say for as long as its children train.
_LOG_SILENCE_SECONDS = 24 * 3600.0


class Cluster:
    """One cluster and namespace; every method raises Refusal with the cause and the cure."""

    def __init__(self, namespace: str | None, context: str | None) -> None:
        """Read the configuration; nothing is sent."""
        try:
            self._client = KubeClient.from_environment(context=context, user_agent="nas")
        except KubeConfigError as error:
            words = str(error).rstrip(".")
            raise Refusal(f"{words}: set KUBECONFIG, or give the folder of a local run") from error
        self._namespace = namespace or self._client.namespace

    def experiment(self, name: str) -> NASExperiment:
        """Return an experiment."""
        with self._refusals():
            try:
                document = self._client.get(EXPERIMENTS, self._namespace, name)
            except ApiError as error:
                if error.status == 404 and error.reason == "NotFound":
                    raise NotThere(self._unknown(name)) from error
                raise
        return _read(document)

    def create(self, manifest: dict[str, Any]) -> tuple[NASExperiment, bool]:
        """Create an experiment, or find the one of that name; return it, and whether it is new."""
        name = str(manifest["metadata"]["name"])
        with self._refusals():
            try:
                return _read(self._client.create(EXPERIMENTS, self._namespace, manifest, field_manager="nas")), True
            except ApiError as error:
                if error.status == 404 and error.reason == "NotFound":
                    raise Refusal(
                        f"there is no namespace {self._namespace}: make it, or choose another with -n"
                    ) from error
                if error.reason != "AlreadyExists":
                    raise
            found = self._client.get(EXPERIMENTS, self._namespace, name)
        if "deletionTimestamp" in found["metadata"]:
            words = f"an earlier {name} in namespace {self._namespace} is being deleted"
            raise Refusal(f"{words}: run the command again once it is gone")
        return _read(found), False

    def controller(self, experiment: NASExperiment) -> tuple[str, str]:
        """Return the newest controller pod of an experiment and its container."""
        status = experiment.status
        pod = None if status is None or status.controller is None else status.controller.pod
        if pod is None:
            name = experiment.metadata.name
            raise Refusal(f"{name} has no controller pod yet: `nas status {name}` says why")
        return pod, names.CONTROLLER_CONTAINER

    def trainer(self, experiment: NASExperiment, sample: int) -> tuple[str, str]:
        """Return the pod of the newest launch that has a sample, the first one of several, and its container."""
        name, uid = experiment.metadata.name, experiment.metadata.uid
        selector = f"{names.LABEL_EXPERIMENT_UID}={uid},{names.LABEL_ROLE}={names.ROLE_TRAINER}"
        with self._refusals():
            pods = self._client.list(PODS, self._namespace, label_selector=selector).items
        # Others may bear the labels.
        ours = [pod["metadata"] for pod in pods if is_of_a_child(pod, name, uid)]
        own = [metadata for metadata in ours if str(sample) in _samples(metadata)]
        if not own:
            raise Refusal(
                f"there is no pod of sample {sample}: it has none yet, reused an earlier result, or was removed after"
                f" trainer.ttlSecondsAfterFinished; `nas samples {name}` says what has become of it"
            )
        newest = max(
            own, key=lambda metadata: (_label(metadata, names.LABEL_LAUNCH), -_label(metadata, names.COMPLETION_INDEX))
        )
        return str(newest["name"]), names.TRAINER_CONTAINER

    def log(self, pod: str, container: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """Yield the lines of a pod's log, as they come with ``follow``."""
        query = {
            "container": container,
            "follow": "true" if follow else None,
            "tailLines": None if tail is None else str(tail),
        }
        with self._refusals():
            try:
                stream = self._client.stream(
                    f"{PODS.path(self._namespace, pod)}/log", query, silence_seconds=_LOG_SILENCE_SECONDS
                )
            except ApiError as error:
                if error.status == 404:
                    raise Refusal(f"the {container}'s pod {pod} is gone, and its log with it") from error
                if error.status == 400:
                    # The server's words, such as: container "controller" is waiting to start: ContainerCreating
                    raise Refusal(f"there is no log yet: {error.message}") from error
                raise
            for line in stream:
                yield line.decode(errors="replace")

    def _unknown(self, name: str) -> str:
        """Return what to say of an experiment that is not in the namespace, with the likeliest cure."""
        here = [item["metadata"]["name"] for item in self._client.list(EXPERIMENTS, self._namespace).items]
        if near := difflib.get_close_matches(name, here, 1):
            hint = f"did you mean {near[0]}?"
        elif elsewhere := self._namespaces_of(name):
            hint = f"give its namespace with -n {' or -n '.join(elsewhere)}"
        elif here:
            hint = f"there are {', '.join(sorted(here)[:10])}"
        else:
            hint = "there is none; -n chooses another namespace"
        return f"namespace {self._namespace} has no experiment {name!r}: {hint}"

    def _namespaces_of(self, name: str) -> list[str]:
        try:
            found = self._client.list(EXPERIMENTS, field_selector=f"metadata.name={name}").items
        except ApiError:
            # Whoever may see one namespace only gets the plainer hint.
            return []
        return sorted(item["metadata"]["namespace"] for item in found)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except ApiUnavailable as error:
            raise NoAnswer(f"the cluster does not answer ({error}): is it up, and the kubeconfig right?") from error
        except ApiError as error:
            if error.status == 404:
                raise Refusal(
                    f"this cluster does not know {names.KIND}: install the operator's chart"
                    " (helm install nas-operator helm/nas-operator)"
                ) from error
            if error.status in (401, 403):
                raise Refusal(f"you may not do this: {error.message}: ask for the permission") from error
            if error.retryable:
                raise NoAnswer(f"the API server is in trouble: {error}: try again") from error
            raise Refusal(f"the API server refuses: {error}") from error


def find_experiment(name: str, namespace: str | None, context: str | None) -> tuple[NASExperiment, Cluster]:
    """Return an experiment, and the cluster that it is on: see :class:`Cluster`.

    Raises:
        Refusal: there is none; the message also hints at a local run of that name.
    """
    try:
        cluster = Cluster(namespace, context)
        return cluster.experiment(name), cluster
    except Refusal as refusal:
        raise Refusal(refusal.message + local_hint(name)) from refusal


def _read(document: dict[str, Any]) -> NASExperiment:
    try:
        return NASExperiment.model_validate_json(json.dumps(document), extra="ignore")
    except ValidationError as error:
        name = document["metadata"]["name"]
        raise Refusal(
            f"{name} does not fit this program ({first_fault(error)}): install the operator's version of it"
        ) from error


def _label(metadata: dict[str, Any], name: str) -> int:
    """Return a pod's number of some kind; 0 where it has none."""
    number = str(metadata["labels"].get(name, ""))
    return int(number) if number.isdecimal() else 0


def _samples(metadata: dict[str, Any]) -> list[str]:
    """Return the samples that a pod trains."""
    return str((metadata.get("annotations") or {}).get(names.ANNOTATION_SAMPLES, "")).split(",")


def readable(line: str) -> str:
    """Return a log line for a terminal: JSON becomes time, level, event and fields; other lines stay, but harmless."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return harmless(line)
    if not isinstance(event, dict) or "event" not in event:
        return harmless(line)
    shown = {harmless(key): harmless(value) if isinstance(value, str) else value for key, value in event.items()}
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    return str(renderer(None, "info", shown))
