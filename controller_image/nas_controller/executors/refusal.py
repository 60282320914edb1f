"""Why the API server does not take a child's Job, and whether it may have taken it all the same. Pure."""

from nas_api.reasons import Reason
from nas_controller.executors.diagnosis import Diagnosis
from nas_kube.errors import ApiError, KubeError

# What comes and goes by itself is told once it has stayed for so many tries, which is some seconds.
_PATIENT_TRIES = 3


def refusal(error: KubeError, field: str, tries: int) -> Diagnosis | None:
    """Return what people are told, and in which words; None: nothing yet, for it may be over by the next try.

    Args:
        error: the answer to a POST, or that there was none.
        field: where the template is from which the Job was built.
        tries: how many POSTs of this Job have failed, this one included.
    """
    if isinstance(error, ApiError) and not _is_elsewhere(error):
        if error.quota:
            return Reason.QUOTA_EXCEEDED, error.message
        if error.status == 403:
            return Reason.NOT_PERMITTED, error.message
        return Reason.INVALID_TEMPLATE, f"{field}: {error.message}"
    return (Reason.API_SERVER_TROUBLE, str(error)) if tries >= _PATIENT_TRIES else None


def may_be_taken(error: KubeError) -> bool:
    """Return whether the Job may be there although this was the answer to its POST."""
    if isinstance(error, ApiError):
        # A webhook is asked before anything is kept.
        return error.status >= 500 and "failed calling webhook" not in error.message
    return True


def _is_elsewhere(error: ApiError) -> bool:
    """Return whether the request is not to blame: the server, what it asks, our token, or the namespace is."""
    return error.retryable or error.status in (401, 404, 409)
