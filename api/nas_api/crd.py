"""The CustomResourceDefinition, generated from the models; ``python -m nas_api.crd`` prints it."""

import json
from typing import Any

from nas_api import names
from nas_api.experiment import UNSEEN, NASExperiment

# What JSON schema says and a structural schema may not.
_DROPPED = frozenset({"title", "additionalProperties", "$defs", "discriminator"})


def _structural(node: Any, definitions: dict[str, Any]) -> Any:
    """Return the structural-schema form of a pydantic JSON schema node: references inlined, nulls gone."""
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if reference := node.pop("$ref", None):
        target = definitions[reference.removeprefix("#/$defs/")]
        rules = [*target.get("x-kubernetes-validations", []), *node.get("x-kubernetes-validations", [])]
        node = {**target, **node}
        if rules:
            node["x-kubernetes-validations"] = rules
        return _structural(node, definitions)
    if options := node.pop("anyOf", None):
        (option,) = [option for option in options if option.get("type") != "null"]
        return _structural({**option, **node}, definitions)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "additionalProperties" and isinstance(value, dict):
            out[key] = _structural(value, definitions)
        elif key in _DROPPED or (key == "default" and value is None):
            continue
        elif key == "const":
            out["enum"] = [value]
        elif key == "properties":
            out[key] = {name: _structural(child, definitions) for name, child in value.items()}
        elif key == "items":
            out[key] = _structural(value, definitions)
        elif key == "default":
            out[key] = _without_nulls(value)
        elif key == "description":
            out[key] = " ".join(value.split())
        else:
            out[key] = value
    if out.get("x-kubernetes-preserve-unknown-fields"):
        out.pop("additionalProperties", None)
    return out


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value


def openapi_schema() -> dict[str, Any]:
    """Return the openAPIV3Schema of the resource."""
    schema = NASExperiment.model_json_schema(by_alias=True)
    root: dict[str, Any] = _structural(schema, schema["$defs"])
    properties = root["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    root["required"] = ["spec"]
    # Defaults in the status would be written by whoever applies first and then owned by nobody.
    _drop_defaults(properties["status"])
    # But for one: by kstatus's rules what has no status is done, and so would be what the operator has not seen yet.
    properties["status"]["default"] = {"observedGeneration": UNSEEN}
    return root


def _drop_defaults(node: dict[str, Any]) -> None:
    node.pop("default", None)
    for child in node.get("properties", {}).values():
        _drop_defaults(child)
    if isinstance(node.get("items"), dict):
        _drop_defaults(node["items"])


def custom_resource_definition() -> dict[str, Any]:
    """Return the whole CustomResourceDefinition."""
    columns = [
        ("State", "string", ".status.state", "What the experiment is doing.", 0),
        ("Samples", "string", ".status.progress", "Samples done out of the budget.", 0),
        ("Running", "integer", ".status.samples.running", "Samples in flight.", 0),
        ("Queued", "integer", ".status.samples.queued", "Of these, samples that wait in a queue.", 1),
        ("Best", "string", ".status.best.metric", "The best metric so far.", 0),
        ("Age", "date", ".metadata.creationTimestamp", "Time since creation.", 0),
        ("Lost", "integer", ".status.samples.lost", "Samples given up.", 1),
        ("Reason", "string", '.status.conditions[?(@.type=="Progressing")].reason', "Why it is in this state.", 1),
        ("Architecture", "string", ".status.best.architecture", "The best architecture so far.", 1),
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": "nasexperiment",
                "shortNames": ["nas"],
                "categories": ["all", "ml"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {
                            "name": name,
                            "type": kind,
                            "jsonPath": path,
                            "description": text,
                            "priority": priority,
                        }
                        for name, kind, path, text, priority in columns
                    ],
                    "schema": {"openAPIV3Schema": openapi_schema()},
                }
            ],
        },
    }


def manifest() -> str:
    """Return the definition as the text of ``crds/``: YAML, or JSON (which is YAML) where pyyaml is missing."""
    definition = custom_resource_definition()
    try:
        import yaml
    except ImportError:  # This package needs only pydantic.
        return json.dumps(definition, indent=2) + "\n"
    head = "# Generated by `python -m nas_api.crd`; change api/nas_api/experiment.py instead.\n"
    text: str = yaml.safe_dump(definition, sort_keys=False, width=110, allow_unicode=True)
    return head + text


if __name__ == "__main__":
    print(manifest(), end="")
