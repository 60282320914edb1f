"""Manifests: YAML with line numbers, checked by the models and by the very CEL rules that the API server runs.

The rules are evaluated from the generated schema, so there is one source of truth: what passes here passes
there, and a rule added to the models is checked here without another line.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cel
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nas_api import names, template_bounds
from nas_api.authority import PARTS, claims
from nas_api.crd import openapi_schema
from nas_api.experiment import NASExperiment
from nas_api.pod_template import overlay
from nas_cli.errors import Refusal
from nas_cli.kubectl_yaml import KubectlLoader
from nas_cli.sentences import sentence

_Path = tuple[str | int, ...]
_ENTITLED = (
    "a cluster takes that from an author who may create pods in the namespace, or where the operator is installed with"
    " templates.unrestricted"
)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; ``line`` counts from 1."""

    line: int
    place: str
    """Path of the field as in the manifest, for example ``spec.budget.samples``; empty for the whole file."""
    message: str
    """What is wrong and, where it is not plain from that, what to do."""

    @property
    def text(self) -> str:
        """Place and message."""
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(frozen=True)
class Document:
    """One document of a file: an experiment, or the faults that keep it from being one."""

    title: str
    """Kind and name, for people."""
    experiment: NASExperiment | None
    faults: tuple[Fault, ...]
    remarks: tuple[Fault, ...] = ()
    """What is right, and is refused where its author may not have it."""
    foreign: bool = False
    """Whether it is another kind of object, which is not looked at."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """An experiment as it is written, with all that is the API server's to read; empty for everything else."""


