"""The child's Job: what the user's template may change, and what it must never lose."""

from typing import Any

import pytest

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import (
    FinalSettings,
    Result,
    StoreLocation,
    TrainerInput,
    TrainerPack,
    read_trainer_document,
    trainer_document,
)
from nas_api.child_job import child_job, s3_location
from nas_api.experiment import FinalTrainingSpec, NASExperiment
from nas_api.pod_template import overlay
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer

UID = "0123456789abcdef"
NETWORK = ConvolutionalArchitecture(layers=(ConvolutionalLayer(filter_height=3, filter_width=3, filters=8),))


def experiment(**trainer: Any) -> NASExperiment:
    return NASExperiment.model_validate(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "demo", "namespace": "team", "uid": UID, "labels": {"a": "b"}},
            "spec": {
                "searchSpace": {"convolutional": {}},
                "budget": {"samples": 10},
                "trainer": {"dataset": {"digits": {}}, **trainer},
                "storage": {
                    "s3": {
                        "bucket": "nas",
                        "credentialsSecret": {"name": "keys"},
                        "trainerCredentialsSecret": {"name": "trainer-keys"},
                        "caBundle": {"configMap": "ca"},
                    }
                },
            },
        }
    )


def custom(**trainer: Any) -> NASExperiment:
    """Return an experiment with a user's own trainer."""
    chosen = {"dataset": {"custom": {}}, "image": "mine:1", "command": ["/train"], "epochs": 7, **trainer}
    return experiment(**{key: value for key, value in chosen.items() if value is not None})


def asked(of: NASExperiment, sample: int = 3, architecture: Architecture = NETWORK) -> TrainerInput:
    spec = of.spec.trainer
    return TrainerInput(
        experiment="demo",
        sample=sample,
        attempt=2,
        seed=1,
        metric="accuracy",
        architecture=architecture,
        dataset=spec.dataset,
        epochs=spec.epochs,
        reward_epochs=spec.reward_epochs,
        batch_size=spec.batch_size,
        optimizer=spec.optimizer,
        dataset_cache=spec.dataset_cache,
        store=StoreLocation(s3=s3_location(of)),
    )


def job(of: NASExperiment, launch: int = 7) -> dict[str, Any]:
    return child_job(of, launch, (asked(of),), "trainer:1")


