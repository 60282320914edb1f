"""What is wrong with a field of a manifest, in plain words and with the cure where we know one. Pure."""

import difflib
import json
from typing import Any

from pydantic_core import ErrorDetails

_LETTERS = "letters and digits"
SHAPES = {
    r"^[A-Za-z][A-Za-z0-9_]{0,62}$": f"up to 63 {_LETTERS} and _, beginning with a letter",
    r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$": f"up to 63 {_LETTERS} and _ . -, beginning with a letter",
    r"^[A-Za-z0-9_.:/+-]{1,63}$": f"1 to 63 {_LETTERS} and _ . : / + -, which your trainer may translate",
    r"^-?[0-9]{1,12}(\.[0-9]{1,12})?$": 'a decimal such as "-0.001" in quotes, without an exponent',
    r"^[0-9]{1,12}(\.[0-9]{1,12})?$": 'a decimal such as "0.001" in quotes, without sign and exponent',
    r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$": "a duration such as 90s, 15m or 1h30m",
    r"^(s3://[a-z0-9][a-z0-9.-]{1,62}(/.*)?|/.*)$": "s3://BUCKET/KEY or an absolute path",
    r"^/.+$": "an absolute path",
    r"^https?://[A-Za-z0-9.\[\]:_-]+(/.*)?$": "a URL with http:// or https://",
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and hyphens, with a letter or digit at both ends",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "lower-case letters, digits, dots and hyphens, with a letter or digit at both"
    " ends",
    r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$": "3 to 63 lower-case letters, digits, dots and hyphens, with a letter or"
    " digit at both ends",
    r"^[a-z0-9-]+$": "lower-case letters, digits and hyphens",
    r"^[A-Za-z0-9_.=/-]*$": f"{_LETTERS} and _ . = / -",
    r"^[A-Za-z0-9 ._/@:+-]*[A-Za-z0-9]$": f"{_LETTERS}, blanks and . _ / @ : + -, with a letter or digit at the end",
    r"^[-._a-zA-Z0-9]{1,253}$": f"{_LETTERS} and - . _",
}
"""What each pattern of the schema asks for; nobody should have to read it."""


def sentence(detail: ErrorDetails, schema: dict[str, Any], written: str | None) -> str:
    """Return what is wrong.

    Args:
        detail: pydantic's account of it.
        schema: the resource's openAPIV3Schema.
        written: the word as it is in the file; None where it is not known or no single word.
    """
    kind, path, given = detail["type"], detail["loc"], detail["input"]
    here = _schema_at(schema, path)
    shape = SHAPES.get(here.get("pattern", ""))
    meaning = f" ({here['description'].rstrip('.')})" if "description" in here else ""
    fields = ", ".join(here.get("properties", {}))
    match kind:
        case "missing":
            return f"is missing{meaning}"
        case "extra_forbidden":
            known = sorted(_schema_at(schema, path[:-1]).get("properties", {}))
            near = difflib.get_close_matches(str(path[-1]), known, 1)
            return f"there is no such field; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(known)}"
        case "string_type" if given is None and not written:
            return f"is empty{meaning}: give it a value or remove it"
        case "string_type" if given is None or isinstance(given, bool | int | float):
            return _unquoted(given, written or json.dumps(given), "decimal" in (shape or ""))
        case "string_pattern_mismatch" | "string_too_short" | "string_too_long" if shape is not None:
            return f"{_brief(given)} is not valid: it should be {shape}{meaning}"
        case "int_type" | "int_from_float":
            return f"{_brief(given)} is not valid: it should be a whole number{_without_quotes(given)}{meaning}"
        case "bool_type":
            return f"{_brief(given)} is not valid: it should be true or false{meaning}"
        case "model_type" | "dict_type":
            return f"a map is needed here{f', with {fields}' if fields else ''}"
        case "tuple_type" | "list_type":
            return f"a list is needed here{f': write [{_items(given)}]' if isinstance(given, str) else ''}"
        case "too_short" | "too_long":
            least, most = here.get("minItems", 0), here.get("maxItems")
            return f"{detail['ctx']['actual_length']} are not allowed: there should be {least} to {most}{meaning}"
        case "literal_error":
            return f"{_brief(given)} is not valid: use {detail['ctx']['expected']}"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
    words = detail["msg"].removeprefix("Input ")
    return f"{_brief(given)} is not valid: it {words}{meaning}" if words.startswith("should") else words + meaning


def _unquoted(given: bool | float | None, written: str, decimal: bool) -> str:
    quoted = f'write "{written}" in quotes'
    if given is None:
        return f"YAML reads this word as no value at all: {quoted}"
    if isinstance(given, bool):
        return f"YAML reads this word as true or false: {quoted}"
    return f"decimals are strings here: {quoted}" if decimal else f"YAML reads this word as a number: {quoted}"


def _without_quotes(given: object) -> str:
    return " without quotes" if isinstance(given, str) and given.removeprefix("-").isdecimal() else ""


def _items(text: str) -> str:
    return ", ".join(text.split())


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _schema_at(schema: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    for step in path:
        schema = schema.get("items", {}) if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    return schema
