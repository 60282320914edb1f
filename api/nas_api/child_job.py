"""The Kubernetes objects of one child, and the pieces every pod of ours shares. Pure builders.

The operator dry-runs what the controller will create, so both build it here.
"""

import hashlib
import json
from datetime import timedelta
from typing import Any

from nas_api import custom_trainer, names
from nas_api.child import ExitCode, S3Location, TrainerInput, of_final_training, trainer_document
from nas_api.experiment import NASExperiment, NASExperimentSpec, PodTemplate, S3Spec, TrainerSpec
from nas_api.pod_template import lay_over, overlay

# Without 143 and 137: they are how pods end that a suspended Job has to give up, and it is to go on later. The kernel's
# out-of-memory killer leaves 137 too; its pod stays and tells.
_FATAL_EXIT_CODES = [
    ExitCode.INVALID_INPUT,
    ExitCode.OUT_OF_MEMORY,
    ExitCode.DATASET_UNAVAILABLE,
    ExitCode.STORAGE_REFUSED,
    ExitCode.NO_CUDA,
    ExitCode.STORAGE_UNREACHABLE,
]
CA_BUNDLE_FOLDER = "/etc/nas/ca"
PREPARE_CONTAINER = "prepare"
KEEP_CONTAINER = "keep"
UPLOAD_CONTAINER = "upload"
# The kernel's bound of one variable of an environment, its name included (MAX_ARG_STRLEN).
_LONGEST_VARIABLE = 131_072
# What a container that runs before or after the trainer may ask for without raising what the pod needs.
_SHARED_RESOURCES = ("cpu", "memory", "ephemeral-storage")
# How resources begin that are GPUs or parts of one, after their vendor's name: nvidia.com/gpu, nvidia.com/mig-1g.5gb.
_GPUS = ("gpu", "mig-")
# What the one beside it asks for, of the same.
_KEEP_REQUESTS = {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "1Mi"}


def owner_reference(experiment: NASExperiment) -> dict[str, Any]:
    """Return the reference that makes an object go with its experiment, without holding it up."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": experiment.metadata.name,
        "uid": experiment.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def s3_location(experiment: NASExperiment) -> S3Location:
    """Return where an experiment's objects are."""
    spec, meta = experiment.spec.storage.s3, experiment.metadata
    return S3Location(
        bucket=spec.bucket,
        prefix=names.experiment_prefix(spec.prefix, meta.namespace, meta.name, meta.uid),
        endpoint=spec.endpoint,
        region=spec.region,
        path_style=spec.path_style,
    )


def s3_environment(spec: S3Spec, *, trainer: bool) -> list[dict[str, Any]]:
    """Return the environment that gives a pod its keys and certificates; values stay in their Secret."""
    secret = spec.credentials_secret
    if trainer and spec.trainer_credentials_secret is not None:
        secret = spec.trainer_credentials_secret
    environment: list[dict[str, Any]] = []
    if secret is not None:
        environment += [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
            for key in names.CREDENTIAL_KEYS
        ]
    if spec.ca_bundle is not None:
        environment.append({"name": "AWS_CA_BUNDLE", "value": f"{CA_BUNDLE_FOLDER}/{spec.ca_bundle.key}"})
    return environment


