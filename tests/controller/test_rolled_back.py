"""A controller under an older definition of its resource: what the cluster cannot be told is left out, and named."""

from typing import Any

from controller.world import make_experiment
from patience import HANG_SECONDS

from nas_api.experiment import LogHead, Outcome, SampleCounts
from nas_controller.kubernetes_status import KubernetesSink
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError


class Older(KubeClient):
    """An API server whose definition has neither ``status.log`` nor ``status.samples.queued``."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.refused = 0

    def get(self, *_: Any) -> dict[str, Any]:
        return {"metadata": {"uid": "0123456789ab", "resourceVersion": "1"}}

    def apply(self, *arguments: Any, **_: Any) -> dict[str, Any]:
        status = arguments[3]["status"]
        unknown = [".status.log"] * ("log" in status) + [".status.samples.queued"] * ("queued" in status["samples"])
        if unknown:
            self.refused += 1
            words = "\n".join(f"  {field}: field not declared in schema" for field in unknown)
            raise ApiError(
                500, "InternalError", f"failed to create typed patch object (default/demo): errors:\n{words}"
            )
        self.written.append(status)
        return {"metadata": {"resourceVersion": "2"}}


def test_what_the_cluster_does_not_know_is_left_out_and_the_end_is_told() -> None:
    client = Older()
    sink = KubernetesSink(client, make_experiment(), lambda _: None)
    counts = SampleCounts(budget=10, observed=10)
    head = LogHead(sequence=3, digest="0" * 64)
    outcome = Outcome(type="Complete", reason="SamplesSpent", message="10 samples observed")
    sink.publish(SearchStatus(epoch=1, samples=counts, log=head, outcome=outcome))
    assert sink.flush(HANG_SECONDS)
    sink.close()
    (status,) = client.written
    assert client.refused == 1 and status["samples"]["observed"] == 10
    assert status["outcome"]["message"] == (
        "10 samples observed (status.log and status.samples.queued cannot be told: apply the"
        " CustomResourceDefinition of this version, the cluster's is older)"
    )
