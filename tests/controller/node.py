"""Plays the node where there is none: reads each child's input, writes its result and ends its pod."""

import math
import threading
from collections import Counter
from typing import Any

from controller.world import accuracy

from nas_api import names
from nas_api.child import Result, TrainerInput
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError
from nas_kube.resources import PODS
from nas_store import open_store


class Node(threading.Thread):
    """Ends trainer pods of a namespace with success, as many as it may."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        super().__init__(daemon=True)
        self.client, self.namespace = client, namespace
        self.allowed = math.inf
        """How many samples it trains at most, so that a search does not end before a test has done what it wants."""
        self.trained: Counter[int] = Counter()
        self.stopped = threading.Event()

    def run(self) -> None:
        done: set[str] = set()
        while not self.stopped.wait(0.2):
            for pod in self.client.list(PODS, self.namespace, label_selector=f"{names.LABEL_ROLE}=trainer").items:
                waits = pod["metadata"]["uid"] not in done and "deletionTimestamp" not in pod["metadata"]
                if waits and self.trained.total() < self.allowed:
                    done.add(pod["metadata"]["uid"])
                    self._train(pod)

    def _train(self, pod: dict[str, Any]) -> None:
        environment = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
        asked = TrainerInput.model_validate_json(environment[names.ENV_TRAINER_INPUT])
        result = Result(
            sample=asked.sample,
            attempt=asked.attempt,
            architecture=asked.architecture.digest,
            metrics={"accuracy": accuracy(asked.architecture)},
        )
        open_store(asked.store).put_if_absent(
            names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode()
        )
        self.trained[asked.sample] += 1
        body = {"status": {"phase": "Succeeded"}}
        try:
            self.client.patch(PODS, self.namespace, pod["metadata"]["name"], body, subresource="status")
        except ApiError as error:
            # Deleted meanwhile, as a suspension does.
            assert error.status == 404
