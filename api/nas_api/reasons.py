"""Every condition type and reason with its cure. Users script on these names: they are part of the API."""

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """The names of batch/v1, for kubectl wait, Argo and Kubeflow; then those of kstatus, for Flux, kpt and Helm."""

    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    READY = "Ready"
    # These two are there only while they are true.
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    # There only where spec.tracking is set; nothing else depends on it.
    TRACKING = "Tracking"


class Reason(StrEnum):
    """Why a condition is as it is."""

    # Progressing
    CONTROLLER_STARTING = "ControllerStarting"
    SEARCHING = "Searching"
    RESUMED = "Resumed"
    FINAL_TRAINING = "FinalTraining"
    # Progressing=False, and it goes on by itself once cured
    INVALID_SPEC = "InvalidSpec"
    INVALID_TEMPLATE = "InvalidTemplate"
    UNREADABLE = "Unreadable"
    NAME_TAKEN = "NameTaken"
    NOT_PERMITTED = "NotPermitted"
    API_SERVER_TROUBLE = "ApiServerTrouble"
    ENDPOINT_REFUSED = "EndpointRefused"
    QUOTA_EXCEEDED = "QuotaExceeded"
    QUEUED = "Queued"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONFIG_MISSING = "ConfigMissing"
    UNSCHEDULABLE = "Unschedulable"
    NODE_UNREACHABLE = "NodeUnreachable"
    CHILDREN_DISRUPTED = "ChildrenDisrupted"
    CONTROLLER_FAILED = "ControllerFailed"
    BUCKET_NOT_FOUND = "BucketNotFound"
    CREDENTIALS_REFUSED = "CredentialsRefused"
    STORE_UNREACHABLE = "StoreUnreachable"
    STORE_UNSUITABLE = "StoreUnsuitable"
    LOG_DAMAGED = "LogDamaged"
    LOG_TAMPERED = "LogTampered"
    DATASET_UNAVAILABLE = "DatasetUnavailable"
    NO_CUDA = "NoCuda"
    WAITING_FOR_EXPERIMENT = "WaitingForExperiment"
    # Suspended
    SUSPENDED_BY_USER = "SuspendedByUser"
    NOT_SUSPENDED = "NotSuspended"
    # Complete
    SAMPLES_SPENT = "SamplesSpent"
    DURATION_SPENT = "DurationSpent"
    NOT_FINISHED = "NotFinished"
    # Failed
    CONSECUTIVE_FAILURES = "ConsecutiveFailures"
    SEARCH_CHANGED = "SearchChanged"
    EXPERIMENT_UNSUITABLE = "ExperimentUnsuitable"
    NOT_FAILED = "NotFailed"
    # Tracking
    FOLLOWER_STARTING = "FollowerStarting"
    FOLLOWING = "Following"
    CAUGHT_UP = "CaughtUp"
    FOLLOWER_FAILED = "FollowerFailed"


@dataclass(frozen=True)
class Explanation:
    """What a reason means and what to do."""

    meaning: str
    cure: str