def read_documents(path: Path, *, local: bool = False, words: type[yaml.SafeLoader] = KubectlLoader) -> list[Document]:
    """Return the documents of a YAML file in their order; empty ones are left out.

    Args:
        path: the file.
        local: whether they are only to be run here, so that ``spec.storage`` may be missing.
        words: what words without quotes stand for.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        return [Document(path.name, None, (Fault(1, "", f"this is not UTF-8 text ({error.reason})"),))]
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=words) if node is not None]
        loader = words("")
        values = [loader.construct_document(node) for node in nodes]
        return [
            _document(node, _with_storage(value) if local else value) for node, value in zip(nodes, values, strict=True)
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        fault = Fault(mark.line + 1 if mark else 1, "", f"this is not YAML: {problem}")
        return [Document(path.name, None, (fault,))]
    except yaml.YAMLError as error:
        return [Document(path.name, None, (Fault(1, "", f"this is not YAML: {error}"),))]
    except RecursionError:
        return [Document(path.name, None, (Fault(1, "", "this is not a manifest: it is nested without end"),))]


def read_experiment(path: Path, warn: Callable[[str], None] = lambda _: None) -> NASExperiment:
    """Return the one experiment of a file, to be run on this machine: it need not say where a cluster keeps things.

    Programs in Python write `y` and `1e-3` without quotes where they mean these words. Here they have what they mean,
    and are warned of kubectl.

    Args:
        path: the file.
        warn: is told, for people, what of it a cluster would not take.

    Raises:
        Refusal: there is not exactly one, or it has faults; the message names each with its line.
    """
    try:
        documents = [document for document in read_documents(path, local=True) if not document.foreign]
        faults = [f"{path}:{fault.line}: {fault.text}" for document in documents for fault in document.faults]
        if faults:
            documents = [each for each in read_documents(path, local=True, words=yaml.SafeLoader) if not each.foreign]
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from error
    if faults and any(document.faults for document in documents):
        raise Refusal("\n".join(["the manifest has faults:", *faults]))
    if faults:
        warn("\n".join(["kubectl will not accept this manifest the way it is run here:", *faults]))
    experiments = [document.experiment for document in documents if document.experiment is not None]
    if len(experiments) != 1:
        raise Refusal(f"{path} holds {len(experiments)} experiments: give a file with one")
    return experiments[0]


def _with_storage(value: Any) -> Any:
    """Return a manifest with a storage that nobody will use, where it has none."""
    if isinstance(value, dict) and isinstance(value.get("spec"), dict):
        return {**value, "spec": {"storage": {"s3": {"bucket": "a-folder-instead"}}, **value["spec"]}}
    return value


def _document(node: yaml.Node, value: Any) -> Document:
    line = node.start_mark.line + 1
    if not isinstance(value, dict):
        return Document("document", None, (Fault(line, "", "a manifest is a map with apiVersion, kind, ..."),))
    metadata = value.get("metadata")
    title = f"{value.get('kind', 'document')}/{metadata.get('name', '') if isinstance(metadata, dict) else ''}"
    # A document without a kind, or with another case, was surely meant to be one of ours.
    if str(value.get("kind", names.KIND)).lower() != names.KIND.lower():
        return Document(title, None, (), foreign=True)
    experiment, faults = check(value, node)
    located = [Fault(_line(node, path), _place(path), message) for path, message in [*_repeated(node), *faults]]
    if located or experiment is None:
        return Document(title, None, tuple(sorted(located, key=lambda fault: fault.line)))
    remarks = [
        Fault(_line(node, claim.path), claim.field, f"{claim.what}: {_ENTITLED}")
        for claim in claims(experiment.spec, *PARTS)
    ]
    return Document(title, experiment, (), remarks=tuple(remarks), manifest=value)


def check(value: dict[str, Any], node: yaml.Node | None = None) -> tuple[NASExperiment | None, list[tuple[_Path, str]]]:
    """Return the experiment that a manifest describes, or what is wrong with it, by path.

    Args:
        value: the manifest.
        node: what it was read from, so that messages can show words as they are written there.
    """
    schema = openapi_schema()
    try:
        # From JSON and strict, as the API server is: "6" is no number.
        experiment = NASExperiment.model_validate_json(_json(value), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        paths = [_own_path(detail, value) for detail in details]
        found = [
            (path, sentence(detail, schema, _written(node, path)), detail["type"])
            for path, detail in zip(paths, details, strict=True)
        ]
        # What is too short only because its items are wrong is as long as it ought to be.
        beyond = {path[:length] for path in paths for length in range(len(path))}
        faults = [
            each
            for path, words, kind in found
            if not (kind == "too_short" and path in beyond)
            for each in (_placed(path, words, value) if kind == "value_error" else [(path, words)])
        ]
        # A rule about a field that is wrong already, or about the map it is in, would only confuse.
        broken = {path for path, _ in faults} | {path for path, _, _ in found}
        broken |= {path[:-1] for (path, _, _), detail in zip(found, details, strict=True) if _is_value(detail)}
        rules = _rule_faults(schema, _defaulted(schema, value), ())
        faults += [(path, message) for path, message in rules if path not in broken]
        return None, faults
    faults = [*_name_faults(experiment), *_rule_faults(schema, _defaulted(schema, value), ())]
    return experiment, faults or list(_template_faults(experiment))


def _json(value: Any) -> str:
    # Without its own check for circles a manifest that contains itself ends like any that is nested too deeply.
    return json.dumps(value, default=str, check_circular=False)


# ---------------------------------------------------------------- rules


def _defaulted(schema: dict[str, Any], value: Any) -> Any:
    """Return a value with the schema's defaults filled in, as the API server does before it runs rules."""
    if isinstance(value, dict) and "properties" in schema:
        out = {key: child for key, child in value.items() if child is not None}
        for key, child in schema["properties"].items():
            if key not in out and "default" in child:
                out[key] = child["default"]
            if key in out:
                out[key] = _defaulted(child, out[key])
        return out
    if isinstance(value, list) and "items" in schema:
        return [_defaulted(schema["items"], item) for item in value]
    return value


def _rule_faults(schema: dict[str, Any], value: Any, path: _Path) -> Iterator[tuple[_Path, str]]:
    for validation in schema.get("x-kubernetes-validations", ()):
        # Rules on changes have nothing to say about a new object.
        if "oldSelf" in validation["rule"]:
            continue
        try:
            holds = cel.evaluate(validation["rule"], {"self": value})
        except (KeyError, ValueError, TypeError, RuntimeError):
            # Something is missing or of the wrong shape for the rule, which the models have reported already.
            continue
        if not holds:
            yield path, validation["message"]
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key in value:
                yield from _rule_faults(child, value[key], (*path, key))
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _rule_faults(schema["items"], item, (*path, index))


