"""MLflow's client and server in one, in memory, for interleavings that a real server cannot be brought to.

What it does with runs is what the real one does, as ``tests/platform/test_mlflow.py`` sees: it creates a run as often
as it is asked, takes the same metric again without a trace, refuses another value of a parameter, and writes no deleted
run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, INVALID_STATE, RESOURCE_ALREADY_EXISTS


@dataclass
class FakeRun:
    """A run as the server keeps it."""

    id: str
    name: str
    begin: int
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: set[tuple[str, float, int, int]] = field(default_factory=set)
    status: str = "RUNNING"
    end: int | None = None
    deleted: bool = False
    artifacts: dict[str, bytes] = field(default_factory=dict)

    def seen(self) -> Any:
        """Return it as the client shows it."""
        stage = "deleted" if self.deleted else "active"
        info = SimpleNamespace(
            run_id=self.id, status=self.status, lifecycle_stage=stage, artifact_uri=f"mlflow-artifacts:/1/{self.id}"
        )
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(self.tags)))


class Page(list[Any]):
    """A page of an answer."""

    token: str | None = None


@dataclass
class FakeServer:
    """What all clients share."""

    name_of: Callable[[int], str]
    """The identifier of the n-th run: MLflow's are random, so any order may come."""
    runs: dict[str, FakeRun] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    versions: dict[str, dict[int, Any]] = field(default_factory=dict)

    def active(self, key: str = "") -> list[FakeRun]:
        """Return the runs that are not deleted; those that have a tag, if one is named."""
        return [run for run in self.runs.values() if not run.deleted and (not key or key in run.tags)]


class FakeClient:
    """One process's client. ``around`` is called before and after each call with its name, and may raise or play on."""

    def __init__(self, server: FakeServer, around: Callable[[str], None]) -> None:
        self._server, self._around = server, around

    def get_experiment_by_name(self, name: str) -> Any:
        with _Call(self._around, "get_experiment_by_name"):
            if name not in self._server.experiments:
                return None
            return SimpleNamespace(experiment_id=str(self._server.experiments.index(name)), lifecycle_stage="active")

    def create_experiment(self, name: str) -> str:
        with _Call(self._around, "create_experiment"):
            if name in self._server.experiments:
                raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
            self._server.experiments.append(name)
            return str(self._server.experiments.index(name))

    def search_runs(self, experiments: list[str], words: str, **_: Any) -> Page:
        with _Call(self._around, "search_runs"):
            uid = words.split("'")[1]
            return Page([run.seen() for run in self._server.runs.values() if run.tags["nas.uid"] == uid])

    def create_run(self, experiment: str, begin: int, tags: dict[str, str], name: str) -> Any:
        with _Call(self._around, "create_run"):
            run = FakeRun(self._server.name_of(len(self._server.runs)), name, begin, dict(tags))
            assert run.id not in self._server.runs
            self._server.runs[run.id] = run
            return run.seen()

    def log_batch(
        self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        with _Call(self._around, "log_batch"):
            found = self._active(run)
            for each in params:
                if found.params.setdefault(each.key, each.value) != each.value:
                    raise MlflowException(f"{each.key} was {found.params[each.key]}", INVALID_PARAMETER_VALUE)
            found.metrics |= {(each.key, each.value, each.timestamp, each.step) for each in metrics}
            found.tags |= {each.key: each.value for each in tags}

    def set_terminated(self, run: str, status: str, end: int) -> None:
        with _Call(self._around, "set_terminated"):
            found = self._active(run)
            found.status, found.end = status, end

    def set_tag(self, run: str, key: str, value: str) -> None:
        with _Call(self._around, "set_tag"):
            self._active(run).tags[key] = value

    def delete_run(self, run: str) -> None:
        with _Call(self._around, "delete_run"):
            self._server.runs[run].deleted = True

    def get_run(self, run: str) -> Any:
        with _Call(self._around, "get_run"):
            return self._server.runs[run].seen()

    def log_artifacts(self, run: str, folder: str) -> None:
        with _Call(self._around, "log_artifacts"):
            self._active(run).artifacts["folder"] = b""

    def create_registered_model(self, name: str) -> None:
        with _Call(self._around, "create_registered_model"):
            if name in self._server.versions:
                raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
            self._server.versions[name] = {}

    def search_model_versions(self, words: str) -> list[Any]:
        with _Call(self._around, "search_model_versions"):
            _, name, _, uid, _ = words.split("'")
            return [each for each in self._server.versions[name].values() if each.tags["nas.uid"] == uid]

    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str], description: str) -> None:
        with _Call(self._around, "create_model_version"):
            version = max(self._server.versions[name], default=0) + 1
            self._server.versions[name][version] = SimpleNamespace(
                version=str(version), source=source, run_id=run_id, tags=tags, description=description
            )

    def delete_model_version(self, name: str, version: str) -> None:
        with _Call(self._around, "delete_model_version"):
            self._server.versions[name].pop(int(version), None)

    def _active(self, run: str) -> FakeRun:
        found = self._server.runs[run]
        if found.deleted:
            raise MlflowException(f"The run {run} must be in the 'active' state.", INVALID_STATE)
        return found


class _Call:
    def __init__(self, around: Callable[[str], None], name: str) -> None:
        self._around, self._name = around, name

    def __enter__(self) -> None:
        self._around(f"before {self._name}")

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._around(f"after {self._name}")
