"""What can be wrong with a store, each with the condition reason that tells the user.

StoreError
├── BucketNotFound
├── CredentialsRefused
├── StoreUnreachable      (retryable: it may pass by itself)
└── StoreUnsuitable

TooLarge stands apart: it is an answer.
"""

from typing import ClassVar

from nas_api.reasons import Reason


class TooLarge(Exception):
    """An object has more bytes than the reader takes; nothing is wrong with the store."""


class StoreError(Exception):
    """The store cannot be used; the message names the field of the manifest and the cure."""

    reason: ClassVar[Reason] = Reason.STORE_UNREACHABLE
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed a moment later without anybody's help."""


class BucketNotFound(StoreError):
    """The server has no such bucket."""

    reason = Reason.BUCKET_NOT_FOUND


class CredentialsRefused(StoreError):
    """There are no credentials, the server does not accept them, or they may not do this."""

    reason = Reason.CREDENTIALS_REFUSED


class StoreUnreachable(StoreError):
    """No answer, or one that says that the server is in trouble."""

    reason = Reason.STORE_UNREACHABLE
    retryable = True


class StoreUnsuitable(StoreError):
    """The server does not honour conditional writes, so that it cannot hold a log."""

    reason = Reason.STORE_UNSUITABLE