def container(of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = of["spec"]["template"]["spec"]["containers"][0]
    return found


def test_the_job_tries_once_and_goes_with_its_experiment() -> None:
    built = job(experiment())
    assert built["metadata"]["name"] == f"demo-{UID[:8]}-7"
    (owner,) = built["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["blockOwnerDeletion"]) == (UID, False)
    assert built["spec"]["backoffLimit"] == 0
    rules = built["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"], "a pre-empted pod may exit with any code, so this rule comes first"
    # Neither 137 nor 143: pods of a Job that is suspended end so, and the Job is to go on later.
    assert rules[1]["onExitCodes"]["values"] == [10, 11, 12, 13, 14, 15]
    assert built["spec"]["suspend"] is False and names.LABEL_QUEUE not in built["metadata"]["labels"]


@pytest.mark.parametrize("more", [{}, {"childrenPerPod": 4}])
def test_in_a_queue_a_job_waits_suspended_and_its_pods_are_nobody_elses(more: dict[str, Any]) -> None:
    free = job(experiment(**more))
    built = job(experiment(**more, queue="gpu", priorityClass="high"))
    assert built["spec"] == {**free["spec"], "suspend": True}, "a pod that names a queue would wait there once more"
    added = {names.LABEL_QUEUE: "gpu", names.LABEL_PRIORITY_CLASS: "high"}
    assert built["metadata"]["labels"] == {**free["metadata"]["labels"], **added}
    assert names.LABEL_PRIORITY_CLASS not in job(experiment(queue="gpu"))["metadata"]["labels"]


def test_the_pod_meets_the_restricted_standard_and_mounts_no_token() -> None:
    pod = job(experiment())["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_trainers_use_their_own_keys_where_they_have_some() -> None:
    env = {item["name"]: item for item in container(job(experiment()))["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"]["name"] == "trainer-keys"
    assert env["AWS_CA_BUNDLE"]["value"] == "/etc/nas/ca/ca.crt"
    read_back = TrainerInput.model_validate_json(env["NAS_INPUT"]["value"])
    assert read_back.store.s3 is not None and read_back.store.s3.prefix == f"nas/team/demo/{UID}/"


def test_children_of_one_pod_have_one_document_and_their_deadlines_together() -> None:
    of = experiment(deadline="10m", childrenPerPod=4)
    children = tuple(asked(of, sample) for sample in (3, 5, 6))
    built = child_job(of, 7, children, "trainer:1")
    pod = built["spec"]["template"]["spec"]
    assert pod["activeDeadlineSeconds"] == 3 * 600
    (document,) = [item["value"] for item in container(built)["env"] if item["name"] == "NAS_INPUT"]
    assert TrainerPack.model_validate_json(document).children == children == read_trainer_document(document)
    for metadata in (built["metadata"], built["spec"]["template"]["metadata"]):
        labels = metadata["labels"]
        assert (labels[names.LABEL_CHILDREN], labels[names.LABEL_ATTEMPT]) == ("3", "2")
        assert names.LABEL_SAMPLE not in labels, "a selector of one sample must not find a pod of another"
        assert metadata["annotations"][names.ANNOTATION_SAMPLES] == "3,5,6"


def test_a_child_alone_has_its_own_document_and_label() -> None:
    built = job(experiment(childrenPerPod=4, deadline="10m"))
    assert built["metadata"]["labels"][names.LABEL_SAMPLE] == "3"
    assert built["metadata"]["annotations"][names.ANNOTATION_SAMPLES] == "3"
    assert built["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 600
    (document,) = [item["value"] for item in container(built)["env"] if item["name"] == "NAS_INPUT"]
    assert (TrainerInput.model_validate_json(document),) == read_trainer_document(document)


def test_more_children_than_an_environment_holds_are_refused() -> None:
    # The deepest networks there are, told at length where their dataset is.
    dataset = {"cifar10": {"uri": f"/{'x' * 1000}"}}
    of = experiment(childrenPerPod=16, dataset=dataset, datasetCache=f"/{'x' * 1000}")
    layer = ConvolutionalLayer(filter_height=3, filter_width=3, filters=8)
    layers = tuple(layer.model_copy(update={"inputs": tuple(range(index))}) for index in range(40))
    deep = asked(of, architecture=ConvolutionalArchitecture(layers=layers))
    assert len(trainer_document((deep,))) < 10_000, "one always fits"
    child_job(of, 0, (deep,) * 8, "trainer:1")
    with pytest.raises(ValueError, match=r"spec\.trainer\.childrenPerPod: 16 children need .* bytes.*lower it"):
        child_job(of, 0, (deep,) * 16, "trainer:1")


def test_a_template_lies_over_the_trainer_by_name() -> None:
    built = job(
        experiment(
            template={
                "metadata": {"labels": {"queue": "gpu"}},
                "spec": {
                    "nodeSelector": {"gpu": "a100"},
                    "containers": [
                        {
                            "name": "trainer",
                            "resources": {"limits": {"nvidia.com/gpu": 1}},
                            "env": [{"name": "OMP_NUM_THREADS", "value": "8"}, {"name": "MINE", "value": "1"}],
                        },
                        {"name": "sidecar", "image": "sidecar:1"},
                    ],
                },
            }
        )
    )
    template = built["spec"]["template"]
    assert template["metadata"]["labels"]["queue"] == "gpu"
    assert template["metadata"]["labels"][names.LABEL_LAUNCH] == "7"
    assert template["spec"]["nodeSelector"] == {"gpu": "a100"}
    trainer, sidecar = template["spec"]["containers"]
    env = {item["name"]: item.get("value") for item in trainer["env"]}
    assert (env["OMP_NUM_THREADS"], env["MINE"]) == ("8", "1")
    assert trainer["image"] == "trainer:1" and trainer["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert sidecar == {"name": "sidecar", "image": "sidecar:1"}


def test_a_template_without_names_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"spec.trainer.template: containers\[0\] of the template must be a map"):
        job(experiment(template={"spec": {"containers": [{"image": "x"}]}}))


def test_overlay_changes_neither_side_and_null_removes() -> None:
    base = {"a": {"b": 1, "c": 2}, "args": [1, 2]}
    assert overlay(base, {"a": {"b": None}, "args": [3]}) == {"a": {"c": 2}, "args": [3]}
    assert base == {"a": {"b": 1, "c": 2}, "args": [1, 2]}


def test_the_longest_name_fits_a_label() -> None:
    assert len(names.child_job("x" * names.MAX_EXPERIMENT_NAME, UID, 10**12)) <= 63
    assert len(names.controller_pod("x" * names.MAX_EXPERIMENT_NAME, UID, 99)) <= 63


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "valid dictionary"),
        ("{", "Expecting property name"),
        (f'{{"sample":4,"attempt":1,"architecture":"{NETWORK.digest}","metrics":{{"accuracy":1}}}}', "sample 4, not 3"),
        (f'{{"sample":3,"attempt":1,"architecture":"{"0" * 64}","metrics":{{"accuracy":1}}}}', "another architecture"),
        (f'{{"sample":3,"attempt":1,"architecture":"{NETWORK.digest}","metrics":{{"loss":1}}}}', "no 'accuracy'"),
    ],
)
def test_a_result_that_answers_another_question_is_refused(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Result.parse(document.encode(), sample=3, digest=NETWORK.digest, metric="accuracy")


@pytest.mark.parametrize(("value", "diverged"), [("0.5", False), ('"NaN"', True), ('"Infinity"', True), ("NaN", True)])
def test_a_metric_that_is_not_finite_is_a_divergence(value: str, diverged: bool) -> None:
    document = f'{{"sample":3,"attempt":1,"architecture":"{NETWORK.digest}","metrics":{{"accuracy":{value}}}}}'
    result = Result.parse(document.encode(), sample=3, digest=NETWORK.digest, metric="accuracy")
    assert result.diverged("accuracy") is diverged


def test_a_termination_message_fits_what_a_kubelet_keeps() -> None:
    result = Result(
        sample=0, attempt=1, architecture=NETWORK.digest, metrics={"accuracy": 0.5}, history=(0.123456789,) * 3000
    )
    read_back = Result.parse(result.termination_message().encode(), sample=0, digest=NETWORK.digest, metric="accuracy")
    assert read_back.metrics == {"accuracy": 0.5} and len(result.termination_message()) <= 4096


def own_pod(of: NASExperiment) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the pod of a user's own trainer, and its containers by name in their order."""
    pod = job(of)["spec"]["template"]["spec"]
    return pod, {item["name"]: item for item in (*pod["initContainers"], *pod["containers"])}


def test_a_users_trainer_runs_between_two_of_ours_in_its_own_image() -> None:
    pod, containers = own_pod(custom())
    assert list(containers) == ["prepare", "trainer", "upload"]
    assert [item["name"] for item in pod["containers"]] == ["upload"], "it starts when the trainer has ended with 0"
    assert {name: item["image"] for name, item in containers.items()} == {
        "prepare": "trainer:1",
        "trainer": "mine:1",
        "upload": "trainer:1",
    }
    assert containers["trainer"]["command"] == ["/train"]
    env = {item["name"]: item["value"] for item in containers["trainer"]["env"]}
    assert env == {
        "HOME": "/tmp",
        "NAS_DIR": "/nas",
        "NAS_SAMPLE": "3",
        "NAS_SEED": "1",
        "NAS_EPOCHS": "7",
        "OMP_NUM_THREADS": "1",
    }


def test_only_the_upload_has_keys_and_shares_no_home_with_a_users_trainer() -> None:
    _, containers = own_pod(custom())
    with_keys = [name for name, item in containers.items() if "secretKeyRef" in str(item)]
    assert with_keys == ["upload"]
    env = {item["name"]: item for item in containers["upload"]["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"]["name"] == "trainer-keys"
    assert (env["NAS_DIR"]["value"], env["NAS_NAMESPACE"]["value"]) == ("/nas", "team")
    homes = {
        name: next(mount["name"] for mount in item["volumeMounts"] if mount["mountPath"] == "/tmp")
        for name, item in containers.items()
    }
    assert homes == {"prepare": "nas-tmp", "trainer": "tmp", "upload": "nas-tmp"}


def test_every_container_around_a_users_trainer_meets_the_restricted_standard() -> None:
    pod, containers = own_pod(custom())
    assert pod["automountServiceAccountToken"] is False
    for item in containers.values():
        assert item["securityContext"]["readOnlyRootFilesystem"] is True
        assert item["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_template_reaches_a_users_trainer_and_what_runs_before_it() -> None:
    template = {
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "image": "theirs:2",
                    "resources": {"limits": {"cpu": "2", "nvidia.com/gpu": 1}, "requests": {"memory": "1Gi"}},
                    "securityContext": {"readOnlyRootFilesystem": False},
                }
            ],
            "initContainers": [{"name": "cache", "image": "cache:1", "restartPolicy": "Always"}],
            "volumes": [{"name": "nas", "emptyDir": {"sizeLimit": "1Gi"}}],
        }
    }
    pod, containers = own_pod(custom(image=None, template=template))
    assert list(containers) == ["prepare", "cache", "trainer", "upload"]
    assert containers["trainer"]["image"] == "theirs:2"
    assert containers["trainer"]["securityContext"]["readOnlyRootFilesystem"] is False
    assert containers["trainer"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert containers["upload"]["resources"] == {"limits": {"cpu": "2"}, "requests": {"memory": "1Gi"}}
    assert [item for item in pod["volumes"] if item["name"] == "nas"] == [
        {"name": "nas", "emptyDir": {"sizeLimit": "1Gi"}}
    ]


def test_a_users_trainer_needs_an_image() -> None:
    with pytest.raises(ValueError, match=r"spec\.trainer\.image"):
        job(custom(image=None))


def test_exit_codes_of_all_containers_around_a_users_trainer_count() -> None:
    rule = job(custom())["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert "containerName" not in rule, "an upload that is refused ends with a code of its own"
    assert job(experiment())["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == "trainer"


# ---------------------------------------------------------------- several pods

HOST = f"demo-{UID[:8]}-7-0.nas-demo-{UID[:8]}.team"


def final(of: NASExperiment) -> TrainerInput:
    return asked(of).model_copy(update={"final": FinalSettings()})


def test_one_pod_is_what_it_was() -> None:
    of = custom(pods=1)
    assert job(of) == job(custom())
    assert "completionMode" not in job(of)["spec"] and "subdomain" not in job(of)["spec"]["template"]["spec"]


def on(resources: Any, **more: Any) -> dict[str, Any]:
    """Return a trainer's template with these resources."""
    return {"spec": {"containers": [{"name": "trainer", "resources": resources, **more}]}}


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"limits": {"memory": "2Gi", "nvidia.com/gpu": 1}}, "nvidia.com/gpu"),
        ({"requests": {"nvidia.com/mig-1g.5gb": "2"}}, "nvidia.com/mig-1g.5gb"),
        ({"limits": {"amd.com/gpu": "1"}}, "amd.com/gpu"),
        ({"limits": {"nvidia.com/gpu": 0}}, None),
        ({"limits": {"cpu": "2", "example.com/fpga": 1}}, None),
        ({"claims": [{"name": "gpu"}]}, None),
        # For the API server to refuse.
        ({"limits": "nvidia.com/gpu"}, None),
        ("nvidia.com/gpu", None),
        (None, None),
    ],
)
def test_the_trainer_is_told_that_it_is_to_have_a_gpu(resources: Any, asked: str | None) -> None:
    found = container(job(experiment(template=on(resources))))
    assert [item["value"] for item in found["env"] if item["name"] == names.ENV_GPU] == ([asked] if asked else [])


def test_what_the_template_says_of_a_gpu_stands() -> None:
    template = on({"limits": {"nvidia.com/gpu": 1}}, env=[{"name": names.ENV_GPU, "value": ""}])
    found = container(job(experiment(template=template)))
    assert [item for item in found["env"] if item["name"] == names.ENV_GPU] == template["spec"]["containers"][0]["env"]


def test_a_gpu_of_another_container_or_of_a_trainer_of_ones_own_is_none_of_ours() -> None:
    beside = {"name": "beside", "image": "x", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    assert names.ENV_GPU not in str(job(experiment(template={"spec": {"containers": [beside]}})))
    assert names.ENV_GPU not in str(job(custom(template=on({"limits": {"nvidia.com/gpu": 1}}))))


@pytest.mark.parametrize("queue", [None, "gpu"])
def test_several_pods_are_one_job_whose_pods_find_each_other(queue: str | None) -> None:
    built = job(custom(pods=3, deadline="10m", **({} if queue is None else {"queue": queue})))
    spec = built["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        3,
        3,
        0,
    )
    # Kueue admits all pods of a Job at once, unless an annotation says that fewer would do.
    assert spec["suspend"] is (queue is not None)
    assert not [key for key in built["metadata"]["annotations"] if "kueue" in key]
    assert spec["template"]["spec"]["subdomain"] == f"nas-demo-{UID[:8]}"
    trainer = next(item for item in spec["template"]["spec"]["initContainers"] if item["name"] == "trainer")
    env = {item["name"]: item.get("value") for item in trainer["env"]}
    assert env["PET_RDZV_ID"] == built["metadata"]["name"], "pods of two launches never meet"
    assert (env["MASTER_ADDR"], env["PET_MASTER_ADDR"], env["PET_RDZV_CONF"]) == (HOST, HOST, "timeout=600")
    assert (env["WORLD_SIZE"], env["PET_NNODES"], env["MASTER_PORT"], env["PET_MASTER_PORT"]) == (
        "3",
        "3",
        "29500",
        "29500",
    )
    for name in ("RANK", "PET_NODE_RANK"):
        (source,) = [item["valueFrom"] for item in trainer["env"] if item["name"] == name]
        assert source == {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}


def test_pods_of_a_final_training_are_its_own_or_as_many_as_a_childs() -> None:
    def pods(of: NASExperiment, **final_training: Any) -> tuple[int, int]:
        """Return how many a child of the search has, and a final training."""
        spec = of.spec.model_copy(update={"final_training": FinalTrainingSpec(**final_training)})
        of = of.model_copy(update={"spec": spec})
        child, trained = (child_job(of, 7, (each,), "trainer:1") for each in (asked(of), final(of)))
        return child["spec"]["completions"], trained["spec"]["completions"]

    assert pods(custom(pods=3)) == (3, 3)
    assert pods(custom(pods=3), pods=1) == (3, 1)
    assert pods(experiment(), pods=2) == (1, 2)


def test_a_final_training_s_pods_have_a_deadline_and_a_template_of_their_own() -> None:
    def pod(of: NASExperiment, child: TrainerInput, **final_training: Any) -> dict[str, Any]:
        spec = of.spec.model_copy(update={"final_training": FinalTrainingSpec(**final_training)})
        job = child_job(of.model_copy(update={"spec": spec}), 7, (child,), "trainer:1")
        found: dict[str, Any] = job["spec"]["template"]["spec"]
        return found

    def on(zone: str, **resources: int) -> dict[str, Any]:
        container = {"name": "trainer", "resources": {"limits": resources}}
        return {"spec": {"nodeSelector": {"zone": zone}, "containers": [container]}}

    of = experiment(deadline="1h", template=on("a", gpu=1, memory=5))
    own = {"deadline": "48h", "template": on("b", gpu=8)}
    plain, trained, as_others = pod(of, asked(of), **own), pod(of, final(of), **own), pod(of, final(of))
    assert [each["activeDeadlineSeconds"] for each in (plain, trained, as_others)] == [3600, 48 * 3600, 3600]
    assert [each["nodeSelector"]["zone"] for each in (plain, trained, as_others)] == ["a", "b", "a"]
    assert trained["containers"][0]["resources"]["limits"] == {"gpu": 8, "memory": 5}
    with pytest.raises(ValueError, match=r"^spec.finalTraining.template: "):
        pod(of, final(of), template={"spec": {"containers": [{"image": "nameless"}]}})


def test_a_checkpoint_of_several_pods_is_kept_beside_the_trainer() -> None:
    resources = {"limits": {"memory": "2Gi", "nvidia.com/gpu": 1}, "requests": {"cpu": "2"}}
    template = {"spec": {"containers": [{"name": "trainer", "resources": resources}]}}
    _, containers = own_pod(custom(pods=2, template=template))
    assert list(containers) == ["prepare", "keep", "trainer", "upload"]
    assert containers["keep"]["restartPolicy"] == "Always", "it runs as long as the trainer does"
    assert containers["keep"]["resources"] == {
        "limits": {"memory": "2Gi"},
        "requests": {"cpu": "10m", "memory": "64Mi"},
    }
    with_keys = [name for name, item in containers.items() if "secretKeyRef" in str(item)]
    assert with_keys == ["prepare", "keep", "upload"]


def test_the_longest_names_of_several_pods_are_labels() -> None:
    name = names.child_job("x" * names.MAX_EXPERIMENT_NAME, UID, 10**9)
    assert len(f"{name}-63") <= 63, "a pod's host name"
    assert len(names.trainer_service("x" * names.MAX_EXPERIMENT_NAME, UID)) <= 63
    assert names.trainer_service("7up", UID)[0].isalpha()
