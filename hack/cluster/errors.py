"""The one error this tool raises on purpose: its text is all that the user is shown."""


class ClusterError(Exception):
    """Something the user can act on. Printed as one message, without a traceback, with exit status 1."""
