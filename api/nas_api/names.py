"""Every label, Kubernetes object name and storage key, in one place, because people script on them."""

import re

GROUP = "nas-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "NASExperiment"
PLURAL = "nasexperiments"

LABEL_EXPERIMENT = f"{GROUP}/experiment"
LABEL_EXPERIMENT_UID = f"{GROUP}/experiment-uid"
LABEL_ROLE = f"{GROUP}/role"
LABEL_LAUNCH = f"{GROUP}/launch"
LABEL_SAMPLE = f"{GROUP}/sample"
LABEL_CHILDREN = f"{GROUP}/children"
LABEL_ATTEMPT = f"{GROUP}/attempt"
# Kueue's: on a Job, the LocalQueue that it waits in and its WorkloadPriorityClass; on a Workload, whose it is.
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY_CLASS = "kueue.x-k8s.io/priority-class"
LABEL_JOB_UID = "kueue.x-k8s.io/job-uid"
ROLE_CONTROLLER = "controller"
ROLE_TRAINER = "trainer"
ROLE_FOLLOWER = "follower"

# Kubernetes' own, on each pod of a Job of several: its number there, from 0. Label and annotation alike.
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"

# On a child's Job and pod: the numbers of all samples that it trains, with commas.
ANNOTATION_SAMPLES = f"{GROUP}/samples"

# On a controller pod: how many controllers before it ended soon after their start; on it and on a follower's Job and
# pod: what it was built from.
ANNOTATION_QUICK_FAILURES = f"{GROUP}/quick-failures"
ANNOTATION_INPUTS = f"{GROUP}/inputs"

FIELD_MANAGER_OPERATOR = "nas-operator"
FIELD_MANAGER_CONTROLLER = "nas-controller"

CONTROLLER_CLUSTER_ROLE = "nas-operator-controller"
TRAINER_CONTAINER = "trainer"
CONTROLLER_CONTAINER = "controller"
FOLLOWER_CONTAINER = "follower"

# A child Job is <experiment>-<uid8>-<launch> and must fit a label: 63 = 40 + 1 + 8 + 1 + 13.
MAX_EXPERIMENT_NAME = 40

CREDENTIAL_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_CREDENTIAL_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
ENV_TRAINER_INPUT = "NAS_INPUT"
ENV_FOLLOWER_INPUT = "NAS_FOLLOWER_INPUT"
ENV_UNRESTRICTED = "NAS_TEMPLATES_UNRESTRICTED"
"""Of operator and controllers: ``true`` where templates may ask for more than stands on the list."""
ENV_CONTROLLER_IMAGE = "NAS_CONTROLLER_IMAGE"
"""Of controllers: their own image, which a pod cannot look up."""
ENV_GPU = "NAS_GPU"
"""By which name the trainer's container asks for a GPU; without one in reach the trainer ends. Empty: a CPU will do."""

# Where the pods of one child meet, on the first one's address: torch's default.
RENDEZVOUS_PORT = 29500


def uid8(uid: str) -> str:
    """Return the first eight characters of an object's uid: enough to tell namesakes apart."""
    return uid[:8]


def child_job(experiment: str, uid: str, launch: int) -> str:
    """Return the name of the Job of one launch: a repeated POST answers 409 and is adopted."""
    return f"{experiment}-{uid8(uid)}-{launch}"


def trainer_service(experiment: str, uid: str) -> str:
    """Return the name of the Service that gives the pods of children of several pods their host names.

    Names of Services begin with a letter, which an experiment's need not.
    """
    return f"nas-{experiment}-{uid8(uid)}"


def controller_pod(experiment: str, uid: str, index: int) -> str:
    """Return the name of the index-th controller pod of an experiment, counted from 1."""
    return f"{experiment}-{uid8(uid)}-controller-{index}"


def controller_pod_index(name: str, experiment: str, uid: str) -> int | None:
    """Return the index of an experiment's controller pod of this name; None where the name is not one that we give."""
    tail = name.rpartition("-")[2]
    # No experiment has had a billion controllers, whatever a name says: the next one's name must stay one.
    if re.fullmatch("[1-9][0-9]{0,8}", tail) is None:
        return None
    index = int(tail)
    return index if name == controller_pod(experiment, uid, index) else None


def controller_service_account(experiment: str, uid: str) -> str:
    """Return the name of the ServiceAccount, of the Role and of the RoleBinding that the operator makes."""
    return f"{experiment}-{uid8(uid)}-controller"


def controller_own_binding(experiment: str, uid: str) -> str:
    """Return the name of the RoleBinding to the Role for this one experiment."""
    return f"{controller_service_account(experiment, uid)}-own"


