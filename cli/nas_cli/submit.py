"""``nas submit``: experiments made on the cluster and, if asked, waited for: one step of somebody's pipeline.

What is said on the way is for people, on standard error. Standard output has the outcome alone.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_api.experiment import UNSEEN, NASExperiment
from nas_api.wording import duration
from nas_cli import display
from nas_cli.cluster import Cluster
from nas_cli.documents import best_architecture, final_document
from nas_cli.errors import NoAnswer, NotThere, Refusal
from nas_cli.manifest import Document, read_documents
from nas_cli.terminal import echo

FAILED, TIMED_OUT, INTERRUPTED = 1, 3, 130
"""Exit codes, beside 0, and 2 for a wrong command line. Pipelines rely on them."""
_POLL_SECONDS = 5.0
# A login may be renewed, and an API server that has just started may not know all permissions yet.
_REFUSED_SECONDS = 300.0
# Differences that a refusal names: with more of them it is another experiment.
_DIFFERENCES_SHOWN = 3


@dataclass
class _Submitted:
    """An experiment on the cluster."""

    cluster: Cluster
    experiment: NASExperiment
    """As it was last seen."""
    said: str = ""
    """What was last told of it."""
    trouble: type[Refusal] | None = None
    """Why it could not be read the last time; None: it could."""
    since: float = 0.0
    """When that began."""

    @property
    def name(self) -> str:
        return self.experiment.metadata.name

    @property
    def outcome(self) -> str | None:
        status = self.experiment.status
        return None if status is None or status.state not in ("Complete", "Failed") else status.state

    def tell(self, words: str) -> None:
        """Print a line about it where it is not what was said last."""
        if words != self.said:
            self.said = words
            echo(f"{self.name}: {' '.join(words.split())}", err=True)


def submit(
    file: Path, *, wait: bool, timeout: float | None, namespace: str | None, context: str | None, output: str
) -> None:
    """Make the experiments of a file; print what has become of them.

    Args:
        file: the manifest; objects of other kinds in it are left alone.
        wait: until each is Complete or Failed.
        timeout: seconds to wait; for ever when None.
        namespace: the manifest's, else the context's, when None.
        context: of the kubeconfig; the current one when None.
        output: ``table`` or ``json``.

    Raises:
        Refusal: the manifest has faults, or an experiment cannot be made or followed.
        SystemExit: with FAILED, TIMED_OUT or INTERRUPTED.
    """
    submitted = [_make(document, namespace, context) for document in _read(file)]
    in_time = True
    if wait:
        with _interruptible(submitted):
            in_time = _follow(submitted, timeout)
    for each in submitted:
        echo(json.dumps(_document(each)) if output == "json" else _text(each))
    if any(each.outcome == "Failed" for each in submitted):
        raise SystemExit(FAILED)
    if not in_time:
        assert timeout is not None
        echo(f"Not over after {duration(timeout)}. {_goes_on(submitted)}", err=True)
        raise SystemExit(TIMED_OUT)


# ---------------------------------------------------------------- making


def _read(file: Path) -> list[Document]:
    try:
        documents = read_documents(file)
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}") from error
    if faults := [f"{file}:{fault.line}: {fault.text}" for document in documents for fault in document.faults]:
        raise Refusal("\n".join(["the manifest has faults:", *faults]))
    ours = [document for document in documents if not document.foreign]
    if not ours:
        raise Refusal(f"{file} holds no NASExperiment")
    for document in documents:
        if document.foreign:
            echo(f"{file}: {document.title} is of another kind: skipped", err=True)
    return ours


def _make(document: Document, namespace: str | None, context: str | None) -> _Submitted:
    own = document.manifest["metadata"].get("namespace")
    if own is not None and namespace is not None and own != namespace:
        raise Refusal(f"{document.title} is for namespace {own}: give that with -n, or none")
    cluster = Cluster(own or namespace, context)
    experiment, new = cluster.create(document.manifest)
    submitted = _Submitted(cluster, experiment)
    where = f"in namespace {experiment.metadata.namespace}"
    if new:
        submitted.tell(f"created {where}")
        return submitted
    name = submitted.name
    assert document.experiment is not None
    here, there = (each.spec.model_dump(by_alias=True) for each in (document.experiment, experiment))
    different = list(_differences(here, there, "spec"))
    if different:
        shown = "; ".join(different[:_DIFFERENCES_SHOWN])
        more = len(different) - _DIFFERENCES_SHOWN
        raise Refusal(
            f"there is another {name} {where} ({shown}{f'; and {more} more' if more > 0 else ''}): give this one"
            f" another name, delete that one (kubectl delete nas {name}), or change it (kubectl apply)"
        )
    submitted.tell(f"there is one with this spec already {where}")
    return submitted


def _differences(here: Any, there: Any, path: str) -> Iterator[str]:
    """Yield in words what differs between two specs as plain values."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from _differences(here.get(key), there.get(key), f"{path}.{key}")
    elif here != there:
        yield f"{path} is {_brief(there)} there, {_brief(here)} here"


