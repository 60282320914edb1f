"""The Kubernetes objects that the operator makes. Pure."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from nas_api import authority, names
from nas_api.child import StoreLocation
from nas_api.child_job import (
    child_job,
    owner_reference,
    restricted_pod,
    s3_environment,
    s3_location,
    template_field,
)
from nas_api.experiment import NASExperiment
from nas_api.follower import FollowerInput
from nas_api.pod_template import lay_over, overlay
from nas_api.trainer_input import largest_launches
from nas_kube.resources import JOBS, PODS, Resource
from nas_operator.settings import Settings

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io/v1"
# Ends that a Job bears; its kubelet counts them, and pauses longer and longer.
_WITHOUT_END = 2**31 - 1
# Asks autoscalers to leave a controller's node alone: a new controller would go on, but only once it has read the log,
# while children that end wait. A user's template may say otherwise.
_STAYS = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


@dataclass(frozen=True)
class Trial:
    """An object that the API server is asked to check and not to keep; ``field`` is where it comes from."""

    resource: Resource
    body: Object
    field: str


def digest(document: Any) -> str:
    """Return a short name for a JSON document: equal documents have equal names."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inputs(experiment: NASExperiment) -> str:
    """Return what a controller pod is replaced for when it changes: its own settings and its storage.

    Not the images: an upgrade of the operator must not restart every search. Defaults are left out, so that a
    later version with one more field does not either.
    """
    spec = experiment.spec
    return digest(
        [
            spec.storage.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            spec.controller.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        ]
    )


def service_account_name(experiment: NASExperiment) -> str:
    """Return the ServiceAccount that the controller runs as."""
    meta = experiment.metadata
    return experiment.spec.controller.service_account_name or names.controller_service_account(meta.name, meta.uid)


def service_account(experiment: NASExperiment) -> Object | None:
    """Return the ServiceAccount of the controller, or None where the user names an existing one."""
    if experiment.spec.controller.service_account_name is not None:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(experiment, service_account_name(experiment)),
        "automountServiceAccountToken": False,
    }


def role(experiment: NASExperiment) -> Object:
    """Return the Role that lets the controller follow its own experiment and write its status, and no other's.

    The operator has these verbs itself, so that it may hand them out without `escalate`.
    """
    meta = experiment.metadata
    own = {"apiGroups": [names.GROUP], "resourceNames": [meta.name]}
    return {
        "apiVersion": _RBAC,
        "kind": "Role",
        "metadata": _metadata(experiment, names.controller_service_account(meta.name, meta.uid)),
        "rules": [
            {**own, "resources": [names.PLURAL], "verbs": ["get", "list", "watch"]},
            {**own, "resources": [f"{names.PLURAL}/status"], "verbs": ["patch"]},
        ],
    }


def role_bindings(experiment: NASExperiment) -> tuple[Object, ...]:
    """Return the RoleBindings of the controller: what all of them may do in their namespaces, and its own Role."""
    meta = experiment.metadata
    account = names.controller_service_account(meta.name, meta.uid)
    own = names.controller_own_binding(meta.name, meta.uid)
    return (
        _role_binding(experiment, account, "ClusterRole", names.CONTROLLER_CLUSTER_ROLE),
        _role_binding(experiment, own, "Role", account),
    )


def _role_binding(experiment: NASExperiment, name: str, kind: str, to: str) -> Object:
    subject = {
        "kind": "ServiceAccount",
        "name": service_account_name(experiment),
        "namespace": experiment.metadata.namespace,
    }
    return {
        "apiVersion": _RBAC,
        "kind": "RoleBinding",
        "metadata": _metadata(experiment, name),
        "roleRef": {"apiGroup": _RBAC.partition("/")[0], "kind": kind, "name": to},
        "subjects": [subject],
    }


def trainer_service(experiment: NASExperiment) -> Object | None:
    """Return the Service that gives the pods of a child their host names; None where each child has one pod.

    One for all children: a host name begins with its Job's. Pods are found before they are ready, which a user's own
    trainer never is.
    """
    if all(experiment.spec.pods(final=final) == 1 for final in (False, True)):
        return None
    meta = experiment.metadata
    labels = names.labels(meta.name, meta.uid, names.ROLE_TRAINER)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(experiment, names.trainer_service(meta.name, meta.uid)), "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {key: labels[key] for key in (names.LABEL_EXPERIMENT_UID, names.LABEL_ROLE)},
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT}],
        },
    }


