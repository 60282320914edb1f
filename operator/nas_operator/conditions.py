"""How an experiment stands, as the status says it and as events tell it. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from nas_api import names
from nas_api.reasons import EXPLANATIONS, ConditionType, Reason
from nas_kube import reading
from nas_kube.reading import conditions

Object = dict[str, Any]
State = Literal["Pending", "Searching", "Waiting", "Suspended", "Complete", "Failed"]

_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_LONGEST_MESSAGE = 4000
_LONGEST_NOTE = 1000


@dataclass(frozen=True)
class Condition:
    """One condition's status, with a word for programs and a sentence for people."""

    status: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Standing:
    """Where an experiment stands."""

    state: State
    progressing: Condition
    suspended: Condition
    complete: Condition
    failed: Condition
    tracking: Condition | None = None
    """None where no tracker is named."""


@dataclass(frozen=True)
class Event:
    """Something worth telling people once. ``key`` makes it one event, whoever tells it and however often."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str
    key: str


def explain(reason: Reason, detail: str = "") -> str:
    """Return the sentence for people: the cause (``detail``, or the reason's meaning) and the cure."""
    explanation = EXPLANATIONS[reason]
    cause = (detail or explanation.meaning).strip()
    if explanation.cure == "Nothing to do.":
        return cause[:_LONGEST_MESSAGE]
    if not cause.endswith((".", "!", "?")):
        cause += "."
    return f"{cause[: _LONGEST_MESSAGE - len(explanation.cure)]} {explanation.cure}"


def condition(status: bool, reason: Reason, detail: str = "") -> Condition:
    """Return a condition with the sentence that belongs to its reason."""
    return Condition(status, reason.value, explain(reason, detail))


def told(status: bool, reason: str, message: str) -> Condition:
    """Return a condition in somebody else's words; a reason that the API server would refuse is replaced."""
    known = reason if _REASON.fullmatch(reason) else Reason.CONTROLLER_FAILED.value
    return Condition(status, known, message[:_LONGEST_MESSAGE])


def standing(
    state: State,
    progressing: Condition,
    *,
    suspended: Condition | None = None,
    complete: Condition | None = None,
    failed: Condition | None = None,
) -> Standing:
    """Return a standing whose other conditions say that nothing of the kind has happened."""
    return Standing(
        state=state,
        progressing=progressing,
        suspended=suspended or condition(False, Reason.NOT_SUSPENDED),
        complete=complete or condition(False, Reason.NOT_FINISHED),
        failed=failed or condition(False, Reason.NOT_FAILED),
    )


def status(raw: Mapping[str, Any], stands: Standing, pod: str | None, now: datetime) -> Object:
    """Return the operator's part of the status: all of it, because what is left out of an apply is given up.

    Args:
        raw: the experiment as it is.
        stands: where it stands.
        pod: the newest controller pod's name.
        now: written where a condition's status changed.
    """
    generation = raw["metadata"].get("generation", 0)
    before = conditions(raw)
    ours = []
    for kind, said in _said(stands):
        text = str(said.status)
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == text else None
        ours.append(
            {
                "type": kind.value,
                "status": text,
                "reason": said.reason,
                "message": said.message,
                "observedGeneration": generation,
                "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    document: Object = {"observedGeneration": generation, "conditions": ours, "state": stands.state}
    if pod is not None:
        document["controller"] = {"pod": pod}
    return document


def _said(stands: Standing) -> Iterator[tuple[ConditionType, Condition]]:
    """Yield the conditions of batch/v1, and what follows from them by kstatus's rules.

    Ready is always there, and true at the end only; Reconciling and Stalled are there only while they are true. What
    waits for a cure is neither: nobody works on it, and it has not failed.
    """
    yield ConditionType.PROGRESSING, stands.progressing
    yield ConditionType.SUSPENDED, stands.suspended
    yield ConditionType.COMPLETE, stands.complete
    yield ConditionType.FAILED, stands.failed
    yield ConditionType.READY, replace(stands.progressing, status=stands.complete.status)
    if stands.progressing.status:
        yield ConditionType.RECONCILING, stands.progressing
    if stands.failed.status:
        yield ConditionType.STALLED, stands.failed
    if stands.tracking is not None:
        yield ConditionType.TRACKING, stands.tracking


def differs(raw: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Return whether the operator's part of the status is not yet what ``document`` says."""
    current = reading.status(raw)
    mine = {key: current[key] for key in ("observedGeneration", "conditions", "state", "controller") if key in current}
    # By type: their order is no difference.
    return {**mine, "conditions": conditions(raw)} != {**document, "conditions": conditions({"status": document})}


def events(raw: Mapping[str, Any], stands: Standing) -> tuple[Event, ...]:
    """Return what is worth telling people about the step from the written status to this standing."""
    current = reading.status(raw)
    before = conditions(raw)
    generation = raw["metadata"].get("generation", 0)
    out: list[Event] = []

    def changed(kind: ConditionType, now: bool) -> bool:
        return str(before.get(kind, {}).get("status", "False")) != str(now)

    if stands.complete.status and changed(ConditionType.COMPLETE, True):
        note = stands.complete.message.removesuffix(".") + "." + _best(current)
        out.append(Event("Normal", "Complete", "Finish", note, "complete"))
    if stands.failed.status and changed(ConditionType.FAILED, True):
        out.append(Event("Warning", stands.failed.reason, "Fail", stands.failed.message, "failed"))
    if changed(ConditionType.SUSPENDED, stands.suspended.status):
        if stands.suspended.status:
            out.append(Event("Normal", "Suspended", "Suspend", stands.suspended.message, f"suspended-{generation}"))
        else:
            out.append(Event("Normal", "Resumed", "Resume", "The search goes on.", f"resumed-{generation}"))
    # It may have waited first, for a node say; what waits later on has begun before.
    fresh = current.get("state") in (None, "Pending", "Waiting") and not (current.get("samples") or {}).get("observed")
    if stands.state == "Searching" and fresh:
        out.append(Event("Normal", "Searching", "Start", "The search has started.", "searching"))
    if (
        stands.state == "Waiting"
        and before.get(ConditionType.PROGRESSING, {}).get("reason") != stands.progressing.reason
    ):
        reason = stands.progressing.reason
        out.append(Event("Warning", reason, "Search", stands.progressing.message, f"problem-{reason}"))
    tracking = stands.tracking
    if (
        tracking is not None
        and tracking.reason == Reason.FOLLOWER_FAILED
        and before.get(ConditionType.TRACKING, {}).get("reason") != tracking.reason
    ):
        out.append(Event("Warning", tracking.reason, "Track", tracking.message, f"tracking-{generation}"))
    return tuple(out)


def event_object(raw: Mapping[str, Any], event: Event, reporter: str, now: datetime) -> Object:
    """Return the API object of an event; its name follows from experiment and key, so it exists once."""
    metadata = raw["metadata"]
    key = re.sub(r"[^a-z0-9-]", "-", event.key.lower())
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{names.uid8(metadata['uid'])}.{key}"[:253],
            "namespace": metadata["namespace"],
        },
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{names.GROUP}/operator",
        "reportingInstance": reporter[:128],
        "type": event.type,
        "reason": event.reason[:128],
        "action": event.action,
        "note": event.note[:_LONGEST_NOTE],
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }


def _best(current: Mapping[str, Any]) -> str:
    best = current.get("best")
    return f" Best: {best['metric']} by sample {best['sample']}: {best['architecture']}" if best else ""