def _brief(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- following


@contextmanager
def _interruptible(submitted: list[_Submitted]) -> Iterator[None]:
    """End at Ctrl-C and SIGTERM, by which pipelines cancel a step, with words and a code of their own."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        echo(f"Interrupted. {_goes_on(submitted)}", err=True)
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _goes_on(submitted: list[_Submitted]) -> str:
    words = []
    for each in submitted:
        if each.outcome is None:
            metadata = each.experiment.metadata
            words.append(f"`nas status {metadata.name} -n {metadata.namespace}` shows how {metadata.name} goes on")
    return f"{', '.join(words)}; the same command waits again."


def _follow(submitted: list[_Submitted], timeout: float | None) -> bool:
    """Look at experiments until all are over; return whether they were in time."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        for each in submitted:
            if each.outcome is None:
                _look(each)
        if all(each.outcome is not None for each in submitted):
            return True
        left = _POLL_SECONDS if end is None else min(_POLL_SECONDS, end - time.monotonic())
        if left <= 0:
            return False
        time.sleep(left)


def _look(each: _Submitted) -> None:
    """Read an experiment and tell what is new; trouble of the cluster's is told and waited out."""
    try:
        found = each.cluster.experiment(each.name)
    except NotThere as refusal:
        raise Refusal(f"{each.name} was deleted before its end") from refusal
    except Refusal as refusal:
        now, kind = time.monotonic(), type(refusal)
        news = each.trouble is not kind
        each.trouble, each.since = kind, now if news else each.since
        if kind is not NoAnswer and now - each.since >= _REFUSED_SECONDS:
            raise Refusal(f"{refusal.message}. {_goes_on([each])}") from refusal
        if news:
            each.tell(
                f"{refusal.message}; trying again{'' if kind is NoAnswer else f' for {duration(_REFUSED_SECONDS)}'}"
            )
        return
    if found.metadata.uid != each.experiment.metadata.uid:
        raise Refusal(f"{each.name} was deleted before its end, and there is another of that name")
    each.trouble, each.experiment = None, found
    each.tell(_progress(found))


def _progress(experiment: NASExperiment) -> str:
    status = experiment.status
    if status is None or status.observed_generation == UNSEEN:
        return "the operator has not seen it yet: is it running?"
    metric, telling = experiment.spec.objective.metric, display.telling_condition(status)
    state: str = status.state or "Pending"
    if telling is not None and telling.reason != state:
        state += f" ({telling.reason})"
    # What a search that goes on says of itself is always the same.
    if telling is not None and not (telling.type == "Progressing" and telling.status == "True"):
        return f"{state}: {telling.message}"
    words = [state]
    if status.samples is not None:
        done = status.samples.observed + status.samples.lost
        words.append(f"{done}/{status.samples.budget} samples")
        words += [counts] if (counts := display.counts_text(status.samples)) else []
        words += [] if status.best is None else [f"best {display.best_text(status.best, metric)}"]
        words += [] if status.final is None else [f"final training {display.final_text(status.final, metric)}"]
    return ", ".join(words)


# ---------------------------------------------------------------- the outcome


def _document(each: _Submitted) -> dict[str, object]:
    """Return what is known of an experiment as plain JSON values; null is what is not, or not yet."""
    experiment, status = each.experiment, each.experiment.status
    metadata, metric = experiment.metadata, experiment.spec.objective.metric
    telling = None if status is None else display.telling_condition(status)
    best = None if status is None else status.best
    architecture = None if best is None else best_architecture(experiment.spec, best)
    return {
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "outcome": each.outcome,
        "reason": None if telling is None else telling.reason,
        "message": None if telling is None else telling.message,
        "best": None
        if best is None
        else {
            "sample": best.sample,
            "metricName": metric,
            "metric": float(best.metric),
            "reward": float(best.reward),
            "digest": best.digest,
            "uri": best.uri,
            "architecture": None if architecture is None else architecture.document(),
        },
        "final": None if status is None else final_document(status.final),
        "modelUri": _model_uri(experiment),
    }


def _model_uri(experiment: NASExperiment) -> str | None:
    """Return where the trained network is, a folder; None where a final training of ours has left none."""
    status = experiment.status
    if status is None or status.best is None or status.final is None or status.final.test_metric is None:
        return None
    own = experiment.spec.trainer.dataset.custom is not None
    return None if own else status.best.uri.rpartition("/")[0] + "/"


def _text(each: _Submitted) -> str:
    experiment, status = each.experiment, each.experiment.status
    telling = None if status is None else display.telling_condition(status)
    metric, lines = experiment.spec.objective.metric, [f"{each.name}: {each.outcome or 'not over yet'}"]
    if each.outcome is not None and telling is not None:
        lines[0] += f": {telling.message}"
    if status is not None and status.best is not None:
        lines += [f"best {display.best_text(status.best, metric)}", status.best.uri]
    if status is not None and status.final is not None:
        lines.append(f"final training {display.final_text(status.final, metric)}")
    if (model := _model_uri(experiment)) is not None:
        lines.append(f"model in {model}")
    return "\n  ".join(lines)
