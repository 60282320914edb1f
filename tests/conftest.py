"""Fixtures that tests of several parts share."""

pytest_plugins = ["cluster_fixtures", "s3_server"]
