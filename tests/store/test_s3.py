"""What is particular to S3: each way in which it refuses has its own reason and names the field to correct."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from uuid import uuid4

import boto3
import botocore.auth
import pytest
from patience import HANG_SECONDS
from s3_server import S3Server

from nas_api import names
from nas_api.child import S3Location
from nas_api.reasons import Reason
from nas_store import s3
from nas_store.errors import BucketNotFound, CredentialsRefused, StoreError, StoreUnreachable, StoreUnsuitable
from nas_store.s3 import S3Store


@pytest.mark.s3
def test_a_missing_bucket(s3_location: S3Location) -> None:
    store = S3Store(s3_location.model_copy(update={"bucket": "no-such-bucket"}))
    for call in (store.probe, lambda: store.get("x"), lambda: store.list("")):
        with pytest.raises(BucketNotFound, match=r"'no-such-bucket'.*spec\.storage\.s3\.bucket") as caught:
            call()
        assert caught.value.reason is Reason.BUCKET_NOT_FOUND


@pytest.mark.s3
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key(s3_location: S3Location, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(CredentialsRefused, match=r"spec\.storage\.s3\.credentialsSecret") as caught:
        S3Store(s3_location).probe()
    assert caught.value.reason is Reason.CREDENTIALS_REFUSED


def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = S3Store(S3Location(bucket="bucket", prefix="", endpoint="http://127.0.0.1:9"))
    with pytest.raises(CredentialsRefused, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.probe()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_keys(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StoreUnreachable, match=r"does not answer.*spec\.storage\.s3\.endpoint") as caught:
        S3Store(S3Location(bucket="bucket", prefix="", endpoint=endpoint)).get("x")
    assert caught.value.retryable


def test_an_endpoint_that_is_no_url() -> None:
    with pytest.raises(StoreError, match=r"spec\.storage\.s3"):
        S3Store(S3Location(bucket="bucket", prefix="", endpoint="no url"))


Answer = Callable[[BaseHTTPRequestHandler, int], int]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int], int]], S3Store]]:
    """A function from a script (number of the PUT, from 0, to its HTTP status) to a store that meets it."""
    _set_keys(monkeypatch)
    monkeypatch.setattr(s3, "_CONFLICT_PAUSES_SECONDS", (0.0, 0.0))
    servers: list[HTTPServer] = []

    def start(script: Callable[[int], int]) -> S3Store:
        class Handler(BaseHTTPRequestHandler):
            puts = 0

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status = script(Handler.puts)
                Handler.puts += 1
                code = {
                    409: "ConditionalRequestConflict",
                    412: "PreconditionFailed",
                    501: "NotImplemented",
                    301: "PermanentRedirect",
                }.get(status, "InternalError")
                body = b"" if status == 200 else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return S3Store(S3Location(bucket="bucket", prefix="p/", endpoint=f"http://127.0.0.1:{server.server_port}"))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_conflict_is_tried_again(scripted: Callable[[Callable[[int], int]], S3Store]) -> None:
    assert scripted(lambda number: 409 if number < 2 else 200).put_if_absent("x", b"")
    assert not scripted(lambda number: 409 if number < 2 else 412).put_if_absent("x", b"")


def test_a_conflict_without_end_is_unreachable(scripted: Callable[[Callable[[int], int]], S3Store]) -> None:
    with pytest.raises(StoreUnreachable, match="ConditionalRequestConflict"):
        scripted(lambda _: 409).put_if_absent("x", b"")


def always(status: int) -> Callable[[int], int]:
    return lambda _: status


@pytest.mark.slow
def test_a_server_without_conditions_is_unsuitable(scripted: Callable[[Callable[[int], int]], S3Store]) -> None:
    for status in (200, 501):
        with pytest.raises(StoreUnsuitable, match=r"If-None-Match.*versitygw") as caught:
            scripted(always(status)).probe()
        assert caught.value.reason is Reason.STORE_UNSUITABLE


def test_trouble_of_a_moment_is_nobodys_business(scripted: Callable[[Callable[[int], int]], S3Store]) -> None:
    assert scripted(lambda number: 503 if number < 1 else 200).put_if_absent("x", b"")


def test_the_wrong_region_names_its_field(scripted: Callable[[Callable[[int], int]], S3Store]) -> None:
    with pytest.raises(StoreUnreachable, match=r"spec\.storage\.s3\.region"):
        scripted(lambda _: 301).put_if_absent("x", b"")


@pytest.mark.s3
@pytest.mark.parametrize("before", [None, b"old"])
def test_what_was_overtaken_between_question_and_write_is_not_written(
    s3_location: S3Location, before: bytes | None
) -> None:
    """A controller is paused after it has looked; another one goes on meanwhile and writes the newer best."""
    paused, other = S3Store(s3_location), S3Store(s3_location)
    paused.probe()
    if before is not None:
        other.put("best/architecture.json", before)
    overtaken = iter((False, True))

    def looks() -> bool:
        if next(overtaken):
            return False
        other.put("best/architecture.json", b"newer")
        return True

    assert not paused.replace("best/architecture.json", b"older", looks)
    assert other.get("best/architecture.json") == b"newer"


@pytest.mark.s3
def test_a_replacement_whose_answer_was_lost_is_made_again(
    s3_location: S3Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(s3_location)
    store.probe()
    put, calls = store._put, iter(range(9))

    def twice(key: str, data: bytes, **condition: object) -> None:
        put(key, data, **condition)
        if next(calls) == 0:
            # What a repeated request finds.
            put(key, data, **condition)

    store.put("best/architecture.json", b"old")
    monkeypatch.setattr(store, "_put", twice)
    assert store.replace("best/architecture.json", b"new", lambda: True)
    assert store.get("best/architecture.json") == b"new"


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """A store on a server that looks first and writes then: two PUTs at once find nothing, and both are let in."""
    _set_keys(monkeypatch)
    objects: dict[str, bytes] = {}
    both = threading.Barrier(2)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = objects.get(self.path.partition("?")[0])
            self._answer(
                404 if data is None else 200, b"<Error><Code>NoSuchKey</Code></Error>" if data is None else data
            )

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("If-None-Match") and self.path in objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            # Until another one has looked as well, where there is one.
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(HANG_SECONDS)
            objects[self.path] = data
            self._answer(200, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield S3Store(S3Location(bucket="bucket", prefix="p/", endpoint=f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    server.server_close()


def test_a_server_that_looks_first_and_writes_then_is_unsuitable(naive: S3Store) -> None:
    with pytest.raises(StoreUnsuitable, match=r"writes at once with If-None-Match: \*.*success"):
        naive.probe()


@pytest.mark.s3
def test_a_clock_that_is_wrong_is_told_as_such(s3_location: S3Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(StoreUnreachable, match=r"RequestTimeTooSkewed.*set the clock of this machine") as caught:
        S3Store(s3_location).put("x", b"")
    assert caught.value.retryable, "it passes once the clock is set"
    assert "Secret" not in str(caught.value)


@pytest.mark.s3
def test_every_object_comes_with_a_checksum_as_a_bucket_with_object_lock_demands(
    s3_location: S3Location, s3_server: S3Server
) -> None:
    bucket = f"locked-{uuid4().hex[:12]}"
    client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    store = S3Store(s3_location.model_copy(update={"bucket": bucket}))
    sent: list[str | None] = []
    store._client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers.get("Content-MD5"))
    )
    store.probe()
    assert store.put_if_absent(names.log_key(0), b"record")
    store.put("best/architecture.json", b"best")
    assert store.replace("best/architecture.json", b"better", lambda: True)
    assert len(sent) > 4 and all(sent)


def _set_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
