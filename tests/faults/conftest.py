"""Faults are made on the end-to-end tests' cluster."""

from e2e.conftest import experiment, place, world

__all__ = ["experiment", "place", "world"]
