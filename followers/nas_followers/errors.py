"""Why a follower ends before it is done; the message is what people read."""


class FollowerError(Exception):
    """It cannot go on; one sentence with the cause and, where there is one, the field to correct."""


class Superseded(FollowerError):
    """Another follower of the same name has taken over: this one must hand nothing over any more."""
