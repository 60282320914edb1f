"""The contract with a user's own trainer: what it finds in its folder, and what it leaves there. Pure.

Its program is started with ``NAS_DIR`` in its environment, reads ``architecture.json`` there, and leaves
``result.json``. Nothing of ours need be in its image; docs/custom-trainer.md is the page for its author.
"""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from nas_api import names
from nas_api.base import MetricName, Model
from nas_api.bounds import LARGEST, LARGEST_COUNT
from nas_api.child import Result, TrainerInput
from nas_api.experiment import TrainerSpec
from nas_api.harmless import harmless

POD_FOLDER = "/nas"
"""``NAS_DIR`` in a pod."""
ARCHITECTURE = "architecture.json"
SETTINGS = "settings.json"
RESULT = "result.json"
CHECKPOINT = "checkpoint"
"""Of a child of several pods, in the first one's folder: brought before the trainer starts, kept as it changes."""
_LONGEST_MESSAGE = 1000


def _number(value: object) -> object:
    """Refuse what pydantic would make a number of: ``true`` would be the best accuracy there is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    cure = "write one such as 0.93, or NaN if training diverged"
    if isinstance(value, str):
        with suppress(ValueError):
            cure = f"write {json.dumps(float(value))} without quotes"
    raise ValueError(f"{_brief(value)} is not a number: {cure}")


Number = Annotated[float, BeforeValidator(_number)]
"""A JSON number, or NaN, Infinity or -Infinity as most programs write them."""


class OwnResult(Model):
    """``$NAS_DIR/result.json``; only ``metrics`` is needed, and fields that are not named here are ignored."""

    version: Literal[1] = 1
    status: Literal["Trained", "Diverged"] = "Trained"
    """Diverged: the training came to nothing because of the architecture; the search learns to avoid it."""
    metrics: Annotated[dict[MetricName, Number], Field(max_length=64)] = {}
    """Numbers by name; the objective's metric must be among them unless the training diverged."""
    history: Annotated[tuple[Number, ...], Field(max_length=10_000)] = ()
    """The objective's metric after each epoch."""
    seconds: Annotated[Number, Field(ge=0, le=LARGEST, allow_inf_nan=False)] | None = None
    """How long the training took; the time between start and end when not set."""
    parameters: Annotated[int, BeforeValidator(_number), Field(ge=0, le=LARGEST_COUNT)] = 0
    """Parameters of the network, for the report and for penalties."""


def settings(document: TrainerInput) -> str:
    """Return ``settings.json``: all that the manifest says of a training, for trainers that want to know."""
    return document.model_dump_json(by_alias=True, exclude={"architecture", "store", "dataset", "stop"})


def environment(document: TrainerInput, folder: str) -> dict[str, str]:
    """Return what a user's trainer finds in its environment beside what is there anyway."""
    return {
        "NAS_DIR": folder,
        "NAS_SAMPLE": str(document.sample),
        "NAS_SEED": str(document.seed),
        "NAS_EPOCHS": str(document.epochs),
        "OMP_NUM_THREADS": str(document.threads),
    }


def command(spec: TrainerSpec) -> tuple[str, ...]:
    """Return the command of a user's trainer: ``trainer.command``, or what the template says; empty for neither."""
    if spec.command is not None:
        return spec.command
    containers: list[dict[str, Any]] = ((spec.template or {}).get("spec") or {}).get("containers") or []
    container = next((item for item in containers if item.get("name") == names.TRAINER_CONTAINER), {})
    return (*(container.get("command") or ()), *(container.get("args") or ()))


def result(document: TrainerInput, data: bytes, *, seconds: float, look: str) -> Result:
    """Return the result object for what a user's trainer has left in ``result.json``.

    Args:
        document: what the trainer was asked.
        data: the file's content.
        seconds: how long it took, for results that do not say so.
        look: where the trainer's own output is, for people.
    """
    try:
        own = OwnResult.model_validate(json.loads(data), extra="ignore")
    except ValidationError as error:
        return invalid(document, _sentence(error.errors(include_url=False)[0], document.metric), look=look)
    except RecursionError:
        return invalid(document, "its JSON is nested too deeply", look=look)
    except ValueError as error:
        # No UTF-8, too.
        return invalid(document, f"this is not JSON: {error}", look=look)
    if own.status == "Trained" and document.metric not in own.metrics:
        there = f"only {', '.join(sorted(own.metrics))}" if own.metrics else "it is empty or missing"
        return invalid(document, f"metrics has no {document.metric!r} (spec.objective.metric): {there}", look=look)
    return Result(
        sample=document.sample,
        attempt=document.attempt,
        architecture=document.architecture.digest,
        status=own.status,
        metrics=own.metrics,
        history=own.history,
        seconds=seconds if own.seconds is None else own.seconds,
        parameters=own.parameters,
        look=look,
    )


def invalid(document: TrainerInput, problem: str, *, look: str) -> Result:
    """Return the result object that says why a trainer's own result cannot be used; ``look`` as in ``result``."""
    tail = f". Its output: {look}"
    return Result(
        sample=document.sample,
        attempt=document.attempt,
        architecture=document.architecture.digest,
        status="Invalid",
        metrics={},
        message=harmless(f"{RESULT}: {problem}")[: _LONGEST_MESSAGE - len(tail)].rstrip(".") + tail,
    )


def _sentence(detail: ErrorDetails, metric: str) -> str:
    """Return what is wrong with a field of a result and what to write instead."""
    path = list(detail["loc"])
    match detail["type"]:
        case "model_type":
            words = f'an object is needed, such as {{"metrics": {{"{metric}": 0.93}}}}, not {_brief(detail["input"])}'
        case "dict_type":
            words = f'an object is needed, such as {{"{metric}": 0.93}}, not {_brief(detail["input"])}'
        case "tuple_type":
            words = f"a list of numbers is needed, not {_brief(detail['input'])}"
        case "too_long":
            words = f"there are more than {detail['ctx']['max_length']:,}"
        case "string_pattern_mismatch" | "string_unicode":
            words = f"{_brief(detail['input'])} is not a valid name: use up to 63 letters, digits, _, . and -"
            words += ", beginning with a letter"
            # The path ends with the name itself, and a mark that it is one.
            path = path[:-2]
        case "value_error":
            words = detail["msg"].removeprefix("Value error, ")
        case _:
            words = f"{_brief(detail['input'])} is not valid: {detail['msg'].replace('Input', 'it', 1)}"
    return f"{place}: {words}" if (place := ".".join(map(str, path))) else words


def _brief(value: object) -> str:
    # A list or an object may be nested beyond reason.
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
