"""What the API server bears, we read: depth is cut, and no answer raises anything but what it should."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from canned_api import Answer

from nas_kube.client import KubeClient
from nas_kube.decoding import DEEPEST, cut, decode
from nas_kube.errors import ApiUnavailable
from nas_kube.reflector import Reflector
from nas_kube.resources import JOBS, PODS


def nested(levels: int, *, lists: bool = False) -> str:
    """The API server takes 10,000 levels."""
    return "[" * levels + '"x"' + "]" * levels if lists else '{"a":' * levels + '"x"' + "}" * levels


def deepest(value: Any) -> int:
    levels = 0
    while isinstance(value, dict | list) and value:
        levels, value = levels + 1, next(iter(value.values() if isinstance(value, dict) else value))
    return levels


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("levels", [1_100, 9_000])
def test_what_is_nested_too_deep_costs_only_its_depths(levels: int, lists: bool) -> None:
    text = f'{{"before": 1, "deep": {nested(levels, lists=lists)}, "after": [1, {{"b": 2}}]}}'
    document = decode(text.encode())
    assert (document["before"], document["after"]) == (1, [1, {"b": 2}])
    assert deepest(document["deep"]) == DEEPEST - 1


@pytest.mark.parametrize("levels", [10, DEEPEST, DEEPEST + 1, 150, 200, 201])
def test_depth_is_cut_to_the_level(levels: int) -> None:
    text = nested(levels).encode()
    assert deepest(json.loads(cut(text))) == min(levels, DEEPEST)
    assert (cut(text) == text) is (levels <= DEEPEST)


def test_brackets_in_strings_are_no_depth() -> None:
    document = {"s": '[{"\\' * 500, "[": ["]", '"', "\\", '\\"['], "deep": json.loads(nested(150))}
    found = json.loads(cut(json.dumps(document).encode()))
    assert (found["s"], found["["]) == (document["s"], document["["])


@pytest.mark.parametrize("text", [b"", b"<html>", b'{"a":', b'{"a"', b"]" * 500, b"[" * 500, b'"' * 999, b'\\"' * 9999])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


def a_list(*items: str) -> str:
    return f'{{"metadata": {{"resourceVersion": "5"}}, "items": [{", ".join(items)}]}}'


JOB = '{"metadata": {"name": "honest", "uid": "h", "resourceVersion": "3"}}'
DEEP = f'{{"metadata": {{"name": "deep", "uid": "d", "resourceVersion": "4"}}, "spec": {nested(9_000)}}}'


def test_a_list_is_read_whole_whatever_one_object_has(answer: Answer) -> None:
    answer({"/apis/batch/v1/namespaces/n/jobs": (200, a_list(JOB, DEEP, JOB))})
    found = KubeClient.from_environment().list(JOBS, "n").items
    assert [item["metadata"]["name"] for item in found] == ["honest", "deep", "honest"]


def test_an_answer_that_is_no_json_is_no_answer(answer: Answer) -> None:
    answer({"/api/v1/namespaces/n/pods/p": (200, "<html>"), "/api/v1/namespaces/n/pods": (200, "<html>")})
    client = KubeClient.from_environment()
    calls: list[Callable[[], object]] = [lambda: client.get(PODS, "n", "p"), lambda: client.list(PODS, "n")]
    for call in calls:
        with pytest.raises(ApiUnavailable, match="no JSON"):
            call()


def test_a_page_that_is_too_large_is_asked_for_again_in_halves(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer({"/apis/batch/v1/namespaces/n/jobs": (200, a_list(*[JOB] * 40))})
    monkeypatch.setattr("nas_kube.client._PAGE", 8)
    monkeypatch.setattr("nas_kube.client._PAGE_BYTES", 1000)
    client = KubeClient.from_environment()
    asked: list[str] = []
    send = client._send

    def noting(method: str, path: str, query: dict[str, str], *rest: Any, **options: Any) -> Any:
        asked.append(query["limit"])
        return send(method, path, query, *rest, **options)

    monkeypatch.setattr(client, "_send", noting)
    # One object is taken however large it is: there is no smaller page.
    assert len(client.list(JOBS, "n", keep=lambda item: item["metadata"]).items) == 40
    assert asked == ["8", "4", "2", "1"]
    client.list(JOBS, "n")
    assert asked[4:] == ["1"], "what was learnt is not forgotten"
    answer({"/apis/batch/v1/namespaces/n/jobs": (200, a_list())})
    for _ in range(4):
        client.list(JOBS, "n")
    assert asked[5:] == ["1", "2", "4", "8"], "and grows again where objects are small"


def test_what_is_not_kept_is_not_there(answer: Answer) -> None:
    answer({"/apis/batch/v1/namespaces/n/jobs": (200, a_list(JOB, DEEP))})
    found = KubeClient.from_environment().list(
        JOBS, "n", keep=lambda item: item["metadata"] if item["metadata"]["name"] == "honest" else None
    )
    assert [item["name"] for item in found.items] == ["honest"]


def test_an_object_that_cannot_be_handled_holds_no_other_up(answer: Answer) -> None:
    answer({"/apis/batch/v1/namespaces/n/jobs": (200, a_list(DEEP, JOB))})
    seen: list[str] = []

    def handle(_: object, item: dict[str, Any]) -> None:
        if item["metadata"]["name"] == "deep":
            raise KeyError("spec")
        seen.append(item["metadata"]["name"])

    reflector = Reflector(KubeClient.from_environment(), JOBS, "n", handle)
    for _ in range(2):
        with pytest.raises(KeyError):
            reflector._list()
    assert seen == ["honest"], "delivered, and not again"
    assert reflector.wait_synced(0), "and nobody waits for it"
