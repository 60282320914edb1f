"""The operator's settings, read once from the environment."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

_PREFIX = "NAS_"

Image = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Port = Annotated[int, Field(ge=1, le=65535)]


class SettingsError(Exception):
    """The environment does not make sense; the message names each variable."""


class Settings(BaseModel):
    """What the chart decides. Each field is the environment variable ``NAS_<FIELD>``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    controller_image: Image
    trainer_image: Image
    follower_image: Image
    watch_namespaces: tuple[str, ...] = ()
    """Separated by commas; empty for all namespaces."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Of the controller pod; Kubernetes' own default when not set."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets beside the experiment, for the controller pod; separated by commas."""
    health_port: Port = 8080
    metrics_port: Port | None = None
    """Where the operator serves its metrics; when not set it counts nothing."""
    controller_metrics_port: Port | None = None
    """The same of controllers that are started from now on."""
    templates_unrestricted: bool = False
    """Whether templates may ask for anything, and ServiceAccounts be named: the chart's admission policy has asked the
    author, or an administrator wants it so."""
    require_tls: bool = False
    """Whether a store must be reached by https."""
    allow_link_local: bool = False
    """Whether a store or a tracker may be at a link-local address, where clouds hand out credentials."""
    network_policies: bool = False
    """Whether each experiment gets NetworkPolicies."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    """Experiments looked at at the same time."""

    @field_validator("watch_namespaces", "image_pull_secrets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("templates_unrestricted", "require_tls", "allow_link_local", "network_policies", mode="before")
    @classmethod
    def _blank_is_false(cls, value: Any) -> Any:
        return value or False

    @field_validator("image_pull_policy", "metrics_port", "controller_metrics_port", mode="before")
    @classmethod
    def _blank(cls, value: Any) -> Any:
        return value or None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings that the environment gives.

        Raises:
            SettingsError: a variable is missing or wrong.
        """
        names = {_PREFIX + field.upper(): field for field in cls.model_fields}
        try:
            return cls(**{field: environment[name] for name, field in names.items() if name in environment})
        except ValidationError as error:
            problems = [f"{_PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
            raise SettingsError("; ".join(problems)) from error