EXPLANATIONS: dict[Reason, Explanation] = {
    Reason.CONTROLLER_STARTING: Explanation("The controller's pod is starting.", "Nothing to do."),
    Reason.SEARCHING: Explanation("Children are being trained.", "Nothing to do."),
    Reason.RESUMED: Explanation("The search goes on after a suspension.", "Nothing to do."),
    Reason.FINAL_TRAINING: Explanation(
        "The search has ended; its best architectures are in final training.",
        "Nothing to do.",
    ),
    Reason.INVALID_SPEC: Explanation(
        "The spec does not fit this version of the operator; this can happen after a downgrade.",
        "Correct the field that the message names, or upgrade the operator.",
    ),
    Reason.INVALID_TEMPLATE: Explanation(
        "A pod built from a template of the spec was refused, by the API server or by the list of what templates may"
        " ask for; the message names and quotes it.",
        "Correct the template; the search goes on by itself.",
    ),
    Reason.UNREADABLE: Explanation(
        "The operator cannot make a plan of the experiment; the message says where it gave up.",
        "Correct the spec, most likely a template in it; if nothing is wrong with it, report what the message says.",
    ),
    Reason.NAME_TAKEN: Explanation(
        "An object that the experiment needs exists and is somebody else's; the message names it.",
        "Delete it, or give the experiment another name; the search goes on by itself.",
    ),
    Reason.NOT_PERMITTED: Explanation(
        "The operator or the controller lacks a permission in this namespace.",
        "Install the chart's RBAC for this namespace; the message names the verb and the resource.",
    ),
    Reason.API_SERVER_TROUBLE: Explanation(
        "The API server cannot do what the operator or the controller asks of it: it is overloaded or does not answer,"
        " a webhook that it asks does not, or it does not accept the token; the message quotes it.",
        "Repair what the message names; it is tried again by itself.",
    ),
    Reason.ENDPOINT_REFUSED: Explanation(
        "The operator's installation does not allow the endpoint of the store or of the tracker; the message says why.",
        "Correct the endpoint, or ask an administrator of the operator.",
    ),
    Reason.QUOTA_EXCEEDED: Explanation(
        "A ResourceQuota leaves no room for another pod.",
        "Wait, raise the quota, or lower parallelism; the search goes on by itself.",
    ),
    Reason.QUEUED: Explanation(
        "All children wait in Kueue's queue; the message quotes Kueue. While some run, the search goes on, and the"
        " message of Progressing says how many wait.",
        "Wait, or correct trainer.queue or the queue's quota; the search goes on by itself.",
    ),
    Reason.IMAGE_PULL_FAILED: Explanation(
        "A node cannot pull the image.",
        "Correct the image or its pull secret; the search goes on by itself.",
    ),
    Reason.CONFIG_MISSING: Explanation(
        "A Secret or ConfigMap that a pod needs, or a key in it, is missing.",
        "Create it in the experiment's namespace; the pod starts by itself.",
    ),
    Reason.UNSCHEDULABLE: Explanation(
        "No node fits the pod; the message quotes the scheduler.",
        "Add nodes, or correct requests, nodeSelector or tolerations in the template.",
    ),
    Reason.NODE_UNREACHABLE: Explanation(
        "No child runs any more, and pods that did are not ready although they have not ended, or their nodes"
        " neither begin nor end them; the message names them and their nodes. Five minutes after their deadline, or"
        " after five minutes without a beginning or an end, they are given up, and launched again.",
        "Repair the node, or delete it if it is gone for good: that frees its pods at once.",
    ),
    Reason.CHILDREN_DISRUPTED: Explanation(
        "A child was made to end again and again before it could work: by its node, by somebody who deletes it, or by"
        " a preemption; the message says how, and on which node. It is tried again, ever less often.",
        "Look at that node, and cordon or repair it; the search goes on by itself.",
    ),
    Reason.CONTROLLER_FAILED: Explanation(
        "The controller keeps ending unexpectedly; it is started again after growing pauses.",
        "Look at the pod's log; report what it says.",
    ),
    Reason.BUCKET_NOT_FOUND: Explanation(
        "The S3 server has no such bucket.",
        "Create the bucket or correct storage.s3.bucket.",
    ),
    Reason.CREDENTIALS_REFUSED: Explanation(
        "The S3 server refused the credentials, or they do not allow reading and writing the bucket.",
        "Correct the Secret named in storage.s3.credentialsSecret or the role's policy.",
    ),
    Reason.STORE_UNREACHABLE: Explanation(
        "The S3 server does not answer, is in trouble, or finds a clock wrong; the message says which.",
        "Correct storage.s3.endpoint, or repair the network, the server or the clock; the search goes on by itself.",
    ),
    Reason.STORE_UNSUITABLE: Explanation(
        "The S3 server does not honour If-None-Match, so two controllers could write the same log.",
        "Use a store that does: AWS S3, MinIO, Ceph, versitygw.",
    ),
    Reason.LOG_DAMAGED: Explanation(
        "An object of the search's log is missing or was changed.",
        "Restore it from the bucket's object versions; nothing is trained again in the meantime.",
    ),
    Reason.LOG_TAMPERED: Explanation(
        "The search's log is not the one whose newest object status.log names: somebody has rewritten it, or the bucket"
        " was set back.",
        "Restore the object that the message names from the bucket's object versions; the search goes on by itself. If"
        " the bucket was set back on purpose, remove status.log.",
    ),
    Reason.DATASET_UNAVAILABLE: Explanation(
        "The trainer cannot read the dataset; the message quotes it.",
        "Put the dataset where trainer.dataset says, or correct it; the search goes on by itself.",
    ),
    Reason.NO_CUDA: Explanation(
        "trainer.template asks for a GPU, and torch cannot use one in the trainer's pod; the message says why.",
        "Use a trainer image with CUDA (`make images CUDA=1`), or repair the node's driver; the search goes on by"
        " itself.",
    ),
    Reason.WAITING_FOR_EXPERIMENT: Explanation(
        "The experiment that searcher.warmStart or searchSpace.fixed names has left no log, or has not ended.",
        "Wait for it; the search will begin by itself. If the name is wrong, create a new experiment.",
    ),
    Reason.SUSPENDED_BY_USER: Explanation("spec.suspend is true.", "Set it to false to go on."),
    Reason.NOT_SUSPENDED: Explanation("spec.suspend is false.", "Nothing to do."),
    Reason.SAMPLES_SPENT: Explanation("budget.samples architectures have been tried.", "Nothing to do."),
    Reason.DURATION_SPENT: Explanation("budget.duration has elapsed.", "Nothing to do."),
    Reason.NOT_FINISHED: Explanation("The search has not ended.", "Nothing to do."),
    Reason.CONSECUTIVE_FAILURES: Explanation(
        "budget.consecutiveFailures samples in a row were lost; the message says why the last one was lost.",
        "Look at the children's logs, correct the cause, and create a new experiment.",
    ),
    Reason.SEARCH_CHANGED: Explanation(
        "The log belongs to another search: its space, searcher or objective differs from the manifest's.",
        "Create a new experiment, or use another prefix.",
    ),
    Reason.EXPERIMENT_UNSUITABLE: Explanation(
        "The experiment named in searcher.warmStart or searchSpace.fixed cannot be used here: it searched another"
        " space, needs another dataset or is damaged, or several have that name; the message says which.",
        "Create a new experiment with what the message asks for.",
    ),
    Reason.NOT_FAILED: Explanation("The experiment has not failed.", "Nothing to do."),
    Reason.FOLLOWER_STARTING: Explanation("The follower's pod is starting.", "Nothing to do."),
    Reason.FOLLOWING: Explanation("The tracker is told of the search as it goes on.", "Nothing to do."),
    Reason.CAUGHT_UP: Explanation("The search has ended, and the tracker has all of it.", "Nothing to do."),
    Reason.FOLLOWER_FAILED: Explanation(
        "The follower ended before it was done; the message has its last words. It is started again after growing"
        " pauses of at most five minutes, and goes on where it was.",
        "The search is not affected, and the tracker gets all of it in the end.",
    ),
}


def queue_words(waiting: int, of: int, queue: str) -> str:
    """Return how many children wait in which queue, as both the status's problem and its conditions say it.

    Args:
        waiting: children that wait.
        of: children in flight.
        queue: the queue's name; empty where their Jobs are suspended without one.
    """
    verb = "waits" if waiting == 1 else "wait"
    return f"{waiting} of {of} {verb} in queue {queue}" if queue else f"{waiting} of {of} {verb}: Jobs are suspended"


class LostReason(StrEnum):
    """Why a sample was given up."""

    INVALID_ARCHITECTURE = "InvalidArchitecture"
    INVALID_RESULT = "InvalidResult"
    OUT_OF_MEMORY = "OutOfMemory"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    TRAINER_FAILED = "TrainerFailed"
