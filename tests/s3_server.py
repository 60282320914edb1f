"""A real S3 server (versitygw) on loopback, shared by every test marked ``s3``; loaded by ``conftest.py``.

Fixtures: ``s3_server`` (one process for the whole run) and ``s3_location`` (a fresh bucket for one test,
with the server's keys in the environment).
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from hack.cluster.network import choose_ports
from patience import eventually

from nas_api.child import S3Location

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"


@dataclass(frozen=True)
class S3Server:
    """A running server; ``root`` holds one folder a bucket."""

    endpoint: str
    root: Path

    def make_bucket(self) -> str:
        """Create a bucket with a name of its own and return the name."""
        name = f"test-{uuid4().hex[:12]}"
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        return name


def versitygw_binary() -> Path | None:
    """Return the newest binary that hack/cluster has built, or None."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nas-operator" / "bin"
    found = sorted(cache.glob("versitygw-*/versitygw"))
    return found[-1] if found else None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A versitygw process over a temporary folder, ended when the tests are."""
    binary = versitygw_binary()
    if binary is None:
        pytest.skip("no versitygw: `python3 -m hack.cluster build` makes it")
    folder = tmp_path_factory.mktemp("versitygw")
    port = choose_ports(["s3"], ())["s3"]
    process = start(binary, folder, port)
    try:
        yield S3Server(f"http://127.0.0.1:{port}", folder / "data")
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(binary: Path, folder: Path, port: int, *options: str) -> "subprocess.Popen[bytes]":
    """Start a server on what is in a folder, with further options of versitygw's, and wait until it listens."""
    root, sidecar = folder / "data", folder / "metadata"
    root.mkdir(exist_ok=True)
    sidecar.mkdir(exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(binary, "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY, "--secret", SECRET_KEY, "--quiet"),
                *options,
                *("posix", "--sidecar", str(sidecar), str(root)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    _wait_until_it_listens(process, port, folder / "server.log")
    return process


@pytest.fixture
def s3_location(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Location:
    """A fresh bucket on the server; boto3 finds the keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return S3Location(bucket=s3_server.make_bucket(), prefix="nas/default/demo/uid/", endpoint=s3_server.endpoint)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def listens() -> bool:
        if process.poll() is not None:
            pytest.fail(f"versitygw ended with {process.returncode}: {log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    eventually(listens, message="versitygw listens")
