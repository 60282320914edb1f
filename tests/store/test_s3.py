"""What is particular to S3: each way in which it refuses has its own reason and names the field to correct."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

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


def _set_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
