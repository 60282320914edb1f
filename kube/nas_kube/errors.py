"""What can go wrong with a call.

KubeError
├── KubeConfigError      neither a kubeconfig nor a pod's service account was found
├── ApiUnavailable       no answer: connection, TLS or time-out; always worth another try
└── ApiError             the API server's refusal, from the Status it answered
"""

from dataclasses import dataclass

from nas_kube.decoding import decode


class KubeError(Exception):
    """The base of everything that this package raises for a call."""

    retryable: bool = False
    """Whether the same call may succeed later without anybody changing it."""


class KubeConfigError(KubeError):
    """There is no usable kubeconfig and no service account of a pod."""


class ApiUnavailable(KubeError):
    """The API server did not answer: the call may or may not have taken effect."""

    retryable = True


@dataclass(frozen=True)
class Cause:
    """One field that the API server objects to."""

    field: str
    reason: str
    message: str


class ApiError(KubeError):
    """The API server answered with a failure Status."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        causes: tuple[Cause, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """The HTTP status code."""
        self.reason = reason
        """One word, for example NotFound, AlreadyExists, Conflict, Invalid, Forbidden, Expired."""
        self.message = message
        self.causes = causes
        self.retry_after = retry_after
        """Seconds that the server asks to wait, where it says so."""

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Whether the server is overloaded or broken, rather than the request."""
        return self.status == 429 or self.status >= 500

    @property
    def quota(self) -> bool:
        """Whether a ResourceQuota has no room: the request is right and may succeed later."""
        return self.status == 403 and "exceeded quota" in self.message

    @classmethod
    def from_response(cls, status: int, body: bytes, retry_after: str | None = None) -> "ApiError":
        """Return the error that a response stands for; a body that is no Status is quoted."""
        seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
        try:
            document = decode(body)
        except ValueError:
            document = None
        if not isinstance(document, dict) or document.get("kind") != "Status":
            return cls(status, "Unknown", body.decode(errors="replace")[:1000].strip(), (), seconds)
        return cls.from_status(document, status, seconds)

    @classmethod
    def from_status(cls, document: dict[str, object], status: int = 0, seconds: float | None = None) -> "ApiError":
        """Return the error that a Status object stands for."""
        details = document.get("details")
        items = details.get("causes") if isinstance(details, dict) else None
        causes = tuple(
            Cause(str(item.get("field", "")), str(item.get("reason", "")), str(item.get("message", "")))
            for item in items or ()
        )
        code = document.get("code")
        return cls(
            code if isinstance(code, int) else status,
            str(document.get("reason") or "Unknown"),
            str(document.get("message") or ""),
            causes,
            seconds,
        )