def restricted_container() -> dict[str, Any]:
    """Return the security context of a container in a pod that meets the ``restricted`` standard."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def restricted_pod(
    container: dict[str, Any], *, service_account: str | None, mount_token: bool, s3: S3Spec
) -> dict[str, Any]:
    """Return a pod spec that meets the ``restricted`` Pod Security Standard around one container.

    The root is read-only; /tmp (also HOME) and /dev/shm are writable; the group owns volumes.
    """
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    if s3.ca_bundle is not None:
        volumes.append({"name": "ca", "configMap": {"name": s3.ca_bundle.config_map}})
        mounts.append({"name": "ca", "mountPath": CA_BUNDLE_FOLDER})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": mount_token,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                **container,
                "env": [{"name": "HOME", "value": "/tmp"}, *container.get("env", [])],
                "securityContext": restricted_container(),
                "volumeMounts": [*mounts, *container.get("volumeMounts", [])],
            }
        ],
        "volumes": volumes,
    }
    if service_account is not None:
        pod["serviceAccountName"] = service_account
    return pod


def trainer_pod_template(
    experiment: NASExperiment, launch: int, inputs: tuple[TrainerInput, ...], image: str
) -> dict[str, Any]:
    """Return the pod template of one launch, the user's templates laid over ours.

    Args:
        experiment: the manifest.
        launch: its number.
        inputs: what the trainer is told of each child; of one, where it is a user's own.
        image: the built-in trainer's image, which also has what runs around a user's own trainer.

    Raises:
        ValueError: a user's template cannot be laid over ours, a user's own trainer has no image, or there are more
            children than an environment can tell of; the message names the place.
    """
    spec = experiment.spec.trainer
    own, final = spec.dataset.custom is not None, of_final_training(inputs)
    deadline = experiment.spec.deadline(final=final)
    trainer = _own_trainer(experiment, inputs[0]) if own else _built_in_trainer(experiment, inputs, image)
    pods = _pods(experiment, inputs)
    if pods > 1:
        trainer["env"] += _rendezvous(experiment, launch, pods, deadline)
    pod = restricted_pod(
        trainer,
        service_account=spec.service_account_name,
        mount_token=False,
        s3=experiment.spec.storage.s3,
    )
    if own:
        # /tmp is HOME: what a user's program leaves in its own must not configure the one that has the keys.
        pod["volumes"] += [{"name": "nas", "emptyDir": {}}, {"name": "nas-tmp", "emptyDir": {}}]
    pod["activeDeadlineSeconds"] = len(inputs) * int(deadline.total_seconds())
    pod["terminationGracePeriodSeconds"] = 30
    if pods > 1:
        pod["subdomain"] = names.trainer_service(experiment.metadata.name, experiment.metadata.uid)
    template = {
        "metadata": {"labels": names.labels(experiment.metadata.name, experiment.metadata.uid, names.ROLE_TRAINER)},
        "spec": pod,
    }
    for field, theirs in _templates(experiment, final=final).items():
        template = lay_over(template, field, theirs)
    return _between_ours(experiment, inputs[0], template, image) if own else _told_of_gpu(template)


def _templates(experiment: NASExperiment, *, final: bool) -> dict[str, PodTemplate]:
    """Return the user's templates by the fields that have them; each lies over those before it."""
    chosen = {"spec.trainer.template": experiment.spec.trainer.template}
    if final and experiment.spec.final_training is not None:
        chosen["spec.finalTraining.template"] = experiment.spec.final_training.template
    return {field: template for field, template in chosen.items() if template is not None}


def template_field(experiment: NASExperiment, *, final: bool) -> str:
    """Return where to look when a child's pod is refused: at the last template that has a say in it."""
    return next(reversed(_templates(experiment, final=final)), "spec.trainer.template")


def _pods(experiment: NASExperiment, inputs: tuple[TrainerInput, ...]) -> int:
    return experiment.spec.pods(final=of_final_training(inputs))


def _rendezvous(experiment: NASExperiment, launch: int, pods: int, deadline: timedelta) -> list[dict[str, Any]]:
    """Return the environment by which the pods of one launch find each other.

    It is what ``torch.distributed`` reads, with one process in each pod, and what torchrun takes for its options
    (``PET_*``), which then tells its own processes. Host and id are the launch's: pods of two launches never meet.
    """
    meta = experiment.metadata
    job = names.child_job(meta.name, meta.uid, launch)
    host = f"{job}-0.{names.trainer_service(meta.name, meta.uid)}.{meta.namespace}"
    plain = {
        "WORLD_SIZE": str(pods),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(names.RENDEZVOUS_PORT),
        "PET_NNODES": str(pods),
        "PET_MASTER_ADDR": host,
        "PET_MASTER_PORT": str(names.RENDEZVOUS_PORT),
        "PET_RDZV_ID": job,
        # How long the others may take to start is for the deadline to say.
        "PET_RDZV_CONF": f"timeout={int(deadline.total_seconds())}",
    }
    number = {"fieldRef": {"fieldPath": f"metadata.annotations['{names.COMPLETION_INDEX}']"}}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "valueFrom": number} for name in ("RANK", "PET_NODE_RANK")),
    ]


