"""An API server of canned answers, for commands whose words matter more than what a real one does.

Fixture: ``answer``. Loaded by ``conftest.py``.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

Answers = dict[str, tuple[int, str]]
Answer = Callable[[Answers], None]


def kubeconfig(path: Path, server: str) -> Path:
    """Write the configuration of a cluster whose API server is at this address."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": {"server": server}}],
                "users": [{"name": "me", "user": {"token": "token"}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "current-context": "here",
            }
        )
    )
    return path


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """Takes answers by path; for others the server says what one without our resource does."""
    answers: Answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path.partition("?")[0], (404, "404 page not found"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.server_port}")))
    yield answers.update
    server.shutdown()
    thread.join()
    server.server_close()


def failure(status: int, reason: str, message: str) -> tuple[int, str]:
    """Return an answer that refuses."""
    return status, json.dumps({"kind": "Status", "code": status, "reason": reason, "message": message})
