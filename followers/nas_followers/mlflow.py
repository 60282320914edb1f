"""MLflow as a destination: its client, and what keeps runs single although MLflow creates a run as often as it is
asked.

A run is looked up by its tags before it is created. Where two followers were at work at the same time, or where the
answer to a creation was lost, a sample may have several: then the one with the smallest identifier stays, whoever
looks, so that two who clear up never remove both. A run that somebody has deleted in MLflow is not made again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from nas_api import model_formats, names
from nas_api.follower import FollowerInput
from nas_api.handover import Provenance
from nas_api.harmless import harmless
from nas_followers import mlflow_runs
from nas_followers.errors import FollowerError
from nas_followers.following import Ended
from nas_followers.mlflow_runs import PARENT, SAMPLE, UID, Run
from nas_log.best import Best
from nas_log.reader import Facts
from nas_report.page import drawing

_PAGE = 1000
_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
_MODEL = "model"
_DRAWING = "architecture.html"
# Of best/, what is no model: those go where a registry looks for them.
_NO_DOCUMENTS = frozenset(map(names.file, (names.BEST_ONNX, names.BEST_WEIGHTS)))


@dataclass(frozen=True, order=True)
class _Known:
    """A run that is there; the smallest identifier is the first."""

    id: str
    ended: bool
    parent: str


class Mlflow:
    """See :class:`nas_followers.following.Destination`. Credentials come from the environment, as MLflow's client finds
    them."""

    def __init__(self, asked: FollowerInput) -> None:
        """Prepare a client; no request is sent."""
        self._asked, self._spec = asked, asked.mlflow
        self._name = asked.mlflow.experiment or asked.experiment
        self._client = MlflowClient(tracking_uri=self._spec.uri, registry_uri=self._spec.uri)
        self._experiment = ""
        self._parent = ""
        self._runs: dict[int, list[_Known]] = {}
        self._removed: frozenset[int] = frozenset()
        """Samples whose runs were all deleted: that was somebody's wish."""

    def look_up(self, facts: Facts) -> None:
        """See :class:`nas_followers.following.Destination`."""
        with self._translated():
            self._experiment = self._experiment_id()
            active, deleted = self._find()
            self._runs = {number: sorted(runs) for number, runs in active.items() if number is not None}
            self._removed = frozenset(number for number in deleted if number is not None and number not in active)
            run = mlflow_runs.search_run(facts, self._asked.namespace, self._asked.experiment, self._asked.uid)
            parents = sorted(active.get(None, ()))
            self._parent = parents[0].id if parents else self._create(run)
            # Again, for it may have been made and then nothing more.
            self._write(self._parent, run)
            for double in parents[1:]:
                self._client.delete_run(double.id)

    def hand_over(self, facts: Facts, samples: Sequence[Ended]) -> None:
        """See :class:`nas_followers.following.Destination`."""
        with self._translated():
            for each in samples:
                number = each.sample.number
                found = self._runs.get(number, [])
                if found or number not in self._removed:
                    self._runs[number] = [self._one(facts, each, found)]
            course = mlflow_runs.course(facts, tuple(each.sample for each in samples))
            self._client.log_batch(self._parent, metrics=_metrics(course))

    def finish(self, facts: Facts, best: Best | None) -> None:
        """See :class:`nas_followers.following.Destination`."""
        provenance = None
        with self._translated():
            if best is not None:
                if (document := best.files.get(names.file(names.BEST_PROVENANCE))) is not None:
                    provenance = Provenance.model_validate_json(document, extra="ignore")
                model = _trained(best)
                self._upload(_files(best, model))
                if model is not None:
                    self._register(model.provenance)
            end = mlflow_runs.search_end(facts, provenance)
            self._write(self._parent, end)
            self._client.set_terminated(self._parent, end.status, end.end)

    def _one(self, facts: Facts, ended: Ended, found: Sequence[_Known]) -> _Known:
        """See to it that a sample has one run, and that it is whole and below the experiment's."""
        first = found[0] if found else None
        if first is None or not first.ended:
            run = mlflow_runs.sample_run(facts, ended.sample, ended.curve(), self._asked.uid)
            if first is None:
                first = _Known(self._create(run, {PARENT: self._parent}), False, self._parent)
            self._write(first.id, replace(run, tags={}))
            self._client.set_terminated(first.id, run.status, run.end)
        if first.parent != self._parent:
            self._client.set_tag(first.id, PARENT, self._parent)
        for double in found[1:]:
            self._client.delete_run(double.id)
        return _Known(first.id, True, self._parent)

    def _experiment_id(self) -> str:
        for _ in range(2):
            found = self._client.get_experiment_by_name(self._name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise FollowerError(
                    f"experiment {self._name!r} is deleted in MLflow at {self._spec.uri}: restore it there, or name"
                    " another in spec.tracking.mlflow.experiment"
                )
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(self._name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Somebody else was faster.
        raise FollowerError(
            f"MLflow at {self._spec.uri} says that experiment {self._name!r} exists, and does not find it"
        )

    def _find(self) -> tuple[dict[int | None, list[_Known]], set[int | None]]:
        """Return the runs that are there by sample (None: the experiment's own), and of which some were deleted."""
        active: dict[int | None, list[_Known]] = defaultdict(list)
        deleted: set[int | None] = set()
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{UID}` = '{self._asked.uid}'",
                run_view_type=ViewType.ALL,
                max_results=_PAGE,
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                number = int(tags[SAMPLE]) if SAMPLE in tags else None
                if run.info.lifecycle_stage == "deleted":
                    deleted.add(number)
                else:
                    known = _Known(run.info.run_id, run.info.status in _ENDED, tags.get(PARENT, ""))
                    active[number].append(known)
            token = page.token
            if not token:
                return active, deleted

    def _create(self, run: Run, further: Mapping[str, str] = {}) -> str:
        made = self._client.create_run(self._experiment, run.begin, {**run.tags, **further}, run.name)
        return str(made.info.run_id)

    def _write(self, identifier: str, run: Run) -> None:
        self._client.log_batch(
            identifier,
            metrics=_metrics(run.metrics),
            params=[Param(key, value) for key, value in run.parameters.items()],
            tags=[RunTag(key, value) for key, value in run.tags.items()],
        )

    def _upload(self, files: Mapping[str, bytes]) -> None:
        """Add files to the experiment's run; those of the same name are replaced."""
        artifacts = self._client.get_run(self._parent).info.artifact_uri
        if urlsplit(artifacts).scheme in ("", "file"):
            raise FollowerError(
                f"MLflow at {self._spec.uri} keeps artifacts in a folder that clients are to write ({artifacts}): start"
                " it with --artifacts-destination, so that it takes them itself"
            )
        with TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self._client.log_artifacts(self._parent, folder)

    def _register(self, provenance: Provenance) -> None:
        """Make the uploaded model a version of the registered one, once."""
        name = mlflow_runs.model_name(self._name)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{UID}` = '{self._asked.uid}'")
        # One of a run that was a double has lost what it was made of.
        versions = sorted((each.run_id != self._parent, int(each.version)) for each in found)
        for of_another, version in versions:
            if of_another or version != versions[0][1]:
                self._client.delete_model_version(name, str(version))
        if versions and not versions[0][0]:
            return
        metric = provenance.test_metric if provenance.test_metric is not None else provenance.validation_metric
        self._client.create_model_version(
            name,
            f"{self._client.get_run(self._parent).info.artifact_uri}/{_MODEL}",
            run_id=self._parent,
            tags={
                UID: self._asked.uid,
                SAMPLE: str(provenance.sample),
                "nas.namespace": provenance.namespace,
                "nas.experiment": provenance.experiment,
                "nas.digest": provenance.digest,
                provenance.metric_name: str(metric),
            },
            description=f"The best architecture of {provenance.namespace}/{provenance.experiment}, sample"
            f" {provenance.sample}; {_DRAWING} beside the model draws it.",
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what the client raises into a sentence."""
        try:
            yield
        except MlflowException as error:
            self._refused(error)
        except requests.RequestException as error:
            # Artifacts are sent past the client's own errors.
            self._unreachable(error)

    def _refused(self, error: MlflowException) -> NoReturn:
        uri, words = self._spec.uri, _words(error.message)
        if isinstance(error.__context__, requests.RequestException):
            self._unreachable(error.__context__)
        status = error.get_http_status_code()
        if status == 401:
            secret = self._spec.credentials_secret
            cure = (
                "name a Secret in spec.tracking.mlflow.credentialsSecret"
                if secret is None
                else f"correct Secret {secret.name}"
            )
            raise FollowerError(f"MLflow at {uri} refuses the credentials (401): {cure}") from error
        if status == 403:
            raise FollowerError(
                f"MLflow at {uri} does not allow it (403: {words}): give the user the right to it"
            ) from error
        if status == 404 and error.error_code == "ENDPOINT_NOT_FOUND":
            raise FollowerError(f"{uri} is no MLflow server ({words}): correct spec.tracking.mlflow.uri") from error
        raise FollowerError(
            f"MLflow at {uri} did not do what it was asked ({words}): look at the server, or correct"
            " spec.tracking.mlflow.uri"
        ) from error

    def _unreachable(self, error: requests.RequestException) -> NoReturn:
        uri, words = self._spec.uri, _words(error)
        if isinstance(error, requests.exceptions.SSLError):
            raise FollowerError(
                f"{uri} presents a certificate that is not trusted ({words}): mount its authority with"
                " spec.tracking.template and name the file in MLFLOW_TRACKING_SERVER_CERT_PATH"
            ) from error
        if isinstance(error, requests.exceptions.RetryError):
            raise FollowerError(f"MLflow at {uri} answers with errors again and again ({words}): look at it") from error
        raise FollowerError(
            f"MLflow at {uri} does not answer ({words}): correct spec.tracking.mlflow.uri, or repair the network or the"
            " server"
        ) from error


def _trained(best: Best) -> model_formats.TrainedModel | None:
    try:
        return model_formats.TrainedModel.of(best.files)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        # Only weights that nothing vouches for.
        raise FollowerError(f"the best network is not handed over: its weights are none: {error}") from error


def _files(best: Best, model: model_formats.TrainedModel | None) -> dict[str, bytes]:
    """Return what is uploaded, by path: the drawing, what says how the network is built, and the trained one."""
    picture = drawing(best.architecture).encode()
    files = {_DRAWING: picture}
    files |= {f"best/{name}": data for name, data in best.files.items() if name not in _NO_DOCUMENTS}
    if model is not None:
        files |= {f"{_MODEL}/{name}": data for name, data in model_formats.mlflow(model).items()}
        files[f"{_MODEL}/{_DRAWING}"] = picture
    return files


def _words(said: object) -> str:
    """Return what somebody else's server or library has said, on one line."""
    return " ".join(harmless(str(said)).split())[:500]


def _metrics(metrics: Sequence[mlflow_runs.Metric]) -> list[Any]:
    return [Metric(each.key, each.value, each.milliseconds, each.step) for each in metrics]