def _built_in_trainer(experiment: NASExperiment, inputs: tuple[TrainerInput, ...], image: str) -> dict[str, Any]:
    spec = experiment.spec.trainer
    document = trainer_document(inputs)
    if len(document) + len(names.ENV_TRAINER_INPUT) + 2 > _LONGEST_VARIABLE:
        raise ValueError(
            f"spec.trainer.childrenPerPod: {len(inputs)} children need {len(document):,} bytes of environment, and a"
            f" container has {_LONGEST_VARIABLE:,}: lower it"
        )
    return {
        "name": names.TRAINER_CONTAINER,
        "image": spec.image or image,
        "env": [
            {"name": names.ENV_TRAINER_INPUT, "value": document},
            {"name": "OMP_NUM_THREADS", "value": str(spec.threads)},
            *s3_environment(experiment.spec.storage.s3, trainer=True),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _own_trainer(experiment: NASExperiment, trainer_input: TrainerInput) -> dict[str, Any]:
    """Return the container of a user's own trainer: its image may be missing here and come from the template."""
    spec = experiment.spec.trainer
    plain = custom_trainer.environment(trainer_input, custom_trainer.POD_FOLDER)
    container: dict[str, Any] = {
        "name": names.TRAINER_CONTAINER,
        "env": [{"name": name, "value": value} for name, value in plain.items()],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "nas", "mountPath": custom_trainer.POD_FOLDER}],
    }
    if spec.image is not None:
        container["image"] = spec.image
    if spec.command is not None:
        container["command"] = list(spec.command)
    return container


def _between_ours(
    experiment: NASExperiment, trainer_input: TrainerInput, template: dict[str, Any], image: str
) -> dict[str, Any]:
    """Return the pod template with the user's trainer between a container that writes its input and one that uploads.

    The trainer becomes the last init container: the kubelet then starts the upload only when it has ended with
    code 0, waits for the upload as long as that takes, and tells both ends in the pod's status (ADR 7).
    """
    pod = template["spec"]
    trainer = next(item for item in pod["containers"] if item["name"] == names.TRAINER_CONTAINER)
    if not trainer.get("image"):
        raise ValueError("spec.trainer.image: name the image of your own trainer")
    before = [_sidecar(experiment, trainer_input, trainer, image, PREPARE_CONTAINER), *pod.get("initContainers", ())]
    if _pods(experiment, (trainer_input,)) > 1:
        before.append(_sidecar(experiment, trainer_input, trainer, image, KEEP_CONTAINER))
    rest = [item for item in pod["containers"] if item["name"] != names.TRAINER_CONTAINER]
    return {
        # kubectl logs and exec go to the trainer unless told otherwise.
        "metadata": overlay(
            {"annotations": {"kubectl.kubernetes.io/default-container": names.TRAINER_CONTAINER}}, template["metadata"]
        ),
        "spec": {
            **pod,
            "initContainers": [*before, trainer],
            "containers": [_sidecar(experiment, trainer_input, trainer, image, UPLOAD_CONTAINER), *rest],
        },
    }