def controller_pod(experiment: NASExperiment, index: int, quick_failures: int, settings: Settings) -> Object:
    """Return the index-th controller pod, the user's template laid over ours.

    Args:
        experiment: whose pod.
        index: counted from 1.
        quick_failures: how many controllers before it ended soon after their start, in a row.
        settings: the operator's.

    Raises:
        ValueError: spec.controller.template cannot be laid over ours, or asks for what it may not; the message names
            the place.
    """
    meta, spec = experiment.metadata, experiment.spec
    container: Object = {
        "name": names.CONTROLLER_CONTAINER,
        "image": settings.controller_image,
        "command": ["python3", "-m", "nas_controller"],
        "env": [
            {"name": "NAS_NAMESPACE", "value": meta.namespace},
            {"name": "NAS_EXPERIMENT", "value": meta.name},
            {"name": "NAS_UID", "value": meta.uid},
            {"name": "NAS_TRAINER_IMAGE", "value": settings.trainer_image},
            {"name": names.ENV_CONTROLLER_IMAGE, "value": settings.controller_image},
            *s3_environment(spec.storage.s3, trainer=False),
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if settings.controller_metrics_port is not None:
        container["env"].append({"name": "NAS_METRICS_PORT", "value": str(settings.controller_metrics_port)})
        container["ports"] = [{"name": "metrics", "containerPort": settings.controller_metrics_port}]
    if settings.templates_unrestricted:
        container["env"].append({"name": names.ENV_UNRESTRICTED, "value": "true"})
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    pod = restricted_pod(
        container, service_account=service_account_name(experiment), mount_token=True, s3=spec.storage.s3
    )
    pod["terminationGracePeriodSeconds"] = 30
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    base = {"metadata": {"annotations": _STAYS}, "spec": pod}
    template = lay_over(base, "spec.controller.template", spec.controller.template)
    authority.refuse(spec, "controller", unrestricted=settings.templates_unrestricted)
    ours = _metadata(experiment, names.controller_pod(meta.name, meta.uid, index))
    ours["annotations"] = {
        names.ANNOTATION_INPUTS: inputs(experiment),
        names.ANNOTATION_QUICK_FAILURES: str(quick_failures),
    }
    theirs = template.get("metadata")
    metadata = overlay(theirs if isinstance(theirs, dict) else {}, ours)
    return {**template, "apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def follower_inputs(experiment: NASExperiment) -> str:
    """Return what a follower's Job is replaced for when it changes, as :func:`inputs`.

    Raises:
        ValueError: it has no follower.
    """
    spec = experiment.spec
    if spec.tracking is None:
        raise ValueError("spec.tracking is not set")
    return digest(
        [
            spec.tracking.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            spec.storage.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            spec.controller.service_account_name,
        ]
    )


def follower_job(experiment: NASExperiment, settings: Settings) -> Object:
    """Return the Job that follows an experiment until its tracker has all of it, the user's template laid over ours.

    Its pod has the controller's access to the bucket and no token for the API. The container is started again in the
    same pod; the Job makes another one where its node is lost.

    Raises:
        ValueError: spec.tracking.template cannot be laid over ours, or asks for what it may not, the message names the
            place; or spec.tracking is not set.
    """
    meta, spec = experiment.metadata, experiment.spec
    wanted = follower_inputs(experiment)
    assert spec.tracking is not None
    mlflow = spec.tracking.mlflow
    document = FollowerInput(
        experiment=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        store=StoreLocation(s3=s3_location(experiment)),
        mlflow=mlflow,
        dataset=spec.trainer.dataset,
    )
    secret = mlflow.credentials_secret
    credentials = () if secret is None else names.MLFLOW_CREDENTIAL_KEYS
    container: Object = {
        "name": names.FOLLOWER_CONTAINER,
        "image": settings.follower_image,
        "command": ["python3", "-m", "nas_followers"],
        "env": [
            {"name": names.ENV_FOLLOWER_INPUT, "value": document.model_dump_json(by_alias=True, exclude_none=True)},
            *s3_environment(spec.storage.s3, trainer=False),
            # One way to sign in needs two of them, the other one; what is missing, MLflow asks for.
            *(
                {"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key, "optional": True}}}
                for key in credentials
                if secret is not None
            ),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    pod = restricted_pod(
        container, service_account=spec.controller.service_account_name, mount_token=False, s3=spec.storage.s3
    )
    pod["restartPolicy"] = "OnFailure"
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    template = lay_over({"spec": pod}, "spec.tracking.template", spec.tracking.template)
    authority.refuse(spec, "tracking", unrestricted=settings.templates_unrestricted)
    ours = _metadata(experiment, names.follower_job(meta.name, meta.uid), names.ROLE_FOLLOWER)
    ours["annotations"] = {names.ANNOTATION_INPUTS: wanted}
    theirs = template.get("metadata")
    marks = {key: ours[key] for key in ("labels", "annotations")}
    metadata = overlay(theirs if isinstance(theirs, dict) else {}, marks)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": ours,
        "spec": {
            "backoffLimit": _WITHOUT_END,
            "completions": 1,
            "parallelism": 1,
            "template": {**template, "metadata": metadata},
        },
    }


def trials(experiment: NASExperiment, settings: Settings) -> tuple[Trial, ...]:
    """Return what the API server must accept before the search starts: children's Jobs, their pods, the controller's.

    The Jobs are of the largest launches that there may be, of the search and of the final training, so that none is
    refused only once the search has come to it. The pods are tried too, because a Job's template is only looked at by
    admission (quota, Pod Security) once its pod is made.

    Raises:
        ValueError: a template cannot be laid over ours or asks for what it may not, or a pod cannot be told of so many
            children; the message names the place.
    """
    tried: list[Trial] = []
    for inputs in largest_launches(experiment, StoreLocation(s3=s3_location(experiment))):
        job = child_job(experiment, 0, inputs, settings.trainer_image)
        template = job["spec"]["template"]
        pod = {
            **template,
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**(template.get("metadata") or {}), "namespace": experiment.metadata.namespace},
        }
        field = template_field(experiment, final=inputs[0].final is not None)
        tried += [Trial(JOBS, _unnamed(job), field), Trial(PODS, _unnamed(pod), field)]
    authority.refuse(experiment.spec, "trainer", "finalTraining", unrestricted=settings.templates_unrestricted)
    controller = controller_pod(experiment, 1, 0, settings)
    return (*tried, Trial(PODS, _unnamed(controller), "spec.controller.template"))


def _metadata(experiment: NASExperiment, name: str, role: str = names.ROLE_CONTROLLER) -> Object:
    meta = experiment.metadata
    return {
        "name": name,
        "namespace": meta.namespace,
        "labels": names.labels(meta.name, meta.uid, role),
        "ownerReferences": [owner_reference(experiment)],
    }


def _unnamed(body: Object) -> Object:
    """Return the object under a name that cannot be taken yet: what exists must not refuse what is only tried."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "name"}
    return {**body, "metadata": {**metadata, "generateName": "nas-trial-"}}
