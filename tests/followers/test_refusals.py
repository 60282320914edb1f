"""What goes wrong on the way to MLflow is one sentence that names what to correct."""

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from controller.golden.write import stored
from controller.world import MemoryStore

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import MlflowSpec, SecretReference
from nas_api.follower import FollowerInput
from nas_followers import main as process
from nas_followers.errors import FollowerError
from nas_followers.mlflow import Mlflow
from nas_log.follower import Follower

Serve = Callable[[int, str], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server with one answer to everything, and its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def asked(uri: str, *, secret: str | None = None) -> FollowerInput:
    reference = None if secret is None else SecretReference(name=secret)
    return FollowerInput(
        experiment="digits",
        namespace="team",
        uid="u-1",
        store=StoreLocation(folder="/store"),
        mlflow=MlflowSpec(uri=uri, credentials_secret=reference),
    )


def refusal(uri: str, *, secret: str | None = None) -> str:
    log = Follower(stored("convolutional-guided"))
    next(log.read())
    assert log.facts is not None
    with pytest.raises(FollowerError) as caught:
        Mlflow(asked(uri, secret=secret)).look_up(log.facts)
    return str(caught.value)


def test_credentials_that_are_refused_name_their_secret(serve: Serve) -> None:
    uri = serve(401, "You are not authenticated.")
    assert refusal(uri, secret="keys") == f"MLflow at {uri} refuses the credentials (401): correct Secret keys"
    assert "name a Secret in spec.tracking.mlflow.credentialsSecret" in refusal(uri)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, "Permission denied", "does not allow it (403: "),
        (500, "oops", "answers with errors again and again ("),
        (404, "<html>", "is no MLflow server"),
        (200, "<html>", "did not do what it was asked ("),
    ],
)
def test_other_answers_are_quoted(serve: Serve, status: int, body: str, words: str) -> None:
    assert words in refusal(serve(status, body))


def test_no_answer_names_the_field() -> None:
    words = refusal("http://127.0.0.1:9")
    assert words.startswith("MLflow at http://127.0.0.1:9 does not answer (")
    assert "correct spec.tracking.mlflow.uri" in words


def test_the_process_ends_with_the_sentence(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("process")
    store: MemoryStore = stored("convolutional-guided")
    monkeypatch.setattr(process, "open_store", lambda _: store)
    monkeypatch.setattr(process, "_TERMINATION_LOG", folder / "termination-log")
    (folder / "termination-log").touch()
    uri = serve(401, "no")
    code = process.main({names.ENV_FOLLOWER_INPUT: asked(uri).model_dump_json(by_alias=True)})
    assert code == 1
    assert (folder / "termination-log").read_text().startswith(f"MLflow at {uri} refuses the credentials (401)")
    assert process.main({}) == 1
    assert (folder / "termination-log").read_text().startswith(f"{names.ENV_FOLLOWER_INPUT} cannot be used")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
