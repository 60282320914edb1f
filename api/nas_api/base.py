"""The pydantic base of every model in the contract, and the few scalar types they share."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Frozen, camelCase on the wire, unknown fields refused; attribute docstrings become descriptions.

    A reader that must survive a newer schema (a running controller after an upgrade of the CRD) calls
    ``model_validate(document, extra="ignore")``.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=True,
        ser_json_inf_nan="strings",
    )


# Kubernetes discourages floats in APIs (they do not survive round trips): decimals travel as strings.
Decimal = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,12})?$", max_length=26)]
PositiveDecimal = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?$", max_length=25)]

_DURATION = re.compile(r"^(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?$")

# The subset of Go's duration that people write by hand.
Duration = Annotated[
    str,
    StringConstraints(pattern=r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$", min_length=2, max_length=20),
]
# At most 63 characters.
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
# The same, where it is the value of a label.
DnsLabelValue = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=63)
]


def is_none(value: object) -> bool:
    """Return whether a field has no value: as its ``exclude_if`` it leaves no trace in documents then."""
    return value is None


def duration(text: str) -> timedelta:
    """Return the time that a ``Duration`` such as ``1h30m`` stands for.

    Raises:
        ValueError: the text is no duration.
    """
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration such as 72h, 1h30m or 45s")
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)
