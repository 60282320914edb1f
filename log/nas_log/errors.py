"""Why a log cannot be read or written, apart from the store's own errors.

LogError
├── Fenced      another process writes the log now
└── LogDamaged  the log cannot be read: condition LogDamaged
    └── LogTampered  the log is not the one that the experiment's status has: condition LogTampered
"""


class LogError(Exception):
    """The log is not as its reader or writer needs it; the message says why and what to do."""


class Fenced(LogError):
    """Another process has written the log's next object: this one must write nothing any more."""


class LogDamaged(LogError):
    """An object of the log is missing, was changed, or is from a newer version; the message names it."""


class LogTampered(LogDamaged):
    """The log is well-formed, and not the one whose head the experiment's status has; the message names the object."""