def _sidecar(
    experiment: NASExperiment, trainer_input: TrainerInput, trainer: dict[str, Any], image: str, task: str
) -> dict[str, Any]:
    """Return our container that does a task before, beside or after a user's trainer.

    Only the upload has keys, and those that bring and keep a checkpoint, which a child of several pods has.
    """
    s3 = experiment.spec.storage.s3
    container: dict[str, Any] = {
        "name": task,
        "image": image,
        "command": ["python3", "-m", "nas_trainer.sidecar", task],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "NAS_DIR", "value": custom_trainer.POD_FOLDER},
            {"name": names.ENV_TRAINER_INPUT, "value": trainer_input.model_dump_json(by_alias=True)},
        ],
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "nas", "mountPath": custom_trainer.POD_FOLDER},
            {"name": "nas-tmp", "mountPath": "/tmp"},
        ],
    }
    if task == UPLOAD_CONTAINER:
        # For messages that say where the trainer's own words are.
        container["env"] += [
            {"name": "NAS_NAMESPACE", "value": experiment.metadata.namespace},
            {"name": "NAS_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]
    if task == UPLOAD_CONTAINER or _pods(experiment, (trainer_input,)) > 1:
        container["env"] += s3_environment(s3, trainer=True)
        if s3.ca_bundle is not None:
            container["volumeMounts"].append({"name": "ca", "mountPath": CA_BUNDLE_FOLDER})
    # One after the other: as much as the trainer has costs nothing more, and satisfies every quota that it does.
    resources = {
        kind: shared
        for kind, amounts in (trainer.get("resources") or {}).items()
        if kind in ("requests", "limits")
        and (shared := {name: amount for name, amount in amounts.items() if name in _SHARED_RESOURCES})
    }
    if task == KEEP_CONTAINER:
        # It runs as long as the trainer does, and comes on top.
        container["restartPolicy"] = "Always"
        if resources:
            named = resources.get("requests", {}) | resources.get("limits", {})
            resources["requests"] = {name: _KEEP_REQUESTS[name] for name in named}
    if resources:
        container["resources"] = resources
    return container


def made_from(spec: NASExperimentSpec, image: str = "") -> str:
    """Return a short name for what a manifest makes children's pods from: where it differs, so do they.

    All of the trainer but what only says what follows from their ends. Defaults are left out, so that a later version
    with one more field names the same manifest in the same way.

    Args:
        spec: the manifest's.
        image: the trainer's, where the manifest names none.
    """
    trainer = spec.trainer.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"attempts"})
    final = None
    if spec.final_training is not None:
        fields = {"pods", "deadline", "checkpoint_every", "template"}
        final = spec.final_training.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=fields)
    document = [trainer, final, spec.trainer.image or image]
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def child_job(experiment: NASExperiment, launch: int, inputs: tuple[TrainerInput, ...], image: str) -> dict[str, Any]:
    """Return the Job that trains one launch. Every retry is ours: the Job itself tries once.

    Only a child that is alone has a label for its sample; an annotation names all in any case. Where there is a queue,
    the Job is suspended, and Kueue resumes it when there is room: for all of its pods at once, where there are several.
    The first of these that fails ends the others.

    Raises:
        ValueError: see :func:`trainer_pod_template`.
    """
    meta = experiment.metadata
    labels = {
        **names.labels(meta.name, meta.uid, names.ROLE_TRAINER),
        names.LABEL_LAUNCH: str(launch),
        names.LABEL_CHILDREN: str(len(inputs)),
        names.LABEL_ATTEMPT: str(inputs[0].attempt),
    }
    if len(inputs) == 1:
        labels[names.LABEL_SAMPLE] = str(inputs[0].sample)
    annotations = {names.ANNOTATION_SAMPLES: ",".join(str(child.sample) for child in inputs)}
    metadata = {"labels": labels, "annotations": annotations}
    template = overlay({"metadata": metadata}, trainer_pod_template(experiment, launch, inputs, image))
    # Around a user's own trainer the codes of our containers count, too.
    own = experiment.spec.trainer.dataset.custom is not None
    on_container = {} if own else {"containerName": names.TRAINER_CONTAINER}
    pods = _pods(experiment, inputs)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.child_job(meta.name, meta.uid, launch),
            "namespace": meta.namespace,
            **metadata,
            # What a later controller compares, which may find another manifest.
            "annotations": {**annotations, names.ANNOTATION_INPUTS: made_from(experiment.spec, image)},
            # Kueue's are for the Job alone: a pod that names a queue would wait there a second time.
            "labels": {**labels, **_queue_labels(experiment.spec.trainer)},
            "ownerReferences": [owner_reference(experiment)],
        },
        "spec": {
            "backoffLimit": 0,
            **({"completionMode": "Indexed"} if pods > 1 else {}),
            "completions": pods,
            "parallelism": pods,
            "suspend": experiment.spec.trainer.queue is not None,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": experiment.spec.trainer.ttl_seconds_after_finished,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            **on_container,
                            "operator": "In",
                            "values": [int(code) for code in _FATAL_EXIT_CODES],
                        },
                    },
                ]
            },
            "template": template,
        },
    }


def _queue_labels(spec: TrainerSpec) -> dict[str, str]:
    """Return by what Kueue knows a Job's queue and its priority there."""
    chosen = {names.LABEL_QUEUE: spec.queue, names.LABEL_PRIORITY_CLASS: spec.priority_class}
    return {label: value for label, value in chosen.items() if value is not None}


def _told_of_gpu(template: dict[str, Any]) -> dict[str, Any]:
    """Return the pod template with the built-in trainer told that it is to have a GPU, if its container asks for one.

    What the user's template says of that itself stands.
    """
    containers = template["spec"].get("containers", ())
    trainer: dict[str, Any] = next((item for item in containers if item["name"] == names.TRAINER_CONTAINER), {})
    asked = _asked_gpu(trainer.get("resources"))
    if asked is None or any(item["name"] == names.ENV_GPU for item in trainer.get("env", ())):
        return template
    told = {"name": names.TRAINER_CONTAINER, "env": [{"name": names.ENV_GPU, "value": asked}]}
    return overlay(template, {"spec": {"containers": [told]}})


def _asked_gpu(resources: Any) -> str | None:
    """Return the name of the GPU among a container's resources; what the API server would refuse has none."""
    for kind in ("limits", "requests"):
        amounts = resources.get(kind) if isinstance(resources, dict) else None
        for name, amount in amounts.items() if isinstance(amounts, dict) else ():
            if name.partition("/")[2].startswith(_GPUS) and str(amount) != "0":
                return str(name)
    return None
