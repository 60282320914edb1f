"""Rules in CEL that the schema carries, so that the API server itself refuses what no single field can."""

from typing import Any

UNIQUE = "self.all(x, self.exists_one(y, y == x))"
"""The options of a list differ."""


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extra for CEL rules given as (rule, message)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


def at_most_one(*fields: str) -> tuple[str, str]:
    """Return the rule that at most one of the fields is set, with its message."""
    return _count(fields) + " <= 1", f"set at most one of {', '.join(fields)}"


def exactly_one(*fields: str) -> tuple[str, str]:
    """Return the rule that exactly one of the fields is set, with its message."""
    return _count(fields) + " == 1", f"set exactly one of {', '.join(fields)}"


def _count(fields: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"has(self.{field})" for field in fields) + "].filter(set, set).size()"