def network_policy(experiment: str, uid: str, role: str) -> str:
    """Return the name of the NetworkPolicy of an experiment's pods of a role."""
    return f"{experiment}-{uid8(uid)}-{role}"


def follower_job(experiment: str, uid: str) -> str:
    """Return the name of the Job that follows an experiment."""
    return f"{experiment}-{uid8(uid)}-follower"


def labels(experiment: str, uid: str, role: str) -> dict[str, str]:
    """Return the labels that everything belonging to an experiment carries."""
    return {
        "app.kubernetes.io/name": "nas-operator",
        "app.kubernetes.io/managed-by": "nas-operator",
        "app.kubernetes.io/component": role,
        LABEL_EXPERIMENT: experiment,
        LABEL_EXPERIMENT_UID: uid,
        LABEL_ROLE: role,
    }


def experiment_prefix(prefix: str, namespace: str, experiment: str, uid: str) -> str:
    """Return the key prefix of one experiment, ending in a slash; the keys below are relative to it."""
    head = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return f"{head}{namespace}/{experiment}/{uid}/"


LOG_PREFIX = "log/"
SNAPSHOT_PREFIX = "snapshots/"
SAMPLES_PREFIX = "samples/"
BEST_ARCHITECTURE = "best/architecture.json"
BEST_MODULE = "best/network.py"
BEST_VOCABULARY = "best/vocabulary.json"
BEST_PREPROCESSING = "best/preprocessing.json"
BEST_ONNX = "best/network.onnx"
BEST_WEIGHTS = "best/weights.safetensors"
BEST_PROVENANCE = "best/provenance.json"
REPORT = "report/report.html"
FOLLOWERS_PREFIX = "followers/"

# What `nas run` leaves beside a log in a folder: the manifest, with the run's uid.
RUN_MANIFEST = "experiment.json"

# Written once by whoever checks that the store honours conditional writes; its content means nothing.
PROBE = "probe"


def file(key: str) -> str:
    """Return the file name of a key: what stands behind its last slash."""
    return key.rpartition("/")[2]


def log_key(sequence: int) -> str:
    """Return the key of the sequence-th log object, counted from 0."""
    return f"{LOG_PREFIX}{sequence:010d}.json"


def follower_prefix(follower: str) -> str:
    """Return the prefix of the keys under which a follower notes how far it has come."""
    return f"{FOLLOWERS_PREFIX}{follower}/"


def follower_key(follower: str, sequence: int) -> str:
    """Return the key of the sequence-th note of a follower, counted from 0."""
    return f"{follower_prefix(follower)}{sequence:010d}.json"


def snapshot_key(sequence: int) -> str:
    """Return the key of the snapshot that covers log objects 0..sequence."""
    return f"{SNAPSHOT_PREFIX}{sequence:010d}"


def result_key(sample: int) -> str:
    """Return the key of a sample's result; the first object written there counts."""
    return f"{SAMPLES_PREFIX}{sample:06d}/result.json"


def checkpoint_key(sample: int, attempt: int = 1) -> str:
    """Return the key of the training checkpoint that one attempt at a sample writes, and no other one.

    The first one's has no number: once it was that of all attempts, and is found by those that follow them.
    """
    return f"{SAMPLES_PREFIX}{sample:06d}/checkpoint{'' if attempt == 1 else f'-{attempt}'}"


def inherited_checkpoint_key(sample: int, attempt: int) -> str:
    """Return the key of the checkpoint that an attempt has found, and goes on from as long as it has none of its own.

    Apart, so that an attempt's own one tells that it has come further than the one before it.
    """
    return f"{SAMPLES_PREFIX}{sample:06d}/inherited-{attempt}"


def vocabulary_key(sample: int) -> str:
    """Return the key of the vocabulary that a final test on a text leaves."""
    return f"{SAMPLES_PREFIX}{sample:06d}/vocabulary.json"


def preprocessing_key(sample: int) -> str:
    """Return the key of what a final test on images leaves of how it saw them."""
    return f"{SAMPLES_PREFIX}{sample:06d}/preprocessing.json"


def training_key(sample: int) -> str:
    """Return the key of what a final test leaves of how it was told to train, and by which software."""
    return f"{SAMPLES_PREFIX}{sample:06d}/training.json"


def weights_key(sample: int) -> str:
    """Return the key of the weights that a final training leaves."""
    return f"{SAMPLES_PREFIX}{sample:06d}/weights.safetensors"


def onnx_key(sample: int) -> str:
    """Return the key of the ONNX model that a final training leaves."""
    return f"{SAMPLES_PREFIX}{sample:06d}/network.onnx"
