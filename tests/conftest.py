"""Fixtures that tests of several parts share."""

pytest_plugins = ["s3_server"]
