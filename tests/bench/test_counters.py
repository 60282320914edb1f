"""What the benches count, from the lines that servers write."""

import json

import pytest
from counted_controller import resource_of
from fake_cluster import controllers_requests
from many_experiments import operators_requests, writes

_ACCESS = (
    "key bench [01/December/2026:02:39:11 +0000] 127.0.0.1 key 0P01 s3_{operation} {key} /bench/{key} 200 - 0 17 5 5 -"
    " Boto3/1.44.8 md/Botocore#1.44.8{app} Botocore/1.44.8 - EcSI SigV4 - AuthHeader s3 - arn:aws:s3:::/bench Yes"
)


def test_requests_of_controllers_are_counted_by_what_they_are_about() -> None:
    log = "\n".join(
        [
            "log starts 2026-12-01 02:39:11.507616917 +0000 UTC m=+0.032050663",
            _ACCESS.format(operation="PutObject", key="default/a/uid/log/0000000000.json", app=" app/controller"),
            _ACCESS.format(
                operation="GetObject", key="default/a/uid/samples/000001/result.json", app=" app/controller"
            ),
            _ACCESS.format(operation="PutObject", key="default/a/uid/samples/000001/result.json", app=""),
            _ACCESS.format(operation="ListObjectsV2", key="-", app=" app/controller"),
        ]
    )
    assert controllers_requests(log) == {"PutObject log": 1, "GetObject samples": 1, "ListObjectsV2 other": 1}


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/apis/batch/v1/namespaces/default/jobs", "jobs"),
        ("/apis/batch/v1/namespaces/default/jobs/demo-0123abcd-1", "jobs"),
        ("/apis/nas-operator.io/v1alpha1/namespaces/n/nasexperiments/demo/status", "nasexperiments/status"),
        ("/api/v1/namespaces/default/pods/x", "pods"),
        ("/api/v1/namespaces", "namespaces"),
        ("/api/v1/namespaces/default", "namespaces"),
    ],
)
def test_a_path_is_counted_without_names(path: str, resource: str) -> None:
    assert resource_of(path) == resource


def test_the_operators_requests_are_told_from_others_and_from_those_before() -> None:
    def line(second: int, agent: str, verb: str, subresource: str | None = None) -> str:
        about = {"resource": "nasexperiments", "subresource": subresource}
        at = f"2026-12-01T02:00:{second:02}.000000Z"
        return json.dumps(
            {"requestReceivedTimestamp": at, "userAgent": agent, "verb": verb, "objectRef": about, "requestURI": "/"}
        )

    lines = [
        line(1, "nas-operator", "patch", "status"),
        line(3, "nas-operator", "patch", "status"),
        line(4, "kopf/1.44", "list"),
        line(5, "kube-scheduler/v1.35", "patch"),
        line(9, "nas-operator", "patch", "status"),
    ]
    began = 1_796_090_400.0
    found = operators_requests(lines, began + 2, began + 9)
    assert found == {"patch nasexperiments/status": 1, "list nasexperiments": 1}
    assert writes(found) == 1