def _name_faults(experiment: NASExperiment) -> Iterator[tuple[_Path, str]]:
    # The one rule that is the API server's own for all objects, and so in no schema. Dots have a rule of ours.
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", experiment.metadata.name):
        yield ("metadata", "name"), "use lower-case letters, digits and hyphens, with a letter or digit at both ends"


def _template_faults(experiment: NASExperiment) -> Iterator[tuple[_Path, str]]:
    spec, final, tracking = experiment.spec, experiment.spec.final_training, experiment.spec.tracking
    for place, container, template in (
        ("trainer", names.TRAINER_CONTAINER, spec.trainer.template),
        ("finalTraining", names.TRAINER_CONTAINER, None if final is None else final.template),
        ("controller", names.CONTROLLER_CONTAINER, spec.controller.template),
        ("tracking", names.FOLLOWER_CONTAINER, None if tracking is None else tracking.template),
    ):
        try:
            template_bounds.check(template or {})
            overlay({"spec": {"containers": [{"name": container}]}}, template or {})
        except ValueError as error:
            yield ("spec", place, "template"), str(error)
    for claim in claims(spec, *PARTS):
        if not claim.granted:
            yield claim.path, claim.what


# ---------------------------------------------------------------- places


def _is_value(detail: ErrorDetails) -> bool:
    """Return whether an error is about a value that is there and ought to be."""
    return detail["type"] not in ("missing", "extra_forbidden")


def _own_path(detail: ErrorDetails, value: Any) -> _Path:
    """Return the part of an error's location that is in the manifest: pydantic adds names of its own."""
    path: list[str | int] = []
    for step in detail["loc"]:
        if isinstance(value, dict) and isinstance(step, str):
            path.append(step)
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path.append(step)
            value = value[step]
    return tuple(path)


# How a model's own check names the place of a fault below it, for example decisions[1].when.in: ...
_PLACE = re.compile(r"(?P<place>[A-Za-z]\w*(\[\d+\])?(\.[A-Za-z]\w*(\[\d+\])?)*):? (?P<rest>.*)", re.DOTALL)


def _placed(path: _Path, words: str, value: Any) -> Iterator[tuple[_Path, str]]:
    """Yield each fault of a sentence, by the place that it begins with where it does."""
    node = _value_at(value, path)
    for line in words.split("\n"):
        match = _PLACE.match(line)
        steps = [] if match is None else re.findall(r"\w+", match["place"])
        if match is not None and isinstance(node, dict) and steps[0] in node:
            yield (*path, *(int(step) if step.isdigit() else step for step in steps)), match["rest"]
        else:
            yield path, line


def _value_at(value: Any, path: _Path) -> Any:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        else:
            value = value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None
    return value


def _place(path: _Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _line(node: yaml.Node, path: _Path) -> int:
    """Return the line of a field, or of the innermost thing around it that exists."""
    *_, (line, _) = _along(node, path)
    return line


def _written(node: yaml.Node | None, path: _Path) -> str | None:
    """Return how a word is written in the file; None where there is no single word."""
    if node is None:
        return None
    steps = list(_along(node, path))
    innermost = steps[-1][1]
    return innermost.value if len(steps) == len(path) + 1 and isinstance(innermost, yaml.ScalarNode) else None


def _along(node: yaml.Node, path: _Path) -> Iterator[tuple[int, yaml.Node]]:
    """Yield line and node of each thing along a path, from the outermost one to the last that exists."""
    yield node.start_mark.line + 1, node
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, child) for key, child in node.value if key.value == step]
            if not found:
                return
            key, node = found[-1]
            yield key.start_mark.line + 1, node
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            yield node.start_mark.line + 1, node
        else:
            return


def _repeated(node: yaml.Node, path: _Path = ()) -> Iterator[tuple[_Path, str]]:
    """Report keys that occur twice in a map: YAML readers keep the last one, kubectl refuses them."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if key.value in seen:
                yield (*path, key.value), "is written twice in this map"
            seen.add(key.value)
            yield from _repeated(child, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _repeated(child, (*path, index))
