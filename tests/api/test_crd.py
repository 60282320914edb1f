"""The checked-in CustomResourceDefinition is what the models generate, and is documented throughout."""

from typing import Any

import yaml
from cluster_fixtures import CRD_FILE

from nas_api.crd import custom_resource_definition, manifest, openapi_schema


def test_the_checked_in_definition_is_current() -> None:
    assert CRD_FILE.read_text() == manifest(), "run: python -m nas_api.crd > crds/nas-operator.io_nasexperiments.yaml"


def test_what_is_written_is_what_is_meant() -> None:
    assert yaml.safe_load(manifest()) == custom_resource_definition()


def undescribed(node: dict[str, Any], path: str) -> list[str]:
    out = []
    for name, child in node.get("properties", {}).items():
        if "description" not in child:
            out.append(f"{path}.{name}")
        out += undescribed(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        out += undescribed(node["items"], f"{path}[]")
    return out


def test_every_field_has_a_description() -> None:
    schema = openapi_schema()["properties"]
    assert undescribed(schema["spec"], "spec") + undescribed(schema["status"], "status") == []


def unbounded(node: dict[str, Any], path: str) -> list[str]:
    out = [path] if node.get("type") == "array" and "maxItems" not in node else []
    for name, child in node.get("properties", {}).items():
        out += unbounded(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        out += unbounded(node["items"], f"{path}[]")
    return out


def test_every_list_has_a_bound() -> None:
    assert unbounded(openapi_schema(), "") == []


def kinds(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(kinds(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(kinds(child) for child in node))
    return set()


def test_there_are_no_floats() -> None:
    assert "number" not in kinds(openapi_schema())
